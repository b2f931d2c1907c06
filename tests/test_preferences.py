"""Preference data in the forms that people have it: what is read, what is dropped, what is refused."""

import csv
import gzip
import json
import time
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlhf_trl.config import DataConfig
from rlhf_trl.errors import UserError
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import messages
from rlhf_trl.preferences import load_pairs
from rlhf_trl.sources import find_files
from rlhf_trl.splits import load_split
from rlhf_trl.tokens import build_dataset
from tests.conftest import settings, usable_pairs

DIALOGUE = "\n\nHuman: One?\n\nAssistant: Two.\n\nHuman: Three?\n\nAssistant:"
ROW = {"prompt": DIALOGUE, "chosen": " Four.", "rejected": " Five."}
SYSTEM = {"role": "system", "content": "Be kind."}
QUESTION, PLAIN = [{"role": "user", "content": "One?"}], {"prompt": "One?", "chosen": "Four.", "rejected": "Five."}


def turn(text, role="assistant"):
    return {"role": role, "content": text}


CHAT = messages(DIALOGUE.removesuffix("\n\nAssistant:"))
FOUR, FIVE = [turn("Four.")], [turn("Five.")]
# One and the same row
FORMS = {
    "dialogues": {"chosen": DIALOGUE + " Four.", "rejected": DIALOGUE + " Five."},
    "texts": ROW,
    "texts without spaces around": {"prompt": DIALOGUE.strip(), "chosen": "Four.", "rejected": "Five."},
    "messages": {"prompt": CHAT, "chosen": FOUR, "rejected": FIVE},
    "messages, implicit prompt": {"chosen": CHAT + FOUR, "rejected": CHAT + FIVE},
    "messages that repeat the prompt": {"prompt": CHAT, "chosen": CHAT + FOUR, "rejected": CHAT + FIVE},
    "messages that repeat a text": {"prompt": "One?", "chosen": CHAT + FOUR, "rejected": CHAT + FIVE},
    "messages that repeat the prompt otherwise": {
        "prompt": [{**m, "content": f" {m['content']}"} for m in CHAT],
        "chosen": [{**m, "name": None} for m in CHAT] + FOUR,
        "rejected": [{**m, "name": None} for m in CHAT] + FIVE,
    },
    "dialogues that repeat the prompt": {
        "prompt": DIALOGUE,
        "chosen": DIALOGUE + " Four.",
        "rejected": DIALOGUE + " Five.",
    },
    "empty prompt": {"prompt": "", "chosen": DIALOGUE + " Four.", "rejected": DIALOGUE + " Five."},
    "lines of Windows": {"prompt": DIALOGUE.replace("\n", "\r\n"), "chosen": "Four.", "rejected": "Five."},
    "no system": {"system": "", "prompt": DIALOGUE, "chosen": "Four.", "rejected": "Five."},
    "prompt as messages": {"prompt": CHAT, "chosen": "Four.", "rejected": "Five."},
    "dialogue and messages": {"prompt": DIALOGUE, "chosen": FOUR, "rejected": FIVE},
    "ShareGPT": {
        name: [{"from": {"user": "human", "assistant": "gpt"}[m["role"]], "value": m["content"]} for m in CHAT + reply]
        for name, reply in (("chosen", FOUR), ("rejected", FIVE))
    },
    "parts": {
        "prompt": [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in CHAT],
        "chosen": FOUR,
        "rejected": FIVE,
    },
}


def write(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(records)), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            texts = [{k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()} for record in records]
            writer.writerows(texts)
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read(path, split="train", **options):
    pairs = load_pairs(DataConfig(str(path), **options), split)
    rows = [{name: row[name] for name in ROW} for row in pairs if not row["dropped"]]
    return rows, Counter(filter(None, pairs["dropped"][:]))


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("form", FORMS)
def test_one_row_in_every_form(form, suffix, tmp_path):
    other = json.loads(json.dumps(FORMS[form]).replace("Three", "Six"))
    rows, dropped = read(write(tmp_path / f"prefs.{suffix}", FORMS[form], other))
    assert rows == [ROW, ROW | {"prompt": DIALOGUE.replace("Three", "Six")}]
    assert not dropped


