"""Evaluate a reward model on every held-out pair, from the scores themselves: accuracy, calibration, length, errors.

    make eval-reward PROFILE=gpt2
    python -m eval reward-model --config configs/gpt2.yaml --reward_model FOLDER

Any model with one score per sequence will do, full or a PEFT adapter. Writes to OUTPUT_DIR/reward-model:
`CARD.md`, `card.json`, `pairs.jsonl` (RewardBench's field names), `errors.jsonl` (wrong pairs to read), and
`reward_distributions` and `reliability` as .png and .svg.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from datasets import Dataset
from scipy.special import expit
from scipy.stats import pearsonr, rankdata
from statsmodels.regression.linear_model import OLS

from eval.analysis import intervals
from eval.config import CardConfig
from eval.files import render
from eval.metrics import PairwiseAccuracy, accuracy, log_losses, reliability, temperature
from eval.pages import figures
from rlhf_trl.config import DataConfig
from rlhf_trl.files import files_hash, replaced, write_json, write_jsonl
from rlhf_trl.frame_loading import set_pad
from rlhf_trl.frames import Frame
from rlhf_trl.measure import machine, versions
from rlhf_trl.models import device
from rlhf_trl.provenance import MANIFEST, Task
from rlhf_trl.rewards import check_reward_model, load_raw, reward_frame, score
from rlhf_trl.splits import load_split
from rlhf_trl.tokens import build_dataset, fingerprint

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
    scores = {}
    for side in ("chosen", "rejected"):
        sequences = [prompt + reply for prompt, reply in zip(pairs["prompt_ids"], pairs[f"{side}_ids"], strict=True)]
        scores[side] = score(model, sequences, config.batch_size, f"Scoring {side}").double().numpy()
        scores[side] -= getattr(model.config, "reward_mean", 0.0)
    tokens = {side: np.array([len(ids) for ids in pairs[f"{side}_ids"]]) for side in scores}

    # Analyse
    rows = [
        {
            **{name: pair[name] for name in ("subset", "prompt", "chosen", "rejected")},
            **{f"scores_{side}": float(scores[side][i]) for side in scores},
            **{f"{side}_tokens": int(tokens[side][i]) for side in scores},
        }
        for i, pair in enumerate(pairs)
    ]
    found = patterns(scores["chosen"] - scores["rejected"], tokens["chosen"], tokens["rejected"])
    errors = sample_errors(rows, found, config.error_samples, config.seed)
    card = {
        **analyse(
            scores["chosen"], scores["rejected"], tokens["chosen"], tokens["rejected"], pairs["subset"], config.seed
        ),
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
    margins = {"pairs": scores["chosen"] - scores["rejected"]}
    with replaced(task.folder) as staging:
        write_json(staging / "card.json", card)
        write_jsonl(staging / "pairs.jsonl", rows)
        write_jsonl(staging / "errors.jsonl", errors)
        figures.histograms({"score": scores, "chosen minus rejected": margins}, staging / "reward_distributions")
        figures.reliability(card["reliability"], staging / "reliability")
        (staging / "CARD.md").write_text(render("CARD.md", card=card), encoding="utf-8")
        write_json(staging / MANIFEST, task.manifest(files_hash(staging)))
    print(f"The reward model's card is {task.folder / 'CARD.md'}")


def load_held_out(config: DataConfig, frame: Frame, seed: int) -> tuple[Dataset, dict]:
    """All pairs of the eval split that fit the limits, and how many do not."""
    pairs = build_dataset(replace(config, max_rows=None), "eval", frame, seed)
    total = len(load_split(config, "eval")[0])
    left_out = intervals.proportion(total - len(pairs), total)
    summary = {"pairs": total - len(pairs), "share": left_out.mean, "ci": [left_out.lower, left_out.upper], "n": total}
    return pairs.select(range(min(config.max_rows or total, len(pairs)))), summary


def analyse(
    chosen: np.ndarray,
    rejected: np.ndarray,
    chosen_tokens: np.ndarray,
    rejected_tokens: np.ndarray,
    subsets: Sequence[str],
    seed: int,
) -> dict:
    """The numbers of the card, from raw scores and reply lengths of each pair, all of shape (n,).

    Only differences of scores mean anything; their level is the reward model's own.
    """
    margins, longer = chosen - rejected, chosen_tokens - rejected_tokens
    subsets = np.array(subsets)
    log_loss = intervals.mean(log_losses(margins), seed)
    found = patterns(margins, chosen_tokens, rejected_tokens)
    return {
        **PairwiseAccuracy().compute(scores_chosen=chosen, scores_rejected=rejected),
        "ties": int((margins == 0).sum()),
        "log_loss_ci": [log_loss.lower, log_loss.upper],
        "calibration": temperature(margins),
        "reliability": reliability(margins),
        "subsets": {str(name): accuracy(margins[subsets == name]) for name in np.unique(subsets)},
        "macro": macro(margins, subsets),
        "deciles": deciles(margins),
        "scores": {side: _describe(values) for side, values in (("chosen", chosen), ("rejected", rejected))},
        "length": {
            "spearman": spearman(margins, longer),
            "chosen_longer": accuracy(margins[longer > 0]) if (longer > 0).any() else None,
            "chosen_shorter": accuracy(margins[longer < 0]) if (longer < 0).any() else None,
            "pick_longer": accuracy(longer),
            "pick_shorter": accuracy(-longer),
        },
        "patterns": {
            name: {"wrong": _share(holds[margins < 0]), "correct": _share(holds[margins > 0])}
            for name, holds in found.items()
        },
        "thresholds": {"longer": LONGER, "very_short": VERY_SHORT, "close": CLOSE},
    }


def macro(margins: np.ndarray, subsets: np.ndarray) -> dict:
    """Mean of the subsets' accuracies, each counting the same; HC1 errors, as every subset has its own variance."""
    names = np.unique(subsets)
    dummies = (subsets[:, None] == names).astype(float)
    test = OLS(np.heaviside(margins, 0.5), dummies).fit(cov_type="HC1").t_test(np.full(len(names), 1 / len(names)))
    return {"accuracy": test.effect.item(), "ci": test.conf_int()[0].tolist(), "subsets": len(names)}


