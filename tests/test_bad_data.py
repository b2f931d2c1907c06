"""Preference data that cannot be used: rows are dropped and counted by reason, files refused in one line."""

import gzip
import json
import time

import pytest

from rlhf_trl.errors import UserError
from tests.conftest import settings
from tests.preference_rows import CHAT, FIVE, FORMS, FOUR, PLAIN, QUESTION, ROW, SYSTEM, read, turn, write


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"prompt": QUESTION, "chosen": FOUR, "rejected": [turn(" ")]}, "a side is empty"),
        (PLAIN | {"prompt": " "}, "a side is empty"),
        (PLAIN | {"rejected": "Four. "}, "sides are equal"),
        (PLAIN | {"chosen": "\ud83d"}, "half a character"),
        (PLAIN | {"chosen": "Four.\n\nHuman: Six?"}, "a reply holds another turn"),
        (PLAIN | {"prompt": "Read:\n\nHuman: Hi"}, "a message holds another turn"),
        (
            {"prompt": [turn("a\n\nAssistant: b", "user")], "chosen": FOUR, "rejected": FIVE},
            "a message holds another turn",
        ),
        ({"chosen": QUESTION + FOUR, "rejected": [turn("Two?", "user"), *FIVE]}, "prompts differ"),
        ({"prompt": "Two?", "chosen": QUESTION + FOUR, "rejected": QUESTION + FIVE}, "prompts differ"),
        ({"chosen": QUESTION + FOUR, "rejected": QUESTION}, "no reply of the assistant"),
        ({"chosen": FOUR, "rejected": FIVE}, "the assistant begins"),
        ({"chosen": "\n\nAssistant: Four.", "rejected": "\n\nAssistant: Five."}, "the assistant begins"),
        ({"prompt": [SYSTEM, *FIVE, *QUESTION], "chosen": FOUR, "rejected": FIVE}, "the assistant begins"),
        ({"prompt": [*QUESTION, turn("4", "tool")], "chosen": FOUR, "rejected": FIVE}, "a message of role 'tool'"),
        ({"prompt": [*QUESTION, SYSTEM], "chosen": FOUR, "rejected": FIVE}, "a system message within the dialogue"),
        ({"prompt": [turn([{"type": "image"}], "user")], "chosen": FOUR, "rejected": FIVE}, "a message is no text"),
        ({"prompt": QUESTION, "chosen": FOUR, "rejected": [turn(None)]}, "a message is no text"),
        (
            {"prompt": QUESTION, "chosen": [{**turn("Four."), "tool_calls": [1]}], "rejected": FIVE},
            "a message is no text",
        ),
        (PLAIN | {"tools": [{"type": "function"}]}, "it has tools"),
        (PLAIN | {"chosen": None}, "a side is empty"),
        ({"prompt": [turn("", "user")], "chosen": FOUR, "rejected": FIVE}, "a side is empty"),
        (
            {"prompt": [*QUESTION, turn("Well,")], "chosen": FOUR, "rejected": FIVE},
            "the prompt ends with the assistant",
        ),
        (PLAIN | {"prompt": "Human: One?\n\nAssistant: Well,"}, "the prompt ends with the assistant"),
        ({"prompt": QUESTION, "chosen": [turn("Two?", "user"), *FOUR], "rejected": CHAT + FIVE}, "prompts differ"),
        (PLAIN | {"system": "a\n\nHuman: b"}, "a message holds another turn"),
        ({"system": "Be brief.", "prompt": [SYSTEM, *QUESTION], "chosen": "4", "rejected": "5"}, "two system messages"),
        (ROW, "pair repeated"),
        (FORMS["messages"], "pair repeated"),
    ],
)
def test_what_cannot_be_used_is_counted(record, reason, tmp_path):
    rows, dropped = read(write(tmp_path / "prefs.jsonl", ROW, record))
    assert rows == [ROW]
    assert dropped == {reason: 1}


