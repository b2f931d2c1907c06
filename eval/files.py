"""The files that the evaluation commands leave for each other and for people."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from eval.pages.sentences import p_value


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a JSONL file; a last line that a killed process left half-written is not one."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is never seen half-written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(path.name + ".new")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, content: dict) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `folder` when all is written, and not before."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)


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
