"""Evaluate a reward model on every held-out pair, from the scores themselves: accuracy, calibration, length, errors.

    make eval-reward PROFILE=gpt2
    python -m eval reward-model --config configs/gpt2.yaml --reward_model FOLDER

Any model with one score per sequence will do, full or a PEFT adapter. Writes to OUTPUT_DIR/reward-model:
`CARD.md`, `card.json`, `pairs.jsonl` (RewardBench's field names), `errors.jsonl` (wrong pairs to read), and
`reward_distributions` and `reliability` as .png and .svg.
"""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy.special import expit
from scipy.stats import pearsonr, rankdata
from statsmodels.regression.linear_model import OLS

from eval.analysis import intervals
from eval.analysis.calibration import accuracy, deciles, log_losses, reliability, temperature
from eval.analysis.intervals import Interval
from eval.config import CardConfig
from eval.metrics import PairwiseAccuracy
from eval.pages import figures
from eval.pages.markdown import render
from rlhf_trl.config import DataConfig
from rlhf_trl.files import write_json, write_jsonl
from rlhf_trl.frame_loading import set_pad
from rlhf_trl.frames import Frame
from rlhf_trl.measure import machine, versions
from rlhf_trl.models import device
from rlhf_trl.provenance import Task
from rlhf_trl.rewards import check_reward_model, load_raw, reward_frame, score
from rlhf_trl.splits import load_split
from rlhf_trl.tokens import build_dataset, fingerprint

SIDES = ("chosen", "rejected")
# Thresholds of the patterns of the error analysis
LONGER = 1.25  # times as many tokens
VERY_SHORT = 10  # tokens with eos
CLOSE = 0.55  # confidence


def main(task: Task, data_config: DataConfig, config: CardConfig) -> None:
    source = config.reward_model
    check_reward_model(source, config.trust_remote_code)
    frame = set_pad(reward_frame(source, config.trust_remote_code), source, config.pad_token)
    pairs, left_out = load_held_out(data_config, frame, config.seed)

    # Score
    model = load_raw(source, frame, dtype=config.dtype, trust_remote_code=config.trust_remote_code).to(device())
    table = pairs.select_columns(["subset", "prompt", "chosen", "rejected"]).to_pandas()
    for side in SIDES:
        sequences = [prompt + reply for prompt, reply in zip(pairs["prompt_ids"], pairs[f"{side}_ids"], strict=True)]
        scores = score(model, sequences, config.batch_size, f"Scoring {side}").double().numpy()
        table[f"scores_{side}"] = scores - getattr(model.config, "reward_mean", 0.0)
    for side in SIDES:
        table[f"{side}_tokens"] = [len(ids) for ids in pairs[f"{side}_ids"]]

    # Analyse
    errors = sample_errors(table, config.error_samples, config.seed)
    card = {
        **analyse(table, config.seed),
        "left_out": left_out,
        "errors_sampled": len(errors),
        "manifest": {
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": config.seed,
            "reward_model": task.made_of["reward_model"],
            "data": {"dataset": data_config.dataset, "pairs": len(pairs), "sha256": fingerprint(pairs)},
            "versions": versions(),
            "machine": machine(),
        },
    }

    # Write
    histograms = {
        "score": {side: table[f"scores_{side}"].to_numpy() for side in SIDES},
        "chosen minus rejected": {"pairs": margins_of(table)},
    }
    with task.written() as staging:
        write_json(staging / "card.json", card)
        write_jsonl(staging / "pairs.jsonl", table.to_dict("records"))
        write_jsonl(staging / "errors.jsonl", errors)
        figures.histograms(histograms, staging / "reward_distributions")
        figures.reliability(card["reliability"], staging / "reliability")
        (staging / "CARD.md").write_text(render("CARD.md", card=card), encoding="utf-8")
    print(f"The reward model's card is {task.folder / 'CARD.md'}")


def load_held_out(config: DataConfig, frame: Frame, seed: int) -> tuple[Dataset, dict]:
    """All pairs of the eval split that fit the limits, and how many do not."""
    pairs = build_dataset(replace(config, max_rows=None), "eval", frame, seed)
    total = len(load_split(config, "eval")[0])
    left_out = {"pairs": total - len(pairs), "n": total, "share": intervals.proportion(total - len(pairs), total)}
    return pairs.select(range(min(config.max_rows or total, len(pairs)))), left_out


