"""Preference rows in every form that people have them: one row is read as the same row."""

import gzip
import json

import pytest

from rlhf_trl.config import DataConfig
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import messages
from rlhf_trl.tokens import build_dataset
from tests.conftest import usable_pairs
from tests.preference_rows import DIALOGUE, FIVE, FORMS, FOUR, PLAIN, QUESTION, ROW, SYSTEM, read, turn, write


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
