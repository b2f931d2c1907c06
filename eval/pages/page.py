"""A report's Markdown as the body of a web page that stands alone."""

import re
from collections.abc import Sequence

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

# Figures of several panels: a phone scrolls them, as it could not show them legibly
WIDE = ("_curves.png", "optimisation.png", "reward_distributions.png", "reward_kl.png")


class _Renderer(RendererHTML):
    """Tables scroll in boxes of their own and are labelled, and images are figures that hold their own data."""

    def table_open(self, tokens: Sequence[Token], i: int, options, env: dict) -> str:
        caption = escapeHtml(tokens[i].meta["caption"])
        box = f'<div class="scroll" role="region" aria-label="{caption}" tabindex="0">'
        return f"{box}<table>\n<caption>{caption}</caption>\n"

    def table_close(self, tokens: Sequence[Token], i: int, options, env: dict) -> str:
        return "</table></div>\n"

    def image(self, tokens: Sequence[Token], i: int, options, env: dict) -> str:
        caption, source = escapeHtml(tokens[i].content), tokens[i].attrs["src"]
        if source not in env["images"]:  # not ours: what looks like an image is text of the data
            return f"![{caption}]({escapeHtml(source)})"
        opening = '<figure class="wide">' if source.endswith(WIDE) else "<figure>"
        image = f'<div class="scroll"><img src="{env["images"][source]}" alt="{caption}"></div>'
        # the same words need not be read out twice
        return f'{opening}{image}<figcaption aria-hidden="true">{caption}.</figcaption></figure>\n'


def body(text: str, images: dict[str, str]) -> dict:
    """The HTML of a report's Markdown: `header` (up to its first section) and `main`, and the `sections` of the latter
    as (id, title). Markup in the text itself is shown, not obeyed.

    Args:
        images: the address of each image by the name that the Markdown has for it.
    """
    markdown = MarkdownIt("commonmark", {"html": False}, renderer_cls=_Renderer).enable("table")
    tokens = markdown.parse(text)
    title, sections, first = "", [], len(tokens)
    for i, token in enumerate(tokens):
        if token.type == "heading_open":
            title = tokens[i + 1].content
            if token.tag == "h2":
                sections.append((re.sub(r"\W+", "-", title.lower()).strip("-"), title))
                token.attrSet("id", sections[-1][0])
                first = min(first, i)
        elif token.type == "table_open":
            token.meta = {"caption": title}
        elif token.type == "th_open" and tokens[i + 1].content:
            token.attrSet("scope", "col")
        elif token.type == "th_open":
            token.tag = tokens[i + 2].tag = "td"  # a corner that heads nothing
        elif token.type == "td_open" and tokens[i - 1].type == "tr_open":
            token.tag = tokens[i + 2].tag = "th"
            token.attrSet("scope", "row")
        elif token.type == "inline" and [child.attrs.get("src") in images for child in token.children] == [True]:
            tokens[i - 1].hidden = tokens[i + 1].hidden = True  # a figure is no paragraph
    parts = {"header": tokens[:first], "main": tokens[first:]}
    rendered = {
        name: markdown.renderer.render(some, markdown.options, {"images": images}) for name, some in parts.items()
    }
    return rendered | {"sections": sections}
