"""Tokenized splits, kept in the cache of `datasets` for the next run."""

import hashlib
import json
import os
import sys
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import datasets
from accelerate import PartialState
from datasets import Dataset, Features, List, Value
from datasets.fingerprint import Hasher

from rlhf_trl import frame_loading, frames, splits
from rlhf_trl.config import ROW, DataConfig
from rlhf_trl.data_files import find_files, unread_files
from rlhf_trl.errors import UserError, check_writable
from rlhf_trl.files import file_hash
from rlhf_trl.frames import Frame
from rlhf_trl.preferences import load_pairs
from rlhf_trl.splits import load_split

TOO_LONG = ("prompt too long", "reply too long")
UNFIT = (*TOO_LONG, *frames.REASONS)  # why a row of a split cannot be used
FEATURES = Features(
    dict.fromkeys((*ROW, "subset", "key", "dialogue", "dropped"), Value("string"))
    | dict.fromkeys(("prompt_ids", "chosen_ids", "rejected_ids"), List(Value("int32")))
    | {"length": Value("int64"), "apart": Value("bool")}
)
VERSIONS = [version(name) for name in ("transformers", "tokenizers")]
FEWEST_ROWS = 4000  # that a process of its own is started for

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # several processes are faster, and are forked only without


def build_dataset(config: DataConfig, name: str, frame: Frame, seed: int) -> Dataset:
    """Rows of a split that can be used, as the frame's model reads them, shuffled by `seed`.

    Columns: those of `Frame.rows`. What is read, and what was dropped and why, is printed.

    Raises:
        UserError: no row is left.
    """
    dataset, dropped, files = tokenize_split(config, name, frame)
    kept = [i for i, reason in enumerate(dataset["dropped"][:]) if not reason]
    dropped += Counter(filter(None, dataset["dropped"][:]))
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"
    if not kept:
        raise UserError(
            f"no row of the {name} split of {config.dataset} fits max_prompt_tokens={config.max_prompt_tokens} and "
            f"max_completion_tokens={config.max_completion_tokens} (dropped: {reasons}); raise them or use other data"
        )
    dataset = dataset.select(kept).shuffle(seed=seed)
    if config.max_rows is not None:
        dataset = dataset.select(range(min(config.max_rows, len(dataset))))
    apart = sum(dataset["apart"][:])
    note = f"; {apart} with a reply that is other tokens when written together with its prompt" if apart else ""
    print(f"{name}: {len(dataset)} rows of {config.dataset} (dropped: {reasons}{note})")
    print_files(config, files)
    return dataset


def print_files(config: DataConfig, read: dict[str, int]) -> None:
    """What was read, and what was not, so that no file is missed or meant otherwise without a word."""
    for file, rows in read.items():
        print(f"  read {file}: {rows} rows")
    for file in unread_files(config):
        print(f"  not read: {file}")


def tokenize_split(config: DataConfig, name: str, frame: Frame) -> tuple[Dataset, Counter, Counter]:
    """What `load_split` returns, but all rows through `Frame.rows`, and those over the limits marked as dropped. What
    one run has tokenized the next ones read from the cache of `datasets`."""
    check_writable(Path(datasets.config.HF_DATASETS_CACHE), "HF_DATASETS_CACHE")
    with PartialState().local_main_process_first():
        rows, dropped, files = load_split(config, name)
        if name == "sft" and find_files(config, "test"):
            load_pairs(config, "test")  # a broken test split must not be found only after all the training

        def tokenize(batch: dict[str, list]) -> dict[str, list]:
            rows = frame.rows([dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)])
            for row in rows:
                longest = max(len(row["chosen_ids"]), len(row["rejected_ids"]))
                if len(row["prompt_ids"]) > config.max_prompt_tokens:
                    row["dropped"] = TOO_LONG[0]
                elif longest > config.max_completion_tokens and name != "policy":  # where only the prompts are used
                    row["dropped"] = TOO_LONG[1]
            return {column: [row[column] for row in rows] for column in FEATURES}

        processes = min(os.cpu_count(), len(rows) // FEWEST_ROWS)
        code = [file_hash(Path(module.__file__)) for module in (frames, frame_loading, splits, sys.modules[__name__])]
        limits = config.splits, config.max_prompt_tokens, config.max_completion_tokens
        key = name, code, VERSIONS, rows._fingerprint, limits, frame.tokenizer, frame.rest, sorted(frame.ends)
        dataset = rows.map(
            tokenize,
            batched=True,
            features=FEATURES,
            remove_columns=["file"],
            num_proc=processes if processes > 1 else None,
            new_fingerprint=Hasher.hash(key),
            desc=f"Tokenizing {name}",
        )
    return dataset, dropped, files


def fingerprint(dataset: Dataset) -> str:
    """SHA-256 of the pairs a run used, as its model read them, in order."""
    digest = hashlib.sha256()
    for row in dataset.select_columns(["prompt_ids", "chosen_ids", "rejected_ids"]):
        digest.update(json.dumps(row, sort_keys=True).encode())
    return digest.hexdigest()
