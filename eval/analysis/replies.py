"""What is measured of replies: those of a policy, of what costs no training, and by subset of the data."""

import itertools

import numpy as np

from eval.analysis import intervals
from eval.analysis.comparisons import REACH, per_prompt, per_reply
from eval.analysis.overoptimisation import best_of, best_of_kl
from eval.analysis.results import Results

BEST_OF = (4, 16, 64)  # rows of the table


def rewards(rows: list[dict], seed: int) -> dict:
    """Mean rewards of replies; None without any, and without a gold rule."""
    return {
        "proxy_reward": intervals.bootstrap_mean(per_prompt(rows, "proxy"), seed) if rows else None,
        "gold_reward": intervals.share(per_prompt(rows, "gold")) if rows and rows[0]["gold"] is not None else None,
    }


def describe(rows: list[dict], seed: int) -> dict:
    """What is measured of one policy's replies."""
    has_kl, has_cue = rows[0]["kl"] is not None, rows[0]["cue"] is not None
    return {
        **rewards(rows, seed),
        "kl": intervals.bootstrap_mean(per_prompt(rows, "kl"), seed) if has_kl else None,
        "completion_tokens": intervals.bootstrap_mean(per_prompt(rows, "completion_tokens"), seed),
        "refused": intervals.share(per_prompt(rows, "refused")),
        "cue": intervals.share(per_prompt(rows, "cue")) if has_cue else None,
        "eos_rate": float(per_prompt(rows, "finished").mean()),
        "distinct_2": _distinct([row["completion"] for row in rows]),
        "repeated_3": float(np.mean([_repeated(row["completion"]) for row in rows])),
    }


def untrained(results: Results) -> dict[str, dict]:
    """What can be had without training: the base model, the reference sampled colder, and the best of n of its replies
    by the proxy reward (on the first prompts only). Their rewards minus the reference's, `vs_reference`, are a family
    of their own."""
    reference, seed = results.names[0], results.config.seed
    rows, best = results.policies[reference], results.scores.get("best_of", [])
    drawn = {"base": results.base} if results.base else {}
    for name in sorted(results.scores, reverse=True):
        if name.startswith(colder := f"colder/{reference}-"):
            drawn[f"{reference} at temperature {name.removeprefix(colder)}"] = results.scores[name]
    ns = [n for n in BEST_OF if best and n <= per_reply(best, "proxy").shape[1]]
    prompts = len(per_prompt(rows, "proxy"))
    found = {name: describe(replies, seed) | {"prompts": prompts} for name, replies in drawn.items()}
    for n in ns:
        # the weights add up to 1 but for rounding
        gold = intervals.share(np.clip(best_of(best, "gold", n), 0, 1)) if results.has_gold else None
        found[f"{reference}, best of {n} by the proxy"] = {
            "prompts": len(per_prompt(best, "proxy")),
            "proxy_reward": intervals.bootstrap_mean(best_of(best, "proxy", n), seed),
            "gold_reward": gold,
            "kl": best_of_kl(n),
        }
    if not found:
        return {}
    for column in ("proxy", "gold") if results.has_gold else ("proxy",):
        differences = [per_prompt(replies, column) - per_prompt(rows, column) for replies in drawn.values()]
        differences += [best_of(best, column, n) - per_prompt(best, column) for n in ns]
        padded = np.array([np.pad(d, (0, prompts - len(d)), constant_values=np.nan) for d in differences])
        family = intervals.family(padded.T, seed=seed, **REACH[f"{column} reward"])
        for entry, difference in zip(found.values(), family, strict=True):
            entry.setdefault("vs_reference", {"gold": None})[column] = difference
    return found


def by_subset(policies: dict[str, list[dict]], seed: int) -> dict[str, dict]:
    """By subset of the data: the prompts in it, and each policy's rewards and refusals there; {} for one subset."""
    names = sorted({row["subset"] for rows in policies.values() for row in rows})
    result = {}
    for subset in names if len(names) > 1 else ():
        parts = {name: [row for row in rows if row["subset"] == subset] for name, rows in policies.items()}
        result[subset] = {
            "prompts": len(per_prompt(next(iter(parts.values())), "proxy")),
            "policies": {
                name: rewards(rows, seed) | {"refused": intervals.share(per_prompt(rows, "refused"))}
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
