"""The files that the evaluation commands leave for each other and for people."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
    """Write values that JSON knows, and intervals, which say themselves how they are written."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=lambda value: value.json())
    write_atomically(path, f"{text}\n")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `folder` when all is written, and not before."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    shutil.rmtree(folder, ignore_errors=True)
    staging.rename(folder)
