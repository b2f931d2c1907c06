"""Count what the data of a profile holds: rows, turns, lengths, what is dropped and why, and what overlaps.

    make data PROFILE=gpt2
    python -m eval data --config configs/gpt2/eval.yaml --tokenizer openai-community/gpt2

Writes to OUTPUT_DIR/data: `DATA.md`, `data.json`, `lengths.png` and `.svg`, and `pairs.csv` with the turns
and lengths of every pair.
"""

import itertools
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
from statsmodels.stats.weightstats import DescrStatsW
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from eval import figures, stats
from eval.config import EvalConfig, JudgeConfig, TokenizerConfig
from eval.files import render, replaced, write_json
from rlhf_trl.config import DataConfig
from rlhf_trl.data import TURN, load_split, prompt_key
from rlhf_trl.data import render as render_row
from rlhf_trl.errors import UserError
from rlhf_trl.hub import check_source

# Why `load_split` leaves out rows of a split; its other reasons concern the whole file
SELECTION = ("prompt also in the train split", "prompt repeated")
LENGTHS = ("first_turn_tokens", "prompt_tokens", "chosen_tokens", "rejected_tokens")


def main(data_config: DataConfig, config: EvalConfig, _: JudgeConfig, counting: TokenizerConfig) -> None:
    folder = Path(config.output_dir) / "data"
    if folder.exists() and not (folder / "data.json").exists():
        raise UserError(f"{folder} holds something else and would be replaced; move it or set output_dir")
    check_source(counting.tokenizer)
    tokenizer = AutoTokenizer.from_pretrained(counting.tokenizer)

    frames, dropped, keys = {}, {}, {}
    for name in (*(name for name, share in data_config.splits.items() if share), "eval"):
        rows, dropped[name] = load_split(data_config, name)
        keys[name] = {prompt_key(row["prompt"]) for row in rows}
        frames[name] = measure(rows, tokenizer)
        frames[name]["kept"] = fits(frames[name], data_config, name)
        print(f"{name}: {len(rows)} rows, {frames[name]['kept'].sum()} of them within the limits")
    summary = {
        **asdict(data_config),
        "shares": data_config.splits,
        "tokenizer": counting.tokenizer,
        # all splits but eval are parts of one file
        "contract": {file: _without(dropped[name]) for file, name in (("train", "sft"), ("test", "eval"))},
        "splits": {
            name: {"prompts": len(keys[name]), **summarise(frames[name], dropped[name], data_config)} for name in frames
        },
        "overlaps": overlaps(keys),
    }

    quantities = {
        "prompt (tokens)": lambda frame: frame["prompt_tokens"],
        "chosen reply (tokens)": lambda frame: frame["chosen_tokens"],
        "rejected reply (tokens)": lambda frame: frame["rejected_tokens"],
        "chosen minus rejected (tokens)": lambda frame: frame["chosen_tokens"] - frame["rejected_tokens"],
    }
    panels = {title: {name: get(frame) for name, frame in frames.items()} for title, get in quantities.items()}
    with replaced(folder) as staging:
        pd.concat(frames, names=["split", "row"]).to_csv(staging / "pairs.csv")
        figures.histograms(panels, staging / "lengths")
        write_json(staging / "data.json", summary)
        (staging / "DATA.md").write_text(render("DATA.md", data=summary, lengths=LENGTHS), encoding="utf-8")
    print(f"What the data holds is in {folder / 'DATA.md'}")


def measure(rows: list[dict], tokenizer: PreTrainedTokenizerBase) -> pd.DataFrame:
    """Subset, human turns and lengths in tokens of each row, as `build_dataset` makes them: replies end in eos."""
    rendered = [render_row(row, tokenizer) for row in rows]
    first_turns = [TURN.split(row["prompt"])[2].strip() for row in rows]
    return pd.DataFrame(
        {
            "subset": [row["subset"] for row in rows],
            "turns": [row["prompt"].count("\n\nHuman:") for row in rows],
            "first_turn_tokens": _count(first_turns, tokenizer, add_special_tokens=False),
            "prompt_tokens": _count([row["prompt"] for row in rendered], tokenizer),
            **{
                f"{side}_tokens": _count([row[side] for row in rendered], tokenizer, add_special_tokens=False) + 1
                for side in ("chosen", "rejected")
            },
        }
    )


def fits(frame: pd.DataFrame, config: DataConfig, name: str) -> pd.Series:
    """Which rows `build_dataset` keeps; of `policy` only the prompts are used."""
    prompt_fits = frame["prompt_tokens"] <= config.max_prompt_tokens
    replies = frame[["chosen_tokens", "rejected_tokens"]].max(axis="columns")
    return prompt_fits & ((replies <= config.max_completion_tokens) | (name == "policy"))


def summarise(frame: pd.DataFrame, dropped: Counter, config: DataConfig) -> dict:
    """The numbers of one split: of all its rows, but `length_bias` of those kept."""
    prompt_too_long = int((frame["prompt_tokens"] > config.max_prompt_tokens).sum())
    kept = frame[frame["kept"]]
    return {
        "rows": len(frame),
        "kept": len(kept),
        "dropped": {
            **{reason: dropped[reason] for reason in SELECTION},
            "prompt too long": prompt_too_long,
            "reply too long": len(frame) - len(kept) - prompt_too_long,
        },
        "subsets": _counts(frame["subset"]),
        "turns": _counts(frame["turns"]),
        "several_turns": float((frame["turns"] > 1).mean()),
        **{
            name: {
                "mean": float(frame[name].mean()),
                "median": float(frame[name].median()),
                "p95": float(frame[name].quantile(0.95)),
                "max": int(frame[name].max()),
            }
            for name in LENGTHS
        },
        "length_bias": length_bias((kept["chosen_tokens"] - kept["rejected_tokens"]).to_numpy()),
    }


def length_bias(differences: np.ndarray) -> dict | None:
    """How much longer chosen replies are, from length differences in tokens, shape (n,); None for less than two.

    The interval is Student's: a BCa bootstrap of as many rows would take n^2 steps to give the same.
    """
    if len(differences) < 2:
        return None
    longer = stats.proportion(int((differences > 0).sum()), len(differences))
    return {
        "mean": float(differences.mean()),
        "ci": [float(end) for end in DescrStatsW(differences).tconfint_mean()],
        "chosen_longer": {"mean": longer.mean, "ci": [longer.lower, longer.upper]},
        "same_length": float((differences == 0).mean()),
    }


def overlaps(keys: dict[str, set[str]]) -> list[dict]:
    """How many prompts every two splits have in common, from the prompt keys of each."""
    return [{"a": a, "b": b, "prompts": len(keys[a] & keys[b])} for a, b in itertools.combinations(keys, 2)]


def _count(texts: list[str], tokenizer: PreTrainedTokenizerBase, **options) -> np.ndarray:
    chunks = (texts[start : start + 1000] for start in range(0, len(texts), 1000))  # the ids of all are gigabytes
    return np.array([len(ids) for chunk in chunks for ids in tokenizer(chunk, verbose=False, **options)["input_ids"]])


def _counts(values: pd.Series) -> dict[str, int]:
    return {str(value): int(count) for value, count in values.value_counts().sort_index().items()}


def _without(dropped: Counter) -> dict[str, int]:
    return {reason: count for reason, count in dropped.items() if reason not in SELECTION}
