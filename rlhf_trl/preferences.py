"""Preference rows from the files that people have: HH-RLHF's, and TRL's preference formats.

Whatever the format, a row becomes a dialogue in HH's text form with two replies, so that everything after this reads
one kind of row:

    dialogue = [SYSTEM MESSAGE] + "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant:"

or, where `prompt` is a text that is no such dialogue, that text, which is one message of the user for a chat model and
stands as it is for others (https://huggingface.co/docs/trl/dataset_formats; Bai et al. 2022, arXiv 2204.05862).
"""

import csv
import glob
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
from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from huggingface_hub import snapshot_download
from trl import maybe_convert_to_chatml

from rlhf_trl.config import COLUMNS, ROW, DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.files import file_hash
from rlhf_trl.frames import REPLY, TURN, messages
from rlhf_trl.hub import check_reachable

SUFFIX = re.compile(r"\.(?:(jsonl?|csv)(?:\.gz)?|parquet)$", re.IGNORECASE)
SUFFIXES = ".jsonl, .json, .csv, these with .gz, or .parquet"
METADATA = {"dataset_info", "dataset_infos", "dataset_dict", "state"}  # files that `datasets` writes beside data
PART = re.compile(r"(-\d{5}-of-\d{5}(-[0-9a-f]+)?|[-_]?\d+)$")  # what tells the files of one split apart
HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")  # names of a split to evaluate on, the best one first
FEATURES = Features({name: Value("string") for name in (*ROW, "subset", "file", "key", "dropped")})
OPTIONS = {"train": "split", "test": "test_split"}
SPEAKERS = {"system": "System", "user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
# A list of messages that is written as text
MESSAGES = re.compile(r"""\s*\[\s*\{(?=.*["'](role|from)["'])(?=.*["'](content|value)["']).*\}\s*\]\s*$""", re.DOTALL)
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
    try:
        contents = [(*file, file_hash(file.path)) for file in files]
        return Dataset.from_generator(
            _read_files,
            features=FEATURES,
            gen_kwargs={"files": tuple(files), "columns": tuple(config.columns or ())},
            fingerprint=Hasher.hash((file_hash(Path(__file__)), contents, config.columns)),
        )
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); check the file, or remove it") from error
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
                # one key for a text and the same text as the user's message
                dialogue = row["prompt"] if row["prompt"].endswith(REPLY) else f"\n\nHuman: {row['prompt']}{REPLY}"
                row["key"] = prompt_key(dialogue)
                sides = json.dumps([row["chosen"].strip(), row["rejected"].strip()])
                pair = row["key"] + hashlib.sha256(sides.encode()).hexdigest()
                if pair in seen:
                    raise _NoRow("pair repeated")
                seen.add(pair)
            except _NoRow as reason:
                row |= {"dropped": str(reason), "key": ""}
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, {place}: no preference pair: {NEITHER}") from error
            except ValueError as error:
                raise UserError(f"{path}, {place}: no preference pair: {error}") from error
            yield row
    if not row:
        names = ", ".join(str(file.path) for file in files)
        raise UserError(f"{names} holds no row; fetch it again, or name other data")


def find_files(config: DataConfig, split: str) -> list[DataFile]:
    """The files of `train`, or of `test`: none where the data have no such split.

    Raises:
        UserError: there is no data file, no split can be chosen, or two files are two forms of one.
    """
    files = all_files(config)
    chosen = dict(zip(("train", "test"), _choose(config, {file.split for file in files}), strict=True))[split]
    files = [file for file in files if file.split == chosen]
    forms = {}
    for _, _, path in files:
        other = forms.setdefault(SUFFIX.sub("", str(path)), path)
        if other is not path:
            raise UserError(f"{other} and {path.name} are two forms of one file; remove one of them")
    return files


def all_files(config: DataConfig) -> list[DataFile]:
    """The data files of the subsets that are asked for, hidden ones left out.

    A file's split is its name without the number of a part, or where that names none, the folder's that does.
    """
    root = Path(config.dataset)
    if root.is_file():
        if not SUFFIX.search(root.name):
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
        if SUFFIX.search(name) and SUFFIX.sub("", place.name) not in METADATA and not (root / place).is_dir():
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
    return [file.path for file in files if file.split not in chosen]


def _split_name(name: str) -> str:
    stem = SUFFIX.sub("", name).lower()
    return PART.sub("", stem) or stem


def _choose(config: DataConfig, names: set[str]) -> tuple[str | None, str | None]:
    """Which of the splits of that name are `train` and `test`; None for one that is not there."""
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
    return train, test


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """What a file holds, row by row, and where in it that stands."""
    kind = SUFFIX.search(path.name)[1]
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