@pytest.mark.parametrize("form", ["messages", "texts", "messages, implicit prompt"])
def test_hh_read_as_trl_rows_gives_the_rows_of_hh(form, world, tmp_path):
    hh = usable_pairs(world / "data", "train")
    records = []
    for row in hh:
        chat = messages(row["prompt"].removesuffix("\n\nAssistant:"))
        sides = {side: [turn(row[side])] for side in ("chosen", "rejected")}
        records.append(
            {
                "messages": {"prompt": chat, **sides},
                "texts": {name: row[name] for name in ROW},
                "messages, implicit prompt": {side: chat + reply for side, reply in sides.items()},
            }[form]
        )
    write(tmp_path / "data" / "train.jsonl", *records)
    columns = ["prompt", "chosen", "rejected", "prompt_ids", "chosen_ids", "rejected_ids"]
    for model in ("model", "gpt2"):
        frame = load_frame(str(world / model))
        ours, theirs = (
            build_dataset(DataConfig(str(folder), splits=ALL), "sft", frame, 0).select_columns(columns).to_list()
            for folder in (tmp_path / "data", hh_alone(world, tmp_path))
        )
        assert ours == theirs


ALL = {"sft": 0.97, "reward": 0.01, "policy": 0.01, "validation": 0.01}


def hh_alone(world, tmp_path):
    """The train files of the small world, without a test split."""
    for path in (world / "data").rglob("train.jsonl.gz"):
        target = tmp_path / "hh" / path.relative_to(world / "data")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return tmp_path / "hh"


def test_a_chat_model_reads_what_its_template_writes(world, tmp_path):
    """A text that is no dialogue is one message of the user, and stands as it is for a model without a template."""
    records = [
        PLAIN,
        {"prompt": "I think", "chosen": "I thought.", "rejected": "I thank."},
        {"prompt": [SYSTEM, *QUESTION], "chosen": FOUR, "rejected": FIVE},
    ]
    texts, chat = (
        [write(tmp_path / f"{i}.jsonl", record) for i, record in enumerate(records)],
        load_frame(str(world / "gpt2")),
    )
    seen = [chat.rows(read(path)[0])[0] for path in texts]
    assert [(row["prompt"], row["chosen"]) for row in seen] == [
        ("<user>One?<assistant>", "Four."),
        ("<user>I think<assistant>", "I thought."),
        ("<system>Be kind.<user>One?<assistant>", "Four."),
    ]
    for row in seen:
        assert row["prompt_ids"] == chat.tokenizer(row["prompt"], add_special_tokens=False)["input_ids"]
        assert chat.tokenizer.decode(row["chosen_ids"]) == row["chosen"] + chat.tokenizer.eos_token
    plain = load_frame(str(world / "model"))
    assert [plain.rows(read(path)[0])[0]["prompt"] for path in texts] == [
        "One?",
        "I think",
        "Be kind.\n\nHuman: One?\n\nAssistant:",
    ]


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


