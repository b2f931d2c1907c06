"""The templates in `eval/pages/templates`, and how they write numbers, lists and tables."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Undefined, select_autoescape

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
    environment.filters |= {
        "number": number,
        "p_value": p_value,
        "bullets": lambda sentences: "\n".join(f"- {sentence}." for sentence in sentences),
        "facts": lambda facts, of=" ", form="": ", ".join(f"{name}{of}{value:{form}}" for name, value in facts.items()),
        "against": lambda pairs, a, b: next((pair for pair in pairs if (pair.a, pair.b) == (a, b)), None),
        "passed": lambda probes: f"{probes['passed']} of {probes['n']}, {probes['share']:.2f}",
    }
    environment.globals |= {"head": head, "row": row, "Interval": Interval}
    return environment.get_template(template).render(values)


def number(value: float | Interval | None, form: str = ".2f", none: str = "none") -> str:
    """A number, with its interval if it has one, or what to say where there is none."""
    return none if value is None else format(value, form)


def head(*headings: Any) -> str:
    """The first two lines of a table."""
    line = row(*headings)
    return f"{line}\n|{'---|' * len([h for h in headings if not isinstance(h, Undefined)])}"


def row(*cells: Any) -> str:
    """A line of a table. In a template, `"a" if condition` is no cell at all where the condition does not hold."""
    cells = [cell for cell in cells if not isinstance(cell, Undefined)]
    texts = [number(cell) if cell is None or isinstance(cell, Interval) else str(cell) for cell in cells]
    return "|" + "".join(" {} |".format(text.replace("|", "\\|")) for text in texts)
