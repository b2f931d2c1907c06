"""What is measured of replies: those of a policy, of what costs no training, and by subset of the data."""

import itertools
from pathlib import Path

import numpy as np

from eval.analysis import intervals
from eval.analysis.comparisons import REACH, per_prompt, per_reply
from eval.analysis.overoptimisation import best_of, best_of_kl
from rlhf_trl.files import read_jsonl

BEST_OF = (4, 16, 64)  # rows of the table


def rewards(rows: list[dict], seed: int) -> dict | None:
    """Mean rewards of some replies."""
    if not rows:
        return None
    has_gold = rows[0]["gold"] is not None
    return {
        "proxy_reward": intervals.as_dict(intervals.mean(per_prompt(rows, "proxy"), seed)),
        "gold_reward": intervals.as_dict(intervals.share(per_prompt(rows, "gold"))) if has_gold else None,
    }


def describe(rows: list[dict], seed: int) -> dict:
    """What is measured of one policy's replies."""
    has_kl, has_cue = rows[0]["kl"] is not None, rows[0]["cue"] is not None
    return {
        **rewards(rows, seed),
        "kl": intervals.as_dict(intervals.mean(per_prompt(rows, "kl"), seed)) if has_kl else None,
        "completion_tokens": intervals.as_dict(intervals.mean(per_prompt(rows, "completion_tokens"), seed)),
        "refused": intervals.as_dict(intervals.share(per_prompt(rows, "refused"))),
        "cue": intervals.as_dict(intervals.share(per_prompt(rows, "cue"))) if has_cue else None,
        "eos_rate": float(per_prompt(rows, "finished").mean()),
        "distinct_2": _distinct([row["completion"] for row in rows]),
        "repeated_3": float(np.mean([_repeated(row["completion"]) for row in rows])),
    }


def untrained(root: Path, reference: str, rows: list[dict], base: list[dict], seed: int) -> dict[str, dict]:
    """What can be had without training: the base model, the reference sampled colder, and the best of n of its replies
    by the proxy reward (on the first prompts only). Their rewards minus the reference's, `vs_reference`, are a family
    of their own."""
    drawn = {"base": base} if base else {}
    for path in sorted((root / "scores" / "colder").glob(f"{reference}-*.jsonl"), reverse=True):
        drawn[f"{reference} at temperature {path.stem.removeprefix(f'{reference}-')}"] = read_jsonl(path)
    best = read_jsonl(root / "scores" / "best_of.jsonl")
    ns = [n for n in BEST_OF if best and n <= per_reply(best, "proxy").shape[1]]
    prompts = len(per_prompt(rows, "proxy"))
    found = {name: describe(replies, seed) | {"prompts": prompts} for name, replies in drawn.items()}
    found |= {f"{reference}, best of {n} by the proxy": _best_of(best, n, seed) for n in ns}
    if not found:
        return {}
    for column in ("proxy", "gold") if rows[0]["gold"] is not None else ("proxy",):
        differences = [per_prompt(replies, column) - per_prompt(rows, column) for replies in drawn.values()]
        differences += [best_of(best, column, n) - per_prompt(best, column) for n in ns]
        padded = np.array([np.pad(d, (0, prompts - len(d)), constant_values=np.nan) for d in differences])
        family = intervals.family(padded.T, seed=seed, **REACH[f"{column} reward"])
        for entry, difference in zip(found.values(), family, strict=True):
            entry.setdefault("vs_reference", {"gold": None})[column] = intervals.as_dict(difference)
    return found


def _best_of(rows: list[dict], n: int, seed: int) -> dict:
    has_gold = rows[0]["gold"] is not None
    gold = np.clip(best_of(rows, "gold", n), 0, 1) if has_gold else None  # weights add up to 1 but for rounding
    return {
        "prompts": len(per_prompt(rows, "proxy")),
        "proxy_reward": intervals.as_dict(intervals.mean(best_of(rows, "proxy", n), seed)),
        "gold_reward": intervals.as_dict(intervals.share(gold)) if has_gold else None,
        "kl": {"mean": best_of_kl(n), "ci": None},
    }


def by_subset(policies: dict[str, list[dict]], seed: int) -> dict[str, dict]:
    """By subset of the data: the prompts in it, and each policy's rewards and refusals there; {} for one subset."""
    names = sorted({row["subset"] for rows in policies.values() for row in rows})
    result = {}
    for subset in names if len(names) > 1 else ():
        parts = {name: [row for row in rows if row["subset"] == subset] for name, rows in policies.items()}
        result[subset] = {
            "prompts": len(per_prompt(next(iter(parts.values())), "proxy")),
            "policies": {
                name: rewards(rows, seed) | {"refused": intervals.as_dict(intervals.share(per_prompt(rows, "refused")))}
                for name, rows in parts.items()
            },
        }
    return result


def _distinct(texts: list[str]) -> float | None:
    """Distinct word bigrams over all word bigrams (Li et al. 2016, arXiv 1510.03055)."""
    grams = [gram for text in texts for gram in itertools.pairwise(text.split())]
    return len(set(grams)) / len(grams) if grams else None


def _repeated(text: str) -> float:
    """Share of a reply's word trigrams that it has had before (Welleck et al. 2020, arXiv 1908.04319)."""
    words = text.split()
    grams = list(zip(words, words[1:], words[2:], strict=False))
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
