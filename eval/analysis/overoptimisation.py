"""Over-optimisation: proxy reward and true preference along training and along best-of-n (Gao et al. 2023, 2210.10760).

The true preference is the gold rule where the profile has one, else the judge's score against the reference.
"""

import numpy as np

from eval.analysis import intervals
from eval.analysis.comparisons import REACH, per_prompt, per_reply

BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)
MEASURE_OF = {"gold": "gold reward", "judge": "win rate"}


def optimisation(
    scores: dict[str, list[dict]],
    checkpoints: dict[str, dict[str, list[dict]]],
    best: list[dict],
    verdicts: dict[tuple[str, str], dict[int, float]],
    seed: int,
) -> dict:
    """Points of all curves, and where the true preference is shown to have fallen to the end of its curve.

    Args:
        scores: rows of each policy, the reference first.
        checkpoints: rows of each policy's checkpoints by step, and of its end ("final"); they may answer only the
            first prompts, to which all points are cut.
        best: rows of `best_of.jsonl`.
        verdicts: the judge's score of (a, b) by prompt; a checkpoint's name is that of its file.
    """
    reference, *others = scores
    truth = "gold" if scores[reference][0]["gold"] is not None else "judge"
    files = [*scores.values(), *(rows for steps in checkpoints.values() for rows in steps.values()), best]
    prompts = min(len(per_reply(rows, "proxy")) for rows in files if rows)

    curves = {}
    for name in others:
        known = checkpoints.get(name, {})
        start = checkpoints.get(reference, {}).get("final", scores[reference])
        path = [("start", reference, start)]
        path += [
            (f"step {step}", f"checkpoints/{name}-{step}", known[step])
            for step in sorted(known.keys() - {"final"}, key=int)
        ]
        path += [("final", name, known.get("final", scores[name]))]
        curves[name] = [
            {
                "label": label,
                "kl": None if rows[0]["kl"] is None else per_prompt(rows, "kl")[:prompts],
                "proxy": per_prompt(rows, "proxy")[:prompts],
                truth: per_prompt(rows, "gold")[:prompts]
                if truth == "gold"
                else _judged(key, reference, verdicts, prompts),
            }
            for label, key, rows in path
        ]
    if best:
        curves["best_of_n"] = [
            {"label": f"n = {n}", "n": n, "kl": None} | {m: best_of(best, m, n)[:prompts] for m in ("proxy", "gold")}
            for n in BEST_OF
            if n <= per_reply(best, "proxy").shape[1]
        ]
        for point in curves["best_of_n"]:
            point.setdefault(truth, point["gold"])  # not a number without a gold rule, as nobody judges these
    contrasts = _contrasts(curves, truth, seed)
    return {
        "prompts": prompts,
        "truth": truth,
        "tested": bool(contrasts),
        "has_path": bool(checkpoints or best),
        "curves": {
            name: [
                {
                    "label": point["label"],
                    "sqrt_kl": _sqrt_kl(point, seed),
                    "proxy": intervals.as_dict(intervals.mean(point["proxy"], seed)),
                    truth: _share(point[truth]),
                }
                for point in points
            ]
            for name, points in curves.items()
        },
        "falls": [c for c in contrasts if c["ci"][1] < 0],
    }


def best_of(rows: list[dict], column: str, n: int) -> np.ndarray:
    """Expected value of a column for the best of n of the replies by the proxy reward, shape (prompts,)."""
    return (intervals.best_of_n_weights(per_reply(rows, "proxy"), n) * per_reply(rows, column)).sum(1)


def best_of_kl(n: int) -> float:
    """The KL of best-of-n from what it draws from, in nats: at most this (Beirami et al. 2024, arXiv 2401.01879)."""
    return float(np.log(n) - (n - 1) / n)


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
        {
            "curve": name,
            "from": point["label"],
            "to": end["label"],
            "proxy": rise.mean,
            "rose": rise.lower > 0,
            "true": fall.mean,
            "ci": [fall.lower, fall.upper],
            "p": fall.p,
        }
        for (name, point, end), rise, fall in zip(pairs, proxy, true, strict=True)
    ]


def _judged(key: str, reference: str, verdicts: dict[tuple[str, str], dict[int, float]], prompts: int) -> np.ndarray:
    """The judge's score against the reference by prompt, shape (prompts,), nan where there is none."""
    if key == reference:
        return np.full(prompts, 0.5 if verdicts else np.nan)
    scores = verdicts.get((key, reference), {})
    return np.array([scores.get(i, np.nan) for i in range(prompts)])


def _sqrt_kl(point: dict, seed: int) -> dict | None:
    """The root of the KL with the roots of its interval's ends; best-of-n's is a bound and has none."""
    if "n" in point:
        return {"mean": best_of_kl(point["n"]) ** 0.5, "ci": None}
    if point["kl"] is None:
        return None
    kl = intervals.as_dict(intervals.mean(point["kl"], seed))
    ends = [kl["mean"], *(kl["ci"] or ())]
    if min(ends) < 0:  # of sampled log-ratios: no estimate of a KL
        return None
    mean, *ci = np.sqrt(ends).tolist()
    return {"mean": mean, "ci": ci or None}


def _share(values: np.ndarray) -> dict | None:
    values = values[~np.isnan(values)]
    return intervals.as_dict(intervals.share(values)) if len(values) else None