def _select(record: Any, columns: dict[str, str]) -> dict[str, Any]:
    """The columns that make a row, of what stands in a file; None for one that is not there and may be missing."""
    if not isinstance(record, dict):
        raise ValueError("it is no object with the columns chosen and rejected")
    for name in COLUMNS:
        column = columns.get(name, name)
        if column not in record and (name in ("chosen", "rejected") or name in columns):
            raise ValueError(f"there is no {column} among its columns {', '.join(map(str, record))}; see columns")
    if record.get("tools"):
        raise _NoRow("it has tools")
    return maybe_convert_to_chatml({name: record.get(columns.get(name, name)) for name in COLUMNS})


def _row(prompt: Any, chosen: Any, rejected: Any, system: Any) -> dict[str, str]:
    """A row of any format in ours.

    Raises:
        _NoRow: it cannot be used.
        ValueError, TypeError, KeyError, AttributeError: it is no preference pair.
    """
    if chosen is None or rejected is None:
        raise _NoRow("a side is empty")
    if isinstance(chosen, list) and isinstance(rejected, list):
        (dialogue, chosen), (other, rejected) = (_split_messages(prompt, side) for side in (chosen, rejected))
    elif not (isinstance(chosen, str) and isinstance(rejected, str)):
        raise TypeError
    elif prompt is None or (prompt == "" and TURN.match(chosen)):
        (dialogue, chosen), (other, rejected) = (_split_text(side) for side in (chosen, rejected))
    else:
        dialogue = other = _read_prompt(prompt)
        if dialogue.endswith(REPLY):
            replies = [side.removeprefix(dialogue) for side in (chosen, rejected)]
            chosen, rejected = (reply if reply[:1].isspace() else f" {reply}" for reply in replies)
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
    if system and system.strip():
        if TURN.search(system):
            raise _NoRow("a message holds another turn")
        dialogue = system.strip() + (dialogue if TURN.match(dialogue) else f"\n\nHuman: {dialogue}{REPLY}")
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
        return _write(_turns(prompt))
    text = prompt.replace("\r\n", "\n").strip()
    if TURN.match(f"\n\n{text}"):
        text = f"\n\n{text}"
    speakers = TURN.findall(text)
    if not speakers:
        return prompt
    if text.endswith(REPLY):
        return text
    if not TURN.match(text):
        raise _NoRow("a message holds another turn")
    if speakers[-1] == "Assistant":
        raise _NoRow("the prompt ends with the assistant")
    return text + REPLY


def _split_messages(prompt: str | list | None, side: list) -> tuple[str, str]:
    """Dialogue and reply of a side that is a list of messages, with or without the prompt's own."""
    turns = _turns(side)
    if isinstance(prompt, str):
        asked = [text for speaker, text in turns if speaker == "Human"]
        if asked and prompt.strip() not in asked:
            raise _NoRow("prompts differ")
        prompt = [] if asked else messages(_read_prompt(prompt).removesuffix(REPLY))
    before = _turns(prompt or [])
    if turns[: len(before)] != before:
        if turns and turns[0][0] != "Assistant":
            raise _NoRow("prompts differ")
        turns = before + turns
    if not turns or turns[-1][0] != "Assistant":
        raise _NoRow("no reply of the assistant")
    return _write(turns[:-1]), f" {turns[-1][1]}"


def _write(turns: list[tuple[str, str]]) -> str:
    """The dialogue of turns before a reply."""
    has_system = bool(turns) and turns[0][0] == "System"
    system, turns = turns[0][1] if has_system else "", turns[has_system:]
    if any(speaker == "System" for speaker, _ in turns):
        raise _NoRow("a system message within the dialogue")
    if len(turns) > 1 and turns[-1][0] == "Assistant":
        raise _NoRow("the prompt ends with the assistant")
    if turns and not any(text for _, text in turns):
        raise _NoRow("a side is empty")
    if any(TURN.search(text) for text in (system, *(text for _, text in turns))):
        raise _NoRow("a message holds another turn")
    return system + "".join(f"\n\n{speaker}: {text}" for speaker, text in turns) + REPLY


def _turns(chat: list[dict]) -> list[tuple[str, str]]:
    """Speaker and text of each message, which may stand in parts."""
    turns = []
    for message in chat:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts) or message.get("tool_calls"):
            raise _NoRow("a message is no text")
        if message["role"] not in SPEAKERS:
            raise _NoRow(f"a message of role {message['role']!a}")
        turns.append((SPEAKERS[message["role"]], "".join(texts).strip()))
    return turns
