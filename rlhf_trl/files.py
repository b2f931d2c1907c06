"""JSON and JSON lines, written whole or not at all; and hashes of what stands in files."""

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rlhf_trl.errors import UserError

DATA_FILE = re.compile(r"\.(?:(jsonl?|csv)(?:\.gz)?|parquet)$", re.IGNORECASE)
MODEL_FILES = {
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".model",
    ".txt",
    ".py",
}  # of a model folder: what decides what it says
REMEMBERED = 2**20  # bytes of a file from which on its hash is kept
NO_MODEL_FILES = {"manifest.json", "trainer_state.json"}


def read_json(path: Path) -> dict:
    """The content of a JSON file.

    Raises:
        UserError: it is none.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not valid JSON ({error}); it is damaged or cut off, fetch it again") from error


def read_jsonl(path: Path) -> list[dict]:
    """The objects of a JSONL file; a last line that a killed process left half-written is not one.

    Raises:
        UserError: another line is none.
    """
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); make it anew with FRESH=1 (by hand: --fresh)") from error


def write_atomically(path: Path, text: str) -> None:
    """Write a file that is never seen half-written, whenever the process dies."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.{os.getpid()}.new")
    staging.write_text(text, encoding="utf-8")
    staging.replace(path)


def write_jsonl(path: Path, rows: list[dict]) -> None:
    write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def write_json(path: Path, content: dict) -> None:
    """Write values that JSON knows, and such as say themselves how they are written, with a method `json`."""
    text = json.dumps(content, indent=2, ensure_ascii=False, default=lambda value: value.json())
    write_atomically(path, f"{text}\n")


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A folder to write to that takes the place of `folder` when all is written, and not before."""
    staging = folder.with_name(folder.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    yield staging
    swap(staging, folder)


def swap(staging: Path, folder: Path) -> None:
    """Give `staging` the name of `folder`, which is taken away whole: half of it could pass for a result."""
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    staging.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from making the same result, which would ruin both. The lock ends with the process, too.

    Raises:
        UserError: another process has it, or it cannot be written.
    """
    path = folder.with_name(folder.name + ".lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}); set RUNS or output_dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            taken = os.fstat(file.fileno()).st_ino != path.stat().st_ino  # if whoever had it took it away meanwhile
        except OSError:
            taken = True
        if taken:
            raise UserError(f"another process makes {folder}; wait for its end or end it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints in a run folder, the oldest first."""
    return sorted(Path(folder).glob("checkpoint-*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_hash(folder: str | Path) -> str | None:
    """SHA-256 over a model folder's safetensors files; None for a model that is not a local folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    return _joined(bytes.fromhex(file_hash(path)) for path in files) if files else None


def files_hash(folder: Path) -> str:
    """SHA-256 over the names and contents of all files in a folder that are no JSON manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name not in NO_MODEL_FILES)
    return _joined(f"{path.relative_to(folder)} {file_hash(path)}\n".encode() for path in files)


def content_hash(path: Path, is_data: bool = False) -> str:
    """SHA-256 over what somebody else put into a file or folder: all data files, or of a model weights, config and
    tokenizer. Each is hashed once, and again when its size or time has changed."""
    if path.is_file():
        files = [path]
    elif not is_data:
        files = [file for file in path.iterdir() if file.suffix in MODEL_FILES and file.name not in NO_MODEL_FILES]
    else:
        names = glob.glob("**", root_dir=path, recursive=True)  # which skips what is hidden
        files = [path / name for name in names if DATA_FILE.search(name) and (path / name).is_file()]
    known = _KnownHashes()
    hashes = [f"{file.relative_to(path)} {known.of(file)}\n".encode() for file in sorted(files)]
    known.keep()
    return _joined(hashes)


class _KnownHashes:
    """Hashes of outside files, kept in the virtual environment by path, size and time, which only saves hashing."""

    def __init__(self) -> None:
        self.path = Path(sys.prefix) / "rlhf-trl" / "hashes.json"
        self.known, self.new = {}, {}
        with suppress(OSError, ValueError):
            self.known = json.loads(self.path.read_text())

    def of(self, file: Path) -> str:
        stat = file.stat()
        if stat.st_size < REMEMBERED:
            return file_hash(file)
        key = f"{file.resolve()} {stat.st_size} {stat.st_mtime_ns}"
        self.new[key] = self.known.get(key) or file_hash(file)
        return self.new[key]

    def keep(self) -> None:
        if self.new.keys() - self.known.keys():
            with suppress(OSError):  # where nothing can be left, each time takes long
                write_atomically(self.path, json.dumps(self.known | self.new))


def _joined(parts) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()
