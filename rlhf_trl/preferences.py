"""Preference rows from the files that people have: HH-RLHF's, and TRL's preference formats.

Whatever the format, a row becomes a dialogue in HH's text form with two replies, so that everything after this reads
one kind of row:

    dialogue = [SYSTEM MESSAGE] + "\\n\\nHuman: ...\\n\\nAssistant: ...\\n\\nHuman: ...\\n\\nAssistant:"

or, where `prompt` is a text that is no such dialogue, that text, which is one message of the user for a chat model and
stands as it is for others (https://huggingface.co/docs/trl/dataset_formats; Bai et al. 2022, arXiv 2204.05862).
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value
from datasets.exceptions import DatasetGenerationError
from datasets.fingerprint import Hasher
from trl import maybe_convert_to_chatml

from rlhf_trl import data_files
from rlhf_trl.config import COLUMNS, ROW, DataConfig
from rlhf_trl.data_files import OPTIONS, SURROGATE, DataFile, find_files, read_records
from rlhf_trl.errors import UserError
from rlhf_trl.files import file_hash
from rlhf_trl.frames import REPLY, TURN, RowError, messages

FEATURES = Features({name: Value("string") for name in (*ROW, "subset", "file", "key", "dropped")})
SPEAKERS = {"system": "System", "user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant"}
NEITHER = "chosen and rejected (and prompt) are neither texts nor lists of messages {'role': ..., 'content': ...}"


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
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read ({error.strerror}); check the file, or remove it") from error
    code = [file_hash(Path(module)) for module in (__file__, data_files.__file__)]
    try:
        return Dataset.from_generator(
            _read_files,
            features=FEATURES,
            gen_kwargs={"files": tuple(files), "columns": tuple(config.columns or ())},
            fingerprint=Hasher.hash((code, contents, config.columns)),
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
        for place, record in read_records(path):
            row = dict.fromkeys(FEATURES, "") | {"subset": subset, "file": str(path)}
            try:
                row |= _row(**_select(record, named))
                # one key for a text and the same text as the user's message
                dialogue = row["prompt"] if row["prompt"].endswith(REPLY) else f"\n\nHuman: {row['prompt']}{REPLY}"
                row["key"] = prompt_key(dialogue)
                sides = json.dumps([row["chosen"].strip(), row["rejected"].strip()])
                pair = row["key"] + hashlib.sha256(sides.encode()).hexdigest()
                if pair in seen:
                    raise RowError("pair repeated")
                seen.add(pair)
            except RowError as reason:
                row |= {"dropped": str(reason), "key": ""}
            except (KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{path}, {place}: no preference pair: {NEITHER}") from error
            except ValueError as error:
                raise UserError(f"{path}, {place}: no preference pair: {error}") from error
            yield row
    if not row:
        names = ", ".join(str(file.path) for file in files)
        raise UserError(f"{names} holds no row; fetch it again, or name other data")


def _select(record: Any, columns: dict[str, str]) -> dict[str, Any]:
    """The columns that make a row, of what stands in a file; None for one that is not there and may be missing."""
    if not isinstance(record, dict):
        raise ValueError("it is no object with the columns chosen and rejected")
    for name in COLUMNS:
        column = columns.get(name, name)
        if column not in record and (name in ("chosen", "rejected") or name in columns):
            raise ValueError(f"there is no {column} among its columns {', '.join(map(str, record))}; see columns")
    if record.get("tools"):
        raise RowError("it has tools")
    return maybe_convert_to_chatml({name: record.get(columns.get(name, name)) for name in COLUMNS})


def _row(prompt: Any, chosen: Any, rejected: Any, system: Any) -> dict[str, str]:
    """A row of any format in ours.

    Raises:
        RowError: it cannot be used.
        ValueError, TypeError, KeyError, AttributeError: it is no preference pair.
    """
    if chosen is None or rejected is None:
        raise RowError("a side is empty")
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
        raise RowError("half a character")
    if (first := TURN.search(dialogue)) and first[1] == "Assistant":
        raise RowError("the assistant begins")
    if dialogue != other:
        raise RowError("prompts differ")
    if not (dialogue.strip() and chosen.strip() and rejected.strip()):
        raise RowError("a side is empty")
    if TURN.search(chosen) or TURN.search(rejected):
        raise RowError("a reply holds another turn")
    if chosen.strip() == rejected.strip():
        raise RowError("sides are equal")
    if system and system.strip():
        if TURN.search(system):
            raise RowError("a message holds another turn")
        if not dialogue.endswith(REPLY):
            dialogue = f"\n\nHuman: {dialogue.strip()}{REPLY}"
        if not TURN.match(dialogue) and not dialogue.startswith(f"{system.strip()}\n\nHuman:"):
            raise RowError("two system messages")
        dialogue = system.strip() + dialogue[TURN.search(dialogue).start() :]
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
        raise RowError("a message holds another turn")
    if speakers[-1] == "Assistant":
        raise RowError("the prompt ends with the assistant")
    return text + REPLY


def _split_messages(prompt: str | list | None, side: list) -> tuple[str, str]:
    """Dialogue and reply of a side that is a list of messages, with or without the prompt's own."""
    turns = _turns(side)
    if isinstance(prompt, str):
        asked = [text for speaker, text in turns if speaker == "Human"]
        if asked and prompt.strip() not in asked:
            raise RowError("prompts differ")
        prompt = [] if asked else messages(_read_prompt(prompt).removesuffix(REPLY))
    before = _turns(prompt or [])
    if turns[: len(before)] != before:
        if turns and turns[0][0] != "Assistant":
            raise RowError("prompts differ")
        turns = before + turns
    if not turns or turns[-1][0] != "Assistant":
        raise RowError("no reply of the assistant")
    return _write(turns[:-1]), f" {turns[-1][1]}"


def _write(turns: list[tuple[str, str]]) -> str:
    """The dialogue of turns before a reply."""
    has_system = bool(turns) and turns[0][0] == "System"
    system, turns = turns[0][1] if has_system else "", turns[has_system:]
    if any(speaker == "System" for speaker, _ in turns):
        raise RowError("a system message within the dialogue")
    if len(turns) > 1 and turns[-1][0] == "Assistant":
        raise RowError("the prompt ends with the assistant")
    if turns and not any(text for _, text in turns):
        raise RowError("a side is empty")
    if any(TURN.search(text) for text in (system, *(text for _, text in turns))):
        raise RowError("a message holds another turn")
    return system + "".join(f"\n\n{speaker}: {text}" for speaker, text in turns) + REPLY


def _turns(chat: list[dict]) -> list[tuple[str, str]]:
    """Speaker and text of each message, which may stand in parts."""
    turns = []
    for message in chat:
        content = message["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        texts = [part["text"] for part in parts if part["type"] == "text"]
        if len(texts) < len(parts) or not all(isinstance(text, str) for text in texts) or message.get("tool_calls"):
            raise RowError("a message is no text")
        if message["role"] not in SPEAKERS:
            raise RowError(f"a message of role {message['role']!a}")
        turns.append((SPEAKERS[message["role"]], "".join(texts).strip()))
    return turns
