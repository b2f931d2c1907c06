"""Files of a data set: which are there, of which split each is, and the records that stand in them."""

import csv
import glob
import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow.parquet
from huggingface_hub import snapshot_download

from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import DATA_FILE
from rlhf_trl.hub import check_reachable

SUFFIXES = ".jsonl, .json, .csv, these with .gz, or .parquet"
METADATA = {"dataset_info", "dataset_infos", "dataset_dict", "state"}  # files that `datasets` writes beside data
PART = re.compile(r"(-\d{5}-of-\d{5}(-[0-9a-f]+)?|[-_]?\d+)$")  # what tells the files of one split apart
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")  # names of a split to evaluate on, the best one first
OPTIONS = {"train": "split", "test": "test_split"}
# A list of messages that is written as text
MESSAGES = re.compile(r"""\s*\[\s*\{(?=.*["'](role|from)["'])(?=.*["'](content|value)["']).*\}\s*\]\s*$""", re.DOTALL)
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which nothing can encode


class DataFile(NamedTuple):
    """A file of preference rows: its folder in the data set ("." at the top), the split that it holds, where it is."""

    subset: str
    split: str
    path: Path


def find_files(config: DataConfig, split: str) -> list[DataFile]:
    """The files of `train`, or of `test`: none where the data have no such split.

    Raises:
        UserError: there is no data file, no split can be chosen, or two files are two forms of one.
    """
    files = all_files(config)
    chosen = _choose(config, {file.split for file in files})[split]
    files = [file for file in files if file.split == chosen]
    forms = {}
    for _, _, path in files:
        other = forms.setdefault(DATA_FILE.sub("", str(path)), path)
        if other is not path:
            raise UserError(f"{other} and {path.name} are two forms of one file; remove one of them")
    return files


def all_files(config: DataConfig) -> list[DataFile]:
    """The data files of the subsets that are asked for, hidden ones left out.

    A file's split is its name without the number of a part, or where that names none, the folder's that does.
    """
    root = Path(config.dataset)
    if root.is_file():
        if not DATA_FILE.search(root.name):
            raise UserError(f"{root} is no data file; a name ends in {SUFFIXES}")
        return [DataFile(".", _split_name(root.name), root)]
    if not root.is_dir():
        check_reachable(config.dataset, "dataset", "DATA")
        patterns = [f"*.{kind}{zipped}" for kind in ("json", "jsonl", "csv", "parquet") for zipped in ("", ".gz")]
        try:
            root = Path(snapshot_download(config.dataset, repo_type="dataset", allow_patterns=patterns))
        except Exception as error:  # the hub client raises many unrelated types
            raise UserError(f"the download of {config.dataset} failed ({type(error).__name__}); try again") from error
    files = []
    for name in sorted(glob.glob("**", root_dir=root, recursive=True)):  # which skips what is hidden
        place = Path(name)
        if DATA_FILE.search(name) and DATA_FILE.sub("", place.name) not in METADATA and not (root / place).is_dir():
            if SURROGATE.search(name):
                raise UserError(f"{name!a} in {root} has a name that is not UTF-8; rename it")
            names = [_split_name(part) for part in (place.name, *(folder.name for folder in place.parents))]
            level = next((i for i, word in enumerate(names) if word.startswith(("train", *HELD_OUT))), 0)
            files.append(DataFile(place.parents[level].as_posix(), names[level], root / place))
    if not files:
        raise UserError(f"{config.dataset} holds no data file; a name ends in {SUFFIXES}")
    if missing := set(config.data_dir or ()) - (subsets := {file.subset for file in files}):
        raise UserError(f"{config.dataset} has no subset {min(missing)} but {', '.join(sorted(subsets))}; see data_dir")
    return [file for file in files if config.data_dir is None or file.subset in config.data_dir]


def unread_files(config: DataConfig) -> list[Path]:
    """The files that are of neither split."""
    files = all_files(config)
    chosen = _choose(config, {file.split for file in files})
    return [file.path for file in files if file.split not in chosen.values()]


def _split_name(name: str) -> str:
    stem = DATA_FILE.sub("", name).lower()
    return PART.sub("", stem) or stem


def _choose(config: DataConfig, names: set[str]) -> dict[str, str | None]:
    """Which of the splits of these names are `train` and `test`; None for one that is not there."""
    for option in OPTIONS.values():
        if (wanted := getattr(config, option)) not in (None, *names):
            raise UserError(f"{config.dataset} has no split {wanted}; it has {', '.join(sorted(names))}; see {option}")
    train, test = config.split, config.test_split
    if train is None:
        others = [name for name in names - {test} if not name.startswith(HELD_OUT)]
        candidates = {"train"} & names or {name for name in others if name.startswith("train")} or set(others)
        if len(candidates) > 1:
            raise UserError(
                f"{config.dataset} has the splits {', '.join(sorted(names))}; name the one to train on: split"
            )
        train = next(iter(candidates), None)
    if test is None:  # test_prefs beside train_prefs
        rest = train.removeprefix("train") if train else ""
        found = (name for word in HELD_OUT for name in (word + rest, word) if name in names - {train})
        test = next(found, None)
    if train == test:
        raise UserError(f"split and test_split are both {train}; name two, or leave test_split out")
    return {"train": train, "test": test}


def read_records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds, row by row, and where in it that stands."""
    kind = DATA_FILE.search(path.name)[1]
    try:
        if kind is None:
            batches = pyarrow.parquet.ParquetFile(path).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            return
        zipped = path.name.lower().endswith(".gz")
        with (gzip.open if zipped else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            yield from (_read_csv if kind.lower() == "csv" else _read_json)(file, path)
    except (EOFError, OSError, UnicodeDecodeError, zlib.error, pyarrow.ArrowException, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read ({error}); it is damaged, cut off or not in UTF-8: fetch it again, or convert it"
        ) from error


def _read_csv(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.DictReader(file, strict=True)
    for row in reader:
        place = f"line {reader.line_num}"
        if None in row or None in row.values():
            raise UserError(f"{path}, {place}: not as many fields as columns; quote texts")
        try:
            yield place, {name: json.loads(text) if MESSAGES.match(text) else text for name, text in row.items()}
        except ValueError as error:
            raise UserError(f"{path}, {place}: a list of messages is written as text that is not JSON") from error


def _read_json(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of JSON lines, or of one list."""
    number, line, first = 0, "", True
    try:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if first and line.lstrip().startswith("["):
                rows = json.loads(line + file.read())
                yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
                return
            first = False
            yield f"line {number}", json.loads(line)
    except UnicodeDecodeError:
        raise
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path}, line {number}: not JSON ({error}); every row is an object on one line, or all are one list"
        ) from error