def test_a_system_message_is_read_wherever_it_stands(tmp_path):
    asked = "Be kind.\n\nHuman: One?\n\nAssistant:"
    records = [
        {"prompt": [SYSTEM, *QUESTION], "chosen": FOUR, "rejected": FIVE},
        {"system": "Be kind.", "prompt": QUESTION, "chosen": "Four.", "rejected": "Six."},
        {"system": "Be kind.", "prompt": "\n\nHuman: One?\n\nAssistant:", "chosen": "Four.", "rejected": "Seven."},
        {"prompt": asked, "chosen": "Four.", "rejected": "Eight."},
        {"system": "Be kind.", "prompt": [SYSTEM, *QUESTION], "chosen": "Four.", "rejected": "Nine."},
    ]
    rows, _ = read(write(tmp_path / "prefs.jsonl", *records))
    assert [row["prompt"] for row in rows] == [asked] * 5
    assert messages(asked.removesuffix("\n\nAssistant:")) == [SYSTEM, *QUESTION]
    records = [PLAIN | {"q": "Be brief."}, PLAIN]
    rows, _ = read(
        write(tmp_path / "named.csv", *(PLAIN | {"q": text} for text in ("Be brief.", ""))), columns=["system=q"]
    )
    assert [row["prompt"] for row in rows] == ["Be brief.\n\nHuman: One?\n\nAssistant:", "One?"]


