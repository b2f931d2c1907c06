"""Over-optimisation: proxy reward and true preference along training and along best-of-n (Gao et al. 2023, 2210.10760).

The true preference is the gold rule where the profile has one, else the judge's score against the reference.
"""

import itertools

import numpy as np

from eval import stats

BEST_OF = (1, 2, 4, 8, 16, 32, 64, 128, 256)


def optimisation(
    scores: dict[str, list[dict]],
    checkpoints: dict[str, dict[str, list[dict]]],
    best: list[dict],
    verdicts: dict[tuple[str, str], dict[int, float]],
    seed: int,
) -> dict:
    """Points of all curves, and where a proxy that rose is shown to have lost true preference.

    Args:
        scores: rows of each policy, the reference first.
        checkpoints: rows of each policy's checkpoints by step, and of its end ("final"); they may answer only the
            first prompts.
        best: rows of `best_of.jsonl`, all replies to one prompt in a row.
        verdicts: the judge's score of (a, b) by prompt; a checkpoint's name is that of its file.
    """
    reference, *others = scores
    truth = "gold" if scores[reference][0]["gold"] is not None else "judge"
    size = len(scores[reference])
    replies = len(best) // len({row["dialogue"] for row in best}) if best else 0
    lengths = [len(rows) for steps in checkpoints.values() for rows in steps.values()]
    prompts = min([*lengths, len(best) // replies if replies else size])

    curves = {}
    for name in others:
        known = checkpoints.get(name, {})
        steps = sorted(known.keys() - {"final"}, key=int)
        start = checkpoints.get(reference, {}).get("final", scores[reference])
        path = [("start", reference, start)]
        path += [(f"step {step}", f"checkpoints/{name}-{step}", known[step]) for step in steps]
        path += [("final", name, known.get("final", scores[name]))]
        points = [
            {
                "label": label,
                "sqrt_kl": _sqrt_kl(rows[:prompts]),
                "proxy": _padded([row["proxy"] for row in rows], size),
                truth: _padded([row["gold"] for row in rows], size)
                if truth == "gold"
                else _judged(key, reference, verdicts, size),
            }
            for label, key, rows in path
        ]
        curves[name] = points
    if best:
        table = {m: np.array([row[m] for row in best], dtype=float).reshape(-1, replies) for m in ("proxy", "gold")}
        ns = [n for n in BEST_OF if n <= replies]
        weights = {n: stats.best_of(table["proxy"], n) for n in ns}
        curves["best_of_n"] = [
            {
                "label": f"n = {n}",
                "sqrt_kl": float(np.sqrt(np.log(n) - (n - 1) / n)),
                "proxy": (weights[n] * table["proxy"]).sum(1),
                truth: (weights[n] * table["gold"]).sum(1),  # not a number without a gold rule
            }
            for n in ns
        ]
    contrasts = _contrasts(curves, truth, seed)
    return {
        "prompts": prompts,
        "truth": truth,
        "tested": bool(contrasts),
        "has_path": bool(lengths or best),
        "curves": {
            name: [
                {
                    "label": point["label"],
                    "sqrt_kl": point["sqrt_kl"],
                    **{m: _estimate(point[m][:prompts], seed) for m in ("proxy", truth)},
                }
                for point in points
            ]
            for name, points in curves.items()
        },
        "overoptimised": [c for c in contrasts if c["p_holm"] < 0.05 and c["true"] < 0],
    }


def _contrasts(curves: dict[str, list[dict]], truth: str, seed: int) -> list[dict]:
    """Each point of a curve against its end, in proxy and truth, paired by prompt.

    Both must be shown, the proxy's rise by its interval, the truth's fall by a sign-flip test that is Holm-corrected
    over all contrasts of the report.
    """
    contrasts = []
    for name, points in curves.items():
        for point, end in ((point, points[-1]) for point in points[:-1]):
            both = ~np.isnan(point["proxy"] + end["proxy"] + point[truth] + end[truth])
            if both.sum() < 2:
                continue
            proxy, true = ((end[m] - point[m])[both] for m in ("proxy", truth))
            rose = stats.mean(proxy, seed).lower > 0
            contrasts.append(
                {
                    "curve": name,
                    "from": point["label"],
                    "to": end["label"],
                    "proxy": float(proxy.mean()),
                    "true": float(true.mean()),
                    "p": stats.sign_flip(true, seed) if rose else 1.0,
                }
            )
    corrected = stats.holm([c["p"] for c in contrasts]) if contrasts else []
    return [c | {"p_holm": p} for c, p in zip(contrasts, corrected, strict=True)]


def _judged(key: str, reference: str, verdicts: dict[tuple[str, str], dict[int, float]], size: int) -> np.ndarray:
    """The judge's score against the reference by prompt, shape (size,), nan where there is none."""
    if key == reference:
        return np.full(size, 0.5 if verdicts else np.nan)
    scores = verdicts.get((key, reference), {})
    return np.array([scores.get(i, np.nan) for i in range(size)])


def _padded(values: list[float], size: int) -> np.ndarray:
    return np.array([*values, *itertools.repeat(np.nan, size - len(values))], dtype=float)


def _sqrt_kl(rows: list[dict]) -> float | None:
    if rows[0]["log_ratio"] is None:
        return None
    return float(np.sqrt(max(np.mean([row["log_ratio"] for row in rows]), 0)))


def _estimate(values: np.ndarray, seed: int) -> dict | None:
    values = values[~np.isnan(values)]
    return stats.as_dict(stats.mean(values, seed)) if len(values) > 1 else None