def analyse(table: pd.DataFrame, seed: int) -> dict:
    """The numbers of the card, from a row a pair: `subset`, and raw scores and tokens of both replies.

    Only differences of scores mean anything; their level is the reward model's own.
    """
    chosen, rejected, margins = table["scores_chosen"], table["scores_rejected"], margins_of(table)
    longer, subsets = (table["chosen_tokens"] - table["rejected_tokens"]).to_numpy(), table["subset"].to_numpy()
    log_loss = intervals.bootstrap_mean(log_losses(margins), seed)
    return {
        **PairwiseAccuracy().compute(scores_chosen=chosen, scores_rejected=rejected),
        "ties": int((margins == 0).sum()),
        "log_loss_ci": [log_loss.lower, log_loss.upper],
        "temperature": temperature(margins),
        "reliability": reliability(margins),
        "subsets": {name: _part(margins[subsets == name]) for name in np.unique(subsets)},
        "macro": macro(margins, subsets),
        "deciles": deciles(margins),
        "scores": {
            side: {"mean": raw.mean(), "sd": raw.std(ddof=0), "min": raw.min(), "max": raw.max()}
            for side, raw in (("chosen", chosen), ("rejected", rejected))
        },
        "length": {
            "spearman": spearman(margins, longer),
            "chosen_longer": _part(margins[longer > 0]),
            "chosen_shorter": _part(margins[longer < 0]),
            "pick_longer": _part(longer),
            "pick_shorter": _part(-longer),
        },
        "patterns": {
            name: {"wrong": _share(holds[margins < 0]), "correct": _share(holds[margins > 0])}
            for name, holds in patterns(table).items()
        },
        "thresholds": {"longer": LONGER, "very_short": VERY_SHORT, "close": CLOSE},
    }


def margins_of(table: pd.DataFrame) -> np.ndarray:
    """Score of the chosen reply minus that of the rejected one, shape (n,)."""
    return (table["scores_chosen"] - table["scores_rejected"]).to_numpy()


def macro(margins: np.ndarray, subsets: np.ndarray) -> dict:
    """Mean of the subsets' accuracies, each counting the same; HC1 errors, as every subset has its own variance."""
    names = np.unique(subsets)
    dummies = (subsets[:, None] == names).astype(float)
    test = OLS(np.heaviside(margins, 0.5), dummies).fit(cov_type="HC1").t_test(np.full(len(names), 1 / len(names)))
    return {"accuracy": Interval(test.effect.item(), *test.conf_int()[0].tolist()), "subsets": len(names)}


def spearman(x: np.ndarray, y: np.ndarray) -> Interval | None:
    """Spearman's rank correlation, Pearson's of the ranks, with Fisher's 95% interval; None if it is not defined."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = pearsonr(rankdata(x), rankdata(y))
    return Interval(float(result.statistic), *map(float, result.confidence_interval()))


def patterns(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Which pairs, of any outcome, show which pattern of the error analysis: name to booleans, shape (n,).

    A pair can show several; "unclear" is one that shows none. The names say what a pattern means in a wrong pair.
    """
    chosen, rejected = table["chosen_tokens"].to_numpy(), table["rejected_tokens"].to_numpy()
    found = {
        "longer rejected preferred": rejected >= LONGER * chosen,
        "missed quality despite length": chosen >= LONGER * rejected,
        "very short chosen": chosen < VERY_SHORT,
        "very short rejected": rejected < VERY_SHORT,
        "close scores": expit(np.abs(margins_of(table))) < CLOSE,
    }
    return {**found, "unclear": ~np.any(list(found.values()), axis=0)}


def sample_errors(table: pd.DataFrame, size: int, seed: int) -> list[dict]:
    """A seeded random sample of the wrong pairs, at most `size`, each with the names of its patterns."""
    wrong, found = np.flatnonzero(margins_of(table) < 0), patterns(table)
    drawn = np.random.default_rng(seed).choice(wrong, min(size, len(wrong)), replace=False)
    rows = table.iloc[drawn].to_dict("records")
    return [
        {**row, "patterns": [name for name, holds in found.items() if holds[i]]}
        for i, row in zip(drawn, rows, strict=True)
    ]


def _part(margins: np.ndarray) -> dict:
    return {"accuracy": accuracy(margins), "n": len(margins)}


def _share(holds: np.ndarray) -> dict:
    return {"share": intervals.proportion(int(holds.sum()), len(holds)) if len(holds) else None, "n": len(holds)}