def test_one_question_has_one_place_in_every_form(tmp_path):
    """Whether it is a text in one file and a message in another: no prompt of the one is tested on in the other."""
    write(tmp_path / "train.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(9)))
    chats = [{"prompt": [turn(f"{i}?", "user")], "chosen": FOUR, "rejected": FIVE} for i in range(10)]
    write(tmp_path / "test.jsonl", *chats)
    rows, dropped, _ = load_split(DataConfig(str(tmp_path)), "eval")
    assert rows["prompt"][:] == ["\n\nHuman: 9?\n\nAssistant:"]
    assert dropped["prompt also in the train split"] == 9


def test_a_file_may_be_of_one_split_and_then_of_another(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / f"{name}.jsonl", PLAIN | {"prompt": name})
    for options in ({"split": "test", "test_split": "train"}, {}, {"split": "test", "test_split": "train"}):
        config = DataConfig(str(tmp_path), **options)
        assert load_pairs(config, "train")["prompt"][:] == [options.get("split", "train")]
        assert load_pairs(config, "test")["prompt"][:] == [options.get("test_split", "test")]


def test_json_in_a_text_is_text(tmp_path):
    record = {"prompt": '[{"role": "admin", "n": 1}] explain this', "chosen": "{}", "rejected": '[{"role": "a"}]'}
    for name in ("a.jsonl", "b.csv"):
        assert read(write(tmp_path / name, record))[0] == [record]


def test_byte_order_mark_and_blank_lines_are_read(tmp_path):
    line = json.dumps(ROW)
    for name, text in (("a.jsonl", f"\ufeff\n{line}\n\n \n"), ("b.json", f"\ufeff [{line}]"), ("c.json", line)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read(tmp_path / name)[0] == [ROW]
    (tmp_path / "d.csv").write_text('\ufeffprompt,chosen,rejected\r\n\r\nOne?,"N/A",4\r\n', encoding="utf-8")
    assert read(tmp_path / "d.csv")[0] == [{"prompt": "One?", "chosen": "N/A", "rejected": "4"}]
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress((tmp_path / "d.csv").read_bytes()))
    assert read(tmp_path / "e.csv.gz") == read(tmp_path / "d.csv")


def test_columns_are_named(tmp_path):
    names = {"prompt": "question", "chosen": "better", "rejected": "worse"}
    path = write(tmp_path / "prefs.csv", {names[name]: text for name, text in PLAIN.items()} | {"chosen": "no"})
    assert read(path, columns=[f"{name}={column}" for name, column in names.items()])[0] == [PLAIN]


@pytest.mark.parametrize(
    ("names", "options", "train", "test"),
    [
        ("a/train.jsonl.gz a/test.jsonl.gz a/notes.jsonl a/b.txt", {}, "a/train.jsonl.gz", "a/test.jsonl.gz"),
        ("d/train-00000-of-00002.parquet d/train-00001-of-00002.parquet", {}, "d/train-00000 d/train-00001", ""),
        ("train_prefs-00000-of-00001.parquet test_prefs-00000-of-00001.parquet", {}, "train_prefs", "test_prefs"),
        ("train_a.csv train_b.csv test_a.csv test_b.csv", {"split": "train_b"}, "train_b", "test_b"),
        ("d/train/0000.parquet d/validation/0000.parquet", {}, "d/train/0000", "d/validation/0000"),
        ("prefs.json", {}, "prefs.json", ""),
        ("a.csv b.csv", {"split": "a", "test_split": "b"}, "a.csv", "b.csv"),
        (".ipynb_checkpoints/train.jsonl train.jsonl .cache/test.jsonl", {}, "train.jsonl", ""),
        ("preference/train.jsonl edit/train.jsonl", {"data_dir": ["preference"]}, "preference/train", ""),
        ("test.jsonl", {}, "", "test.jsonl"),
        ("train/data.jsonl test/data.jsonl", {}, "train/data.jsonl", "test/data.jsonl"),
        ("train-00000-of-00001-8349d0765e.parquet test-00000-of-00001-b1.parquet", {}, "train-", "test-"),
        ("Train.jsonl val.jsonl notes.json", {}, "Train", "val"),
        ("part1.jsonl part2.jsonl", {}, "part1 part2", ""),
        ("dataset_infos.json prefs.jsonl x.csv.jsonl.txt", {}, "prefs", ""),
    ],
)
def test_the_files_of_a_split(names, options, train, test, tmp_path):
    for name in names.split():
        write(tmp_path / name, ROW)
    for split, expected in (("train", train), ("test", test)):
        found = [
            str(file.path.relative_to(tmp_path)) for file in find_files(DataConfig(str(tmp_path), **options), split)
        ]
        assert len(found) == len(expected.split())
        assert all(map(str.startswith, found, expected.split()))


def test_a_train_split_alone_gives_a_test_split_by_the_same_hash(tmp_path):
    path = write(tmp_path / "prefs.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(2000)))
    config = DataConfig(str(path))
    prompts = {name: set(load_split(config, name)[0]["prompt"][:]) for name in (*config.splits, "eval")}
    assert sum(map(len, prompts.values())) == len(set().union(*prompts.values())) == 2000
    assert 150 < len(prompts["eval"]) < 250  # 200, of sd 13
    fewer = DataConfig(str(write(tmp_path / "fewer.jsonl", *(PLAIN | {"prompt": f"{i}?"} for i in range(500)))))
    for name, all_of_them in prompts.items():
        assert set(load_split(fewer, name)[0]["prompt"][:]) <= all_of_them


LAYOUTS = {
    "UltraFeedback": ("data/train_prefs-00000-of-00001.parquet", "messages that repeat a text", []),
    "UltraFeedback, implicit prompt": ("data/train-00000-of-00001.parquet", "messages, implicit prompt", []),
    "texts": ("prefs.jsonl", "plain", []),
    "other columns": ("train.csv", "plain", ["--columns", "prompt=q", "chosen=yes", "rejected=no"]),
    "system messages": ("train.json", "system", []),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_recipes_train_on_it(layout, run, world, tmp_path):
    """Reward model and DPO of a chat model, on data of that layout alone."""
    name, form, options = LAYOUTS[layout]
    record = {"plain": PLAIN, "system": {"prompt": [SYSTEM, *QUESTION], "chosen": FOUR, "rejected": FIVE}} | FORMS
    records = [json.loads(json.dumps(record[form]).replace("One?", f"{i}?")) for i in range(400)]
    if options:
        records = [dict(zip(("q", "yes", "no"), record.values(), strict=True)) for record in records]
    path = write(tmp_path / "data" / name, *records)
    shared = {"dataset": str(path if layout == "texts" else tmp_path / "data"), "max_steps": 1}
    shared["model_name_or_path"] = str(world / "gpt2")
    for recipe in ("reward", "dpo"):
        code, said, error = run(recipe, "--config", settings(tmp_path, recipe, world, base="gpt2", **shared), *options)
        assert code == 0, error
        assert f"read {path}: 400 rows" in said


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
