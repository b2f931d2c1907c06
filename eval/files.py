"""The files that the evaluation commands leave for each other and for people."""

from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from eval.pages.sentences import p_value


def render(template: str, **values: Any) -> str:
    """One of `eval/pages/templates`, filled; a value that is missing is an error."""
    environment = Environment(
        loader=PackageLoader("eval.pages"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": _interval, "percent": lambda share: f"{share:.1%}", "p_value": p_value}
    return environment.get_template(template).render(values)


def _interval(estimate: dict | None, digits: int = 2) -> str:
    if estimate is None:
        return "none"
    if estimate["ci"] is None:
        return f"{estimate['mean']:z.{digits}f}"
    return f"{estimate['mean']:z.{digits}f} [{estimate['ci'][0]:z.{digits}f}, {estimate['ci'][1]:z.{digits}f}]"
