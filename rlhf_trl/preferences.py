"""Preference rows from the files that people have: HH-RLHF's, and TRL's preference formats.

Whatever the format, a row becomes a dialogue in HH's text form with two replies, so that everything after this reads
one kind of row:

    dialogue = [SYSTEM MESSAGE] + "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant:"

or, where `prompt` is a text that is no such dialogue, that text, which is one message of the user for a chat model and
stands as it is for others (https://huggingface.co/docs/trl/dataset_formats; Bai et al. 2022, arXiv 2204.05862).
"""

import csv
import gzip
import hashlib
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import pyarrow.parquet
from datasets import Dataset, Features, NamedSplit, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from huggingface_hub import snapshot_download
from trl import maybe_convert_to_chatml

from rlhf_trl.config import COLUMNS, DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import file_hash
from rlhf_trl.frames import REPLY, TURN, messages
from rlhf_trl.hub import check_reachable

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz", ".json.gz", ".csv.gz")
SHARD = re.compile(r"-\d{5}-of-\d{5}$")
FEATURES = Features({name: Value("string") for name in (*COLUMNS, "subset", "file", "key", "dropped")})
OPTIONS = {"train": "split", "test": "test_split"}
HELD_OUT = ("test", "validation")  # what the split to evaluate on is called, the first one that is there
SPEAKERS = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
MESSAGES = re.compile(r"""\s*\[\s*\{.*["'](role|from)["']""", re.DOTALL)  # how a list of them begins as text
SURROGATE = re.compile("[\ud800-\udfff]")  # half of a character, which nothing can encode


NEITHER = "chosen and rejected (and prompt) are neither texts nor lists of messages {'role': ..., 'content': ...}"


class DataFile(NamedTuple):
    """A file of preference rows: its folder in the data set ("." at the top), the split that it holds, where it is."""

    subset: str
    split: str
    path: Path


class _NoRow(ValueError):
    """Why a row is left out; the message is the reason that it is counted by."""


def load_pairs(config: DataConfig, split: str) -> Dataset:
    """Every row of `train` or `test`, as the cache of `datasets` keeps it.

    Columns: `prompt` (a dialogue), `chosen`, `rejected` (replies as written; after a dialogue they begin with a space),
    `subset`, `file`, `key` (see `prompt_key`) and `dropped`, the reason why the row cannot be used, or "".

    Raises:
        UserError: the data cannot be found, reached or told apart, or a file is no preference data (names file and
            line).
    """
    files = find_files(config, split)
    if not files:
        raise UserError(f"{config.dataset} holds no {split} split; name one: {OPTIONS[split]}")
    contents = [(*file, file_hash(file.path)) for file in files]
    try:
        return Dataset.from_generator(
            _read_files,
            features=FEATURES,
            gen_kwargs={"files": tuple(files), "columns": tuple(config.columns or ())},
            split=NamedSplit(split),
            fingerprint=Hasher.hash((file_hash(Path(__file__)), contents, config.columns)),
        )
    except DatasetGenerationError as error:
        raise error.__cause__ from None


def prompt_key(prompt: str) -> str:
    """What makes two prompts the same: the SHA-256 of the text with whitespace folded."""
    return hashlib.sha256(" ".join(prompt.split()).encode()).hexdigest()