BAD = {
    "no folder": (None, {"dataset": "/nowhere/at-all"}, "does not exist"),
    "empty folder": (lambda folder: folder.mkdir(), {}, "holds no data file"),
    "no data file": (lambda folder: write(folder / "train.txt", ROW), {"file": "train.txt"}, "is no data file"),
    "no train split": (lambda folder: write(folder / "test.jsonl", ROW), {}, "holds no train split"),
    "no such split": (
        lambda folder: write(folder / "train.jsonl", ROW),
        {"split": "trian"},
        "no split trian; it has train",
    ),
    "no such test split": (
        lambda f: write(f / "train.jsonl", ROW),
        {"test_split": "tset"},
        "no split tset; it has train",
    ),
    "several splits": (
        lambda f: [write(f / f"{name}.parquet", ROW) for name in ("train_prefs", "train_sft")],
        {},
        "the splits train_prefs, train_sft; name the one to train on: split",
    ),
    "no such subset": (lambda f: write(f / "a/train.jsonl", ROW), {"data_dir": ["b"]}, "no subset b but a"),
    "two forms": (
        lambda f: [write(f / f"train.{suffix}", ROW) for suffix in ("jsonl", "csv")],
        {},
        "train.csv and train.jsonl are two forms of one file",
    ),
    "one of them gzipped": (
        lambda f: [write(f / "train.jsonl", ROW), (f / "train.jsonl.gz").write_bytes(gzip.compress(b""))],
        {},
        "two forms of one file",
    ),
    "empty file": (lambda folder: write(folder / "train.jsonl"), {}, "holds no row"),
    "nothing usable": (lambda f: write(f / "train.jsonl", ROW | {"chosen": ""}), {}, "1 a side is empty"),
    "no JSON": (lambda f: write(f / "train.jsonl", ROW).write_text("{'a'"), {}, "train.jsonl, line 1: not JSON"),
    "cut off": (
        lambda f: write(f / "train.jsonl", ROW).write_text(json.dumps(ROW) + "\n" + json.dumps(ROW)[:-9]),
        {},
        "train.jsonl, line 2: not JSON",
    ),
    "list cut off": (lambda f: write(f / "train.json", ROW).write_text("[{}, "), {}, "train.json, line 1: not JSON"),
    "a number without end": (
        lambda f: write(f / "train.jsonl", ROW).write_text('{"a": ' + "1" * 5000 + "}"),
        {},
        "train.jsonl, line 1: not JSON",
    ),
    "nested without end": (
        lambda f: write(f / "train.jsonl", ROW).write_text("[" * 100_000),
        {},
        "train.jsonl, line 1: not JSON",
    ),
    "one split for two": (
        lambda f: write(f / "a.jsonl", ROW),
        {"split": "a", "test_split": "a"},
        "split and test_split are both a",
    ),
    "column named twice": (None, {"columns": ["chosen=a", "chosen=b"]}, "columns: chosen is named twice"),
    "no object": (lambda f: write(f / "train.jsonl", ROW, [1]), {}, "line 2: no preference pair: it is no object"),
    "other columns": (lambda f: write(f / "train.csv", {"a": "1"}), {}, "line 2: .* no chosen among its columns a"),
    "no such column": (
        lambda f: write(f / "train.csv", ROW),
        {"columns": ["chosen=best"]},
        "no best among its columns",
    ),
    "columns of nothing": (None, {"columns": ["better=best"]}, "columns: better=best names no column"),
    "column without a name": (None, {"columns": ["chosen"]}, "columns: chosen names no column"),
    "semicolons": (
        lambda f: write(f / "train.csv", ROW).write_text("prompt;chosen;rejected\na;b;c\n"),
        {},
        "no chosen among its columns prompt;chosen;rejected",
    ),
    "unquoted comma": (
        lambda f: write(f / "train.csv", ROW).write_text("prompt,chosen,rejected\na,b,c,d\n"),
        {},
        "line 2: not as many fields as columns",
    ),
    "quote left open": (
        lambda f: write(f / "train.csv", ROW).write_text('prompt,chosen,rejected\na,b,"c\n'),
        {},
        "train.csv cannot be read",
    ),
    "numbers": (lambda f: write(f / "train.jsonl", ROW | {"chosen": 1}), {}, "neither texts nor lists of messages"),
    "texts of no dialogue": (
        lambda f: write(f / "train.jsonl", {"chosen": "Hi", "rejected": "Ho"}),
        {},
        "without a prompt, both sides are dialogues",
    ),
    "a text and messages": (lambda f: write(f / "train.jsonl", ROW | {"chosen": FOUR}), {}, "neither texts nor lists"),
    "messages without roles": (
        lambda f: write(f / "train.jsonl", {"chosen": [{"content": "a"}], "rejected": FIVE}),
        {},
        "neither texts nor lists of messages",
    ),
    "lists of texts": (
        lambda f: write(f / "train.jsonl", {"chosen": ["a"], "rejected": ["b"]}),
        {},
        "neither texts nor",
    ),
    "messages as Python writes them": (
        lambda f: write(f / "train.csv", {side: str(QUESTION + FOUR) for side in ("chosen", "rejected")}),
        {},
        "line 2: a list of messages is written as text that is not JSON",
    ),
    "not UTF-8": (lambda f: write(f / "train.jsonl", ROW).write_bytes(b"\xff\xfe{"), {}, "train.jsonl cannot be read"),
    "gzip cut off": (
        lambda f: write(f / "train.jsonl.gz", ROW).write_bytes(gzip.compress(json.dumps(ROW).encode())[:-9]),
        {},
        "train.jsonl.gz cannot be read .* fetch it again",
    ),
    "gzip damaged": (
        lambda f: write(f / "train.jsonl.gz", ROW).write_bytes(gzip.compress(b"{}")[:10] + b"\xff" * 20),
        {},
        "train.jsonl.gz cannot be read .* fetch it again",
    ),
    "no gzip": (lambda f: write(f / "train.jsonl.gz", ROW), {}, "train.jsonl.gz cannot be read"),
    "no parquet": (lambda f: write(f / "train.jsonl", ROW).rename(f / "train.parquet"), {}, "parquet cannot be read"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data(case, run, world, tmp_path):
    prepare, changes, message = BAD[case]
    if prepare:
        prepare(tmp_path / "data")
    changes = dict(changes)
    dataset = changes.pop("dataset", str(tmp_path / "data" / changes.pop("file", "")))
    config = settings(tmp_path, "sft", world, base="gpt2", **{"dataset": dataset, **changes})
    before, begun = sorted(tmp_path.rglob("*")), time.monotonic()
    code, _, error = run("sft", "--config", config)
    assert (code, sorted(tmp_path.rglob("*"))) == (2, before)
    assert time.monotonic() - begun < 20
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    assert error.rstrip().endswith(line)
    assert "Traceback" not in error
    with pytest.raises(UserError, match=message):
        raise UserError(line)
