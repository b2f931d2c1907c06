"""Preference rows in the forms that people have them, and how tests write and read them."""

import csv
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq

from rlhf_trl.config import DataConfig
from rlhf_trl.frames import messages
from rlhf_trl.preferences import load_pairs

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
