"""Over-optimisation: proxy reward and true preference along training and along best-of-n (Gao et al. 2023, 2210.10760).

The true preference is the gold rule where the profile has one, else the judge's score against the reference.
"""

from dataclasses import astuple

import numpy as np

from eval.analysis import intervals
from eval.analysis.comparisons import REACH, Verdicts, per_prompt, per_reply
from eval.analysis.intervals import Interval

BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEASURE_OF = {"gold": "gold reward", "judge": "win rate"}


def optimisation(scores: dict[str, list[dict]], names: list[str], verdicts: Verdicts, seed: int) -> dict:
    """Points of all curves, and where the true preference is shown to have fallen to the end of its curve.

    Args:
        scores: rows by file: of each policy, of its checkpoints and its end ("checkpoints/NAME-24", "-final"), and
            "best_of". Some may answer only the first prompts, to which all points are cut.
        names: of the policies, the reference first.
        verdicts: the judge's; a checkpoint's name is that of its file.
    """
    reference, *others = names
    truth = "gold" if scores[reference][0]["gold"] is not None else "judge"
    best = scores.get("best_of", [])
    steps = {name: {} for name in names}
    for key, rows in scores.items():
        name, _, step = key.removeprefix("checkpoints/").rpartition("-")
        if key.startswith("checkpoints/") and name in names:
            steps[name][step] = rows
    files = [*(scores[name] for name in names), *(rows for of in steps.values() for rows in of.values()), best]
    prompts = min(len(per_prompt(rows, "proxy")) for rows in files if rows)

    def point(label: str, key: str, rows: list[dict]) -> dict:
        true = per_prompt(rows, "gold")[:prompts] if truth == "gold" else _judged(key, reference, verdicts, prompts)
        return {
            "label": label,
            "kl": None if rows[0]["kl"] is None else per_prompt(rows, "kl")[:prompts],
            "proxy": per_prompt(rows, "proxy")[:prompts],
            truth: true,
        }

    curves = {}
    for name in others:
        middle = sorted(steps[name].keys() - {"final"}, key=int)
        curves[name] = [
            point("start", reference, steps[reference].get("final", scores[reference])),
            *(point(f"step {step}", f"checkpoints/{name}-{step}", steps[name][step]) for step in middle),
            point("final", name, steps[name].get("final", scores[name])),
        ]
    if best:
        curves["best_of_n"] = [
            # without a gold rule the truth is not a number, as nobody judges these
            {"label": f"n = {n}", "n": n, "proxy": best_of(best, "proxy", n)[:prompts]}
            | {truth: best_of(best, "gold", n)[:prompts]}
            for n in BEST_OF
            if n <= per_reply(best, "proxy").shape[1]
        ]
    contrasts = _contrasts(curves, truth, seed)
    return {
        "prompts": prompts,
        "truth": truth,
        "tested": bool(contrasts),
        "has_path": any(steps.values()) or bool(best),
        "curves": {
            name: [
                {
                    "label": point["label"],
                    "sqrt_kl": _sqrt_kl(point, seed),
                    "proxy": intervals.bootstrap_mean(point["proxy"], seed),
                    truth: _share(point[truth]),
                }
                for point in points
            ]
            for name, points in curves.items()
        },
        "falls": [contrast for contrast in contrasts if contrast["true"].upper < 0],
    }


def best_of(rows: list[dict], column: str, n: int) -> np.ndarray:
    """Expected value of a column for the best of n of the replies by the proxy reward, shape (prompts,)."""
    return (intervals.best_of_n_weights(per_reply(rows, "proxy"), n) * per_reply(rows, column)).sum(1)


def best_of_kl(n: int) -> Interval:
    """The KL of best-of-n from what it draws from, in nats: at most this (Beirami et al. 2024, arXiv 2401.01879)."""
    return Interval(float(np.log(n) - (n - 1) / n))


def _contrasts(curves: dict[str, list[dict]], truth: str, seed: int) -> list[dict]:
    """Each point of a curve against its end, in proxy and truth, paired by prompt: two families of differences."""
    pairs = [
        (name, point, points[-1])
        for name, points in curves.items()
        for point in points[:-1]
        if not np.isnan(point[truth] + points[-1][truth]).all()
    ]
    if not pairs:
        return []
    proxy, true = (
        intervals.family(np.array([end[m] - point[m] for _, point, end in pairs]).T, seed=seed, **REACH[measure])
        for m, measure in (("proxy", "proxy reward"), (truth, MEASURE_OF[truth]))
    )
    return [
        {"curve": name, "from": point["label"], "to": end["label"], "proxy": rise, "true": fall}
        for (name, point, end), rise, fall in zip(pairs, proxy, true, strict=True)
    ]


def _judged(key: str, reference: str, verdicts: Verdicts, prompts: int) -> np.ndarray:
    """The judge's score against the reference by prompt, shape (prompts,), nan where there is none."""
    if key == reference:
        return np.full(prompts, 0.5 if verdicts else np.nan)
    rows = verdicts.get((key, reference), {})
    return np.array([np.mean([row["score"] for row in rows[i]]) if i in rows else np.nan for i in range(prompts)])


def _sqrt_kl(point: dict, seed: int) -> Interval | None:
    """The root of the KL with the roots of its interval's ends; None of sampled log-ratios that are no KL."""
    if "n" in point:
        kl = best_of_kl(point["n"])
    elif point["kl"] is None:
        return None
    else:
        kl = intervals.bootstrap_mean(point["kl"], seed)
    ends = [end for end in astuple(kl) if end is not None]
    return None if min(ends) < 0 else Interval(*np.sqrt(ends).tolist())


def _share(values: np.ndarray) -> Interval | None:
    values = values[~np.isnan(values)]
    return intervals.share(values) if len(values) else None