def deciles(margins: np.ndarray) -> list[dict]:
    """Accuracy in each tenth of the pairs, from the smallest |margin| to the largest."""
    ordered = margins[np.argsort(np.abs(margins), kind="stable")]
    parts = [part for part in np.array_split(ordered, 10) if len(part)]
    return [{"lower": float(abs(part[0])), "upper": float(abs(part[-1])), **accuracy(part)} for part in parts]


def spearman(x: np.ndarray, y: np.ndarray) -> dict | None:
    """Spearman's rank correlation, Pearson's of the ranks, with Fisher's 95% interval; None if it is not defined."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    result = pearsonr(rankdata(x), rankdata(y))
    return {"rho": float(result.statistic), "ci": [float(end) for end in result.confidence_interval()]}


def patterns(margins: np.ndarray, chosen_tokens: np.ndarray, rejected_tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Which pairs, of any outcome, show which pattern of the error analysis: name to booleans, shape (n,).

    A pair can show several; "unclear" is one that shows none. The names say what a pattern means in a wrong pair.
    """
    found = {
        "longer rejected preferred": rejected_tokens >= LONGER * chosen_tokens,
        "missed quality despite length": chosen_tokens >= LONGER * rejected_tokens,
        "very short chosen": chosen_tokens < VERY_SHORT,
        "very short rejected": rejected_tokens < VERY_SHORT,
        "close scores": expit(np.abs(margins)) < CLOSE,
    }
    return {**found, "unclear": ~np.any(list(found.values()), axis=0)}


def sample_errors(rows: list[dict], found: dict[str, np.ndarray], size: int, seed: int) -> list[dict]:
    """A seeded random sample of the wrong pairs, at most `size`, each with the names of its patterns."""
    wrong = [i for i, row in enumerate(rows) if row["scores_chosen"] < row["scores_rejected"]]
    drawn = np.random.default_rng(seed).choice(wrong, min(size, len(wrong)), replace=False) if wrong else []
    return [{**rows[i], "patterns": [name for name, holds in found.items() if holds[i]]} for i in drawn]


def _describe(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "sd": float(values.std()),
        "min": float(values.min()),
        "max": float(values.max()),
    }


def _share(holds: np.ndarray) -> dict | None:
    if not len(holds):
        return None
    estimate = intervals.proportion(int(holds.sum()), len(holds))
    return {"share": estimate.mean, "ci": [estimate.lower, estimate.upper], "n": len(holds)}
