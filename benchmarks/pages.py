"""The pages that benchmarks write: Markdown templates beside this file, filled with what was measured."""

from datetime import date
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from rlhf_trl.measure import machine, versions


def render(template: str, **values) -> str:
    """A template, filled with values and with what it was measured on; a value that is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        undefined=StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    made = {"date": date.today(), "machine": machine(), "versions": ", ".join(map(" ".join, versions().items()))}
    return environment.get_template(template).render(made | values)


def markdown_table(rows: list[dict[str, str]]) -> str:
    """A table in Markdown; the keys are the titles."""
    lines = [f"| {' | '.join(cells)} |" for cells in (rows[0], *(row.values() for row in rows))]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])