def _read_files(files: tuple[DataFile, ...], columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    seen, row = set(), {}
    named = dict(entry.split("=", 1) for entry in columns)
    for subset, _, path in files:
        for place, record in _records(path):
            row = dict.fromkeys(FEATURES, "") | {"subset": subset, "file": str(path)}
            try:
                row |= _row(**_select(record, named))
                pair = hashlib.sha256(json.dumps([row[name] for name in COLUMNS]).encode()).digest()
                if pair in seen:
                    raise _NoRow("pair repeated")
                seen.add(pair)
                row["key"] = prompt_key(row["prompt"])
            except _NoRow as reason:
                row["dropped"] = str(reason)
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, {place}: no preference pair: {NEITHER}") from error
            except ValueError as error:
                raise UserError(f"{path}, {place}: no preference pair: {error}") from error
            yield row
    if not row:
        raise UserError(
            f"{', '.join(str(file.path) for file in files)} holds no row; fetch it again, or name other data"
        )


def find_files(config: DataConfig, split: str) -> list[DataFile]:
    """The files of `train`, or of `test`: none where the data have no test split.

    Raises:
        UserError: there is no train split, or none can be chosen, or two files are two forms of one.
    """
    files = _all_files(config)
    if missing := set(config.data_dir or ()) - (subsets := {file.subset for file in files}):
        raise UserError(f"{config.dataset} has no subset {min(missing)} but {', '.join(sorted(subsets))}; see data_dir")
    files = [file for file in files if config.data_dir is None or file.subset in config.data_dir]
    names = sorted({file.split for file in files})
    chosen = dict(zip(("train", "test"), _choose(config, names), strict=True))[split]
    files = [file for file in files if file.split == chosen]
    forms = {}
    for _, _, path in files:
        other = forms.setdefault(path.with_name(_stem(path)), path)
        if other is not path:
            raise UserError(f"{other} and {path.name} are two forms of one file; remove one of them")
    return files


def _choose(config: DataConfig, names: list[str]) -> tuple[str | None, str | None]:
    """Which of the splits of that name are `train` and `test`; None for one that is not there."""
    for option in ("split", "test_split"):
        if (wanted := getattr(config, option)) not in (None, *names):
            raise UserError(
                f"{config.dataset} has no split {wanted}; it has {', '.join(names) or 'none'}; see {option}"
            )
    others = [name for name in names if not name.startswith(HELD_OUT)]
    trains = ["train"] if "train" in names else [name for name in others if name.startswith("train")] or others
    if config.split is None and len(trains) > 1:
        raise UserError(f"{config.dataset} has the splits {', '.join(names)}; name the one to train on: split")
    train = config.split or next(iter(trains), None)
    counterparts = [held for word in HELD_OUT for held in ((train or "").replace("train", word), word)]
    test = config.test_split or next((name for name in counterparts if name in names and name != train), None)
    return train, test


def _all_files(config: DataConfig) -> list[DataFile]:
    root = Path(config.dataset)
    if root.is_file():
        if not root.name.endswith(SUFFIXES):
            raise UserError(f"{root} is no data file; a name ends in {', '.join(SUFFIXES)}")
        return [DataFile(".", _stem(root), root)]
    if not root.is_dir():
        check_reachable(config.dataset, "dataset", "DATA")
        patterns = [f"*{suffix}" for suffix in SUFFIXES]
        try:
            root = Path(snapshot_download(config.dataset, repo_type="dataset", allow_patterns=patterns))
        except Exception as error:  # the hub client raises many unrelated types
            raise UserError(f"the download of {config.dataset} failed ({type(error).__name__}); try again") from error
    files = []
    for path in sorted(root.rglob("*")):
        place = path.relative_to(root)
        if path.name.endswith(SUFFIXES) and path.is_file() and not any(part.startswith(".") for part in place.parts):
            folder, name = place.parent, SHARD.sub("", _stem(path))
            if name.isdigit():  # as the hub's own copies are named: train/0000.parquet
                folder, name = folder.parent, folder.name
            files.append(DataFile(folder.as_posix(), name, path))
    if not files:
        raise UserError(f"{config.dataset} holds no data file; a name ends in {', '.join(SUFFIXES)}")
    return files


def _stem(path: Path) -> str:
    return path.name.removesuffix(next(suffix for suffix in reversed(SUFFIXES) if path.name.endswith(suffix)))


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds, row by row, and where in it that stands."""
    try:
        if path.suffix == ".parquet":
            batches = pyarrow.parquet.ParquetFile(path).iter_batches()
            rows = (row for batch in batches for row in batch.to_pylist())
            yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            return
        with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as file:
            if ".csv" in path.suffixes:
                csv.field_size_limit(sys.maxsize)
                reader = csv.DictReader(file, strict=True)
                for row in reader:
                    if None in row or None in row.values():
                        raise UserError(f"{path}, line {reader.line_num}: not as many fields as columns; quote texts")
                    yield f"line {reader.line_num}", row
            else:
                yield from _read_json(file, path)
    except (EOFError, OSError, UnicodeDecodeError, zlib.error, pyarrow.ArrowException, csv.Error) as error:
        raise UserError(f"{path} cannot be read ({error}); it is damaged or cut off, fetch it again") from error


def _read_json(file: TextIO, path: Path) -> Iterator[tuple[str, Any]]:
    """Rows of JSON lines, or of one list."""
    number, line = 0, ""
    try:
        for number, line in enumerate(file, 1):
            if number == 1 and line.lstrip().startswith("["):
                rows = json.loads(line + file.read())
                yield from ((f"row {number}", row) for number, row in enumerate(rows, 1))
            elif line.strip():
                yield f"line {number}", json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}, line {number}: not JSON ({error}); mend the line, or fetch the file again") from error


def _select(record: Any, columns: dict[str, str]) -> dict[str, Any]:
    """The columns `prompt` (None if there is none), `chosen` and `rejected` of what stands in a file."""
    if not isinstance(record, dict):
        raise ValueError("it is no object with the columns chosen and rejected")
    for name in COLUMNS:
        column = columns.get(name, name)
        if column not in record and (name != "prompt" or name in columns):
            raise ValueError(f"there is no {column} among its columns {', '.join(map(str, record))}; see columns")
    return maybe_convert_to_chatml({name: _unpack(record.get(columns.get(name, name))) for name in COLUMNS})


def _unpack(value: Any) -> Any:
    """A list of messages that a CSV holds as text, as the list."""
    if not (isinstance(value, str) and MESSAGES.match(value)):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("a list of messages is written as text that is not JSON") from error


def _row(prompt: Any, chosen: Any, rejected: Any) -> dict[str, str]:
    """A row of any format in ours.

    Raises:
        _NoRow: it cannot be used.
        ValueError, TypeError, KeyError, AttributeError: it is no preference pair.
    """
    if isinstance(chosen, list) and isinstance(rejected, list):
        (dialogue, chosen), (other, rejected) = (_split_messages(prompt, side) for side in (chosen, rejected))
    elif not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise TypeError
    elif prompt is None:
        (dialogue, chosen), (other, rejected) = (_split_text(side) for side in (chosen, rejected))
    else:
        dialogue = other = _read_prompt(prompt)
        if dialogue.endswith(REPLY):
            chosen, rejected = (side if side[:1].isspace() else f" {side}" for side in (chosen, rejected))
    if SURROGATE.search(dialogue + chosen + rejected):
        raise _NoRow("half a character")
    if (first := TURN.search(dialogue)) and first[1] == "Assistant":
        raise _NoRow("the assistant begins")
    if dialogue != other:
        raise _NoRow("prompts differ")
    if not (dialogue.strip() and chosen.strip() and rejected.strip()):
        raise _NoRow("a side is empty")
    if TURN.search(chosen) or TURN.search(rejected):
        raise _NoRow("a reply holds another turn")
    if chosen.strip() == rejected.strip():
        raise _NoRow("sides are equal")
    return {"prompt": dialogue, "chosen": chosen, "rejected": rejected}


def _split_text(text: str) -> tuple[str, str]:
    """Dialogue and reply of a whole dialogue as HH writes it."""
    dialogue, found, reply = text.rpartition(REPLY)
    if not found or not TURN.match(text):
        raise ValueError("without a prompt, both sides are dialogues '\\n\\nHuman: ...\\n\\nAssistant: ...'")
    return dialogue + REPLY, reply


def _read_prompt(prompt: str | list) -> str:
    """The dialogue of a prompt that stands in a column of its own."""
    if isinstance(prompt, list):
        return _write(prompt)
    text = f"\n\n{prompt.strip()}"
    if TURN.match(text):
        return text if text.endswith(REPLY) else text + REPLY
    if TURN.search(prompt):
        raise _NoRow("a message holds another turn")
    return prompt


def _split_messages(prompt: str | list | None, side: list) -> tuple[str, str]:
    """Dialogue and reply of a side that is a list of messages, with or without the prompt's own."""
    if isinstance(prompt, str):
        texts = [_content(message).strip() for message in side if SPEAKERS.get(message["role"]) == "Human"]
        if texts and prompt.strip() not in texts:
            raise _NoRow("prompts differ")
        prompt = None if texts else messages(_read_prompt(prompt).removesuffix(REPLY))
    if prompt and side[: len(prompt)] != prompt:
        side = prompt + side
    if not side or SPEAKERS.get(side[-1]["role"]) != "Assistant":
        raise _NoRow("no reply of the assistant")
    return _write(side[:-1]), f" {_content(side[-1]).strip()}"


def _write(chat: list[dict]) -> str:
    """A list of messages as a dialogue."""
    system = ""
    if chat and chat[0]["role"] == "system":
        system, chat = _content(chat[0]).strip(), chat[1:]
    contents = [_content(message).strip() for message in chat]
    if any(map(TURN.search, (system, *contents))):
        raise _NoRow("a message holds another turn")
    if unknown := [message["role"] for message in chat if message["role"] not in SPEAKERS]:
        raise _NoRow(f"a message of role {unknown[0]}")
    turns = [f"\n\n{SPEAKERS[message['role']]}: {content}" for message, content in zip(chat, contents, strict=True)]
    return system + "".join(turns) + REPLY


def _content(message: dict) -> str:
    """The text of a message, which may stand in parts."""
    content = message["content"]
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    texts = [part["text"] for part in parts if part["type"] == "text"]
    if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts):
        raise _NoRow("a message is no text")
    return "".join(texts)
