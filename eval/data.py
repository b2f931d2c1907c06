"""Count what the data of a profile holds: rows, turns, lengths, what is dropped and why, and what overlaps.

    make data PROFILE=gpt2
    python -m eval data --config configs/gpt2.yaml --tokenizer openai-community/gpt2

Writes to OUTPUT_DIR/data: `DATA.md`, `data.json`, `lengths.png` and `.svg`, and `pairs.csv` with the turns
and lengths of every pair.
"""

import itertools
from collections import Counter
from dataclasses import asdict

import numpy as np
import pandas as pd
from datasets import Dataset
from statsmodels.stats.weightstats import DescrStatsW

from eval.analysis import intervals
from eval.analysis.intervals import Interval
from eval.config import DataAnalysisConfig
from eval.pages import figures
from eval.pages.markdown import render
from rlhf_trl.config import DataConfig
from rlhf_trl.data_files import find_files
from rlhf_trl.errors import UserError
from rlhf_trl.files import write_json
from rlhf_trl.frame_loading import load_frame
from rlhf_trl.frames import Frame, messages
from rlhf_trl.provenance import Task
from rlhf_trl.tokens import UNFIT, print_files, tokenize_split

# Why `load_split` leaves out rows of a split; its other reasons concern the whole file
SELECTION = ("prompt also in the train split", "prompt repeated")
LENGTHS = ["first_turn_tokens", "prompt_tokens", "chosen_tokens", "rejected_tokens"]
DRAWN = {
    "prompt (tokens)": "prompt_tokens",
    "chosen reply (tokens)": "chosen_tokens",
    "rejected reply (tokens)": "rejected_tokens",
    "chosen minus rejected (tokens)": "chosen_tokens - rejected_tokens",
}


def main(task: Task, data_config: DataConfig, config: DataAnalysisConfig) -> None:
    folder = task.folder
    if folder.exists() and not (folder / "data.json").exists():
        raise UserError(f"{folder} holds something else and would be replaced; move it or set output_dir")
    frame = load_frame(config.tokenizer, trust_remote_code=config.trust_remote_code)

    tables, dropped, keys, files = {}, {}, {}, {}
    for name in (*(name for name, share in data_config.splits.items() if share), "eval"):
        rows, dropped[name], read = tokenize_split(data_config, name, frame)
        files |= read
        keys[name] = set(rows["key"][:])
        tables[name] = measure(rows, frame)
        print(f"{name}: {len(rows)} rows, {tables[name]['kept'].sum()} of them are used")
    print_files(data_config, files)
    files_of = {"train": "sft"} | ({"test": "eval"} if find_files(data_config, "test") else {})
    summary = {
        **asdict(data_config),
        "shares": data_config.splits,
        "tokenizer": config.tokenizer,
        "files": files,
        # all splits but eval are parts of one file
        "contract": {
            file: {reason: count for reason, count in dropped[name].items() if reason not in SELECTION}
            for file, name in files_of.items()
        },
        "splits": {name: {"prompts": len(keys[name]), **summarise(tables[name], dropped[name])} for name in tables},
        "overlaps": overlaps(keys),
    }

    panels = {title: {name: table.eval(of).to_numpy() for name, table in tables.items()} for title, of in DRAWN.items()}
    with task.written() as staging:
        pd.concat(tables, names=["split", "row"]).to_csv(staging / "pairs.csv")
        figures.histograms(panels, staging / "lengths")
        write_json(staging / "data.json", summary)
        (staging / "DATA.md").write_text(render("DATA.md", data=summary, lengths=LENGTHS), encoding="utf-8")
    print(f"What the data holds is in {folder / 'DATA.md'}")


def measure(rows: Dataset, frame: Frame) -> pd.DataFrame:
    """Subset, human turns and lengths in tokens of each row of `tokenize_split`, and whether a recipe would use it."""
    turns = [
        [turn["content"] for turn in messages(dialogue) if turn["role"] == "user"] for dialogue in rows["dialogue"]
    ]
    table = pd.DataFrame({"subset": rows["subset"], "turns": [len(texts) for texts in turns]})
    table["first_turn_tokens"] = [len(frame.tokenizer.tokenize(texts[0])) for texts in turns]
    for name in ("prompt", "chosen", "rejected"):
        table[f"{name}_tokens"] = [len(ids) for ids in rows[f"{name}_ids"]]
    table["dropped"] = rows["dropped"]
    table["kept"] = table["dropped"] == ""
    return table


def summarise(table: pd.DataFrame, dropped: Counter) -> dict:
    """The numbers of one split: of all its rows, but `length_bias` of those kept."""
    kept = table[table["kept"]]
    unfit = Counter(table["dropped"])
    return {
        "rows": len(table),
        "kept": len(kept),
        "dropped": {reason: dropped[reason] for reason in SELECTION} | {reason: unfit[reason] for reason in UNFIT},
        "subsets": _counts(table["subset"]),
        "turns": _counts(table["turns"]),
        "several_turns": (table["turns"] > 1).mean(),
        **{
            name: {"mean": of.mean(), "median": of.median(), "p95": of.quantile(0.95), "max": int(of.max())}
            for name, of in table[LENGTHS].items()
        },
        "length_bias": length_bias((kept["chosen_tokens"] - kept["rejected_tokens"]).to_numpy()),
    }


def length_bias(differences: np.ndarray) -> dict | None:
    """How much longer chosen replies are, from length differences in tokens, shape (n,); None for less than two.

    The interval is Student's: a BCa bootstrap of as many rows would take n^2 steps to give the same.
    """
    if len(differences) < 2:
        return None
    return {
        "difference": Interval(float(differences.mean()), *map(float, DescrStatsW(differences).tconfint_mean())),
        "chosen_longer": intervals.proportion(int((differences > 0).sum()), len(differences)),
        "same_length": float((differences == 0).mean()),
    }


def overlaps(keys: dict[str, set[str]]) -> list[dict]:
    """How many prompts every two splits have in common, from the prompt keys of each."""
    return [{"a": a, "b": b, "prompts": len(keys[a] & keys[b])} for a, b in itertools.combinations(keys, 2)]


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}
