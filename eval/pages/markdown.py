"""The templates in `eval/pages/templates`, and how they write tables."""

from collections.abc import Iterable
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined, select_autoescape

from eval.analysis.comparisons import Comparison
from eval.analysis.intervals import Interval
from eval.pages.sentences import p_value


def render(template: str, **values: Any) -> str:
    """One of the templates, filled; a value that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("eval.pages"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (number, percent, p_value, bullets, pairs, against, passed)
    environment.filters |= {function.__name__: function for function in filters}
    environment.globals |= {"head": head, "row": row, "Interval": Interval}
    return environment.get_template(template).render(values)


def number(value: float | Interval | None, form: str = ".2f", none: str = "none") -> str:
    """A number, with its interval if it has one, or what to say where there is none."""
    return none if value is None else format(value, form)


def percent(share: float) -> str:
    return f"{share:.1%}"


def bullets(sentences: Iterable[str]) -> str:
    return "\n".join(f"- {sentence}." for sentence in sentences)


def pairs(facts: dict, between: str = " ", form: str = "") -> str:
    return ", ".join(f"{name}{between}{value:{form}}" for name, value in facts.items())


def against(comparisons: list[Comparison], a: str, b: str) -> Comparison | None:
    """The comparison of two checkpoints, if there is one."""
    return next((comparison for comparison in comparisons if (comparison.a, comparison.b) == (a, b)), None)


def passed(group: dict) -> str:
    """What came of a group of probes."""
    return f"{group['passed']} of {group['n']}, {group['share']:.2f}"


def head(*headings: Any) -> str:
    """The first two lines of a table."""
    line = row(*headings)
    return f"{line}\n|{'---|' * len([h for h in headings if not isinstance(h, Undefined)])}"


def row(*cells: Any) -> str:
    """A line of a table. In a template, `"a" if condition` is no cell at all where the condition does not hold."""
    cells = [cell for cell in cells if not isinstance(cell, Undefined)]
    texts = [number(cell) if cell is None or isinstance(cell, Interval) else str(cell) for cell in cells]
    return "|" + "".join(" {} |".format(text.replace("|", "\\|")) for text in texts)
