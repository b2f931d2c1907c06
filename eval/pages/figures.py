"""The figures, each as PNG and SVG. Drawn without pyplot: no backend to choose, no figure to close."""

from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# Text stays text, and the same numbers give the same file
SVG = {"svg.fonttype": "none", "svg.hashsalt": "rlhf-trl"}


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg."""
    figure.savefig(f"{stem}.png", dpi=150)
    figure.set_layout_engine("none")  # done once is enough
    with matplotlib.rc_context(SVG):
        figure.savefig(f"{stem}.svg", metadata={"Date": None})


def histograms(panels: dict[str, dict[str, np.ndarray]], stem: Path) -> None:
    """A panel for each quantity, named with its unit; in it an outline for each labelled set of values, shape (n,)."""
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False).flat
    for axis, (quantity, sets) in zip(axes, panels.items(), strict=True):
        edges = _edges(np.concatenate(list(sets.values())))
        for label, values in sets.items():
            axis.hist(values, edges, density=True, histtype="step", label=label)
        axis.set(xlabel=quantity, ylabel="density")
        axis.legend(fontsize="small", loc="upper right")  # looking for the best place takes seconds
    save(figure, stem)


def reliability(bins: list[dict], stem: Path) -> None:
    """Accuracy with its interval against confidence, as `eval.metrics.reliability` bins them; calibrated = diagonal."""
    confidence, accuracy = ([b[name] for b in bins] for name in ("confidence", "accuracy"))
    figure = Figure(figsize=(4, 4), layout="constrained")
    axis = figure.subplots()
    axis.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="calibrated")
    axis.vlines(confidence, *zip(*(b["ci"] for b in bins), strict=True))
    axis.plot(confidence, accuracy, "o", label="reward model")
    axis.set(xlabel="confidence: sigmoid of |margin|", ylabel="accuracy", xlim=(0.5, 1), ylim=(0, 1.02))
    axis.legend(loc="lower right")
    save(figure, stem)


def comparisons(pairs: list[dict], stem: Path) -> None:
    """Forest plot: each pair's difference or win rate with its interval; filled where the corrected test shows one."""
    figure = Figure(figsize=(6, 0.8 + 0.35 * len(pairs)), layout="constrained")
    axis = figure.subplots()
    for line, pair in enumerate(reversed(pairs)):
        fill = "C0" if pair["better"] else "white"
        axis.errorbar(pair["mean"], line, xerr=_bars([pair]), fmt="o", color="C0", markerfacecolor=fill, capsize=3)
    axis.axvline(pairs[0]["equal"], color="grey", linestyle="--")
    axis.set_yticks(range(len(pairs)), [f"{pair['a']} against {pair['b']}" for pair in reversed(pairs)])
    axis.set_xlabel(pairs[0]["measure"] + (" difference" if pairs[0]["equal"] == 0 else ""))
    save(figure, stem)


def reward_kl(policies: dict[str, dict], stem: Path) -> None:
    """Reward against sequence KL, one point a policy with its intervals; proxy and, if there is one, gold.

    Without the base model, which would be far away.
    """
    policies = {name: policy for name, policy in policies.items() if policy["kl"] and name != "base"}
    measures = [m for m in ("proxy_reward", "gold_reward") if all(policy[m] for policy in policies.values())]
    figure = Figure(figsize=(4.5 * len(measures), 3.6), layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(measures), squeeze=False).flat, measures, strict=True):
        for name, policy in policies.items():
            x, y = policy["kl"], policy[measure]
            axis.errorbar(x["mean"], y["mean"], xerr=_bars([x]), yerr=_bars([y]), fmt="o", capsize=3, label=name)
        axis.set(xlabel="sequence KL from the reference (nats)", ylabel=measure.replace("_", " "))
        axis.legend(fontsize="small")
    save(figure, stem)


def win_rates(pairs: list[dict], stem: Path) -> None:
    """Matrix of win rates, row against column."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair["b"], pair["a"])))
    rates = np.full((len(names), len(names)), np.nan)
    for pair in pairs:
        a, b = names.index(pair["a"]), names.index(pair["b"])
        rates[a, b], rates[b, a] = pair["mean"], 1 - pair["mean"]
    figure = Figure(figsize=(0.9 * len(names) + 1.5, 0.8 * len(names) + 1), layout="constrained")
    axis = figure.subplots()
    axis.imshow(rates, cmap="RdBu", vmin=0, vmax=1)
    for (i, j), rate in np.ndenumerate(rates):
        if not np.isnan(rate):
            color = "white" if abs(rate - 0.5) > 0.3 else "black"
            axis.text(j, i, f"{rate:.2f}", ha="center", va="center", color=color)
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    save(figure, stem)


def optimisation(curves: dict[str, list[dict]], truth: str, stem: Path) -> None:
    """Proxy and, where there is one, true preference along each curve's points, against the root of the KL."""
    measures = [m for m in ("proxy", truth) if any(point[m] for points in curves.values() for point in points)]
    figure = Figure(figsize=(4.5 * len(measures), 3.6), layout="constrained")
    for axis, measure in zip(figure.subplots(1, len(measures), squeeze=False).flat, measures, strict=True):
        for name, points in curves.items():
            known = [point for point in points if point[measure] and point["sqrt_kl"] is not None]
            if known:
                x, y = [point["sqrt_kl"]["mean"] for point in known], [point[measure] for point in known]
                line = "--" if name == "best_of_n" else "-"
                means = [e["mean"] for e in y]
                axis.errorbar(x, means, yerr=_bars(y), fmt=f"o{line}", capsize=2, label=name, markersize=3)
        axis.set(xlabel="square root of the KL (nats)", ylabel=LABELS[measure])
        axis.legend(fontsize="small")
    save(figure, stem)


LABELS = {"proxy": "proxy reward", "gold": "gold reward", "judge": "judge's score against the reference"}


def _bars(estimates: list[dict]) -> np.ndarray:
    """Distances from the means to the ends of their intervals, shape (2, n), as matplotlib takes them; 0 for none."""
    means = np.array([[e["mean"]] for e in estimates])
    ends = np.array([e["ci"] or (e["mean"], e["mean"]) for e in estimates])
    return ((ends - means) * (-1, 1)).T.clip(min=0)


def _edges(values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        return np.histogram_bin_edges(values, bins="auto")
    width = -(-int(np.ptp(values) + 1) // 60)  # a whole number: else some bins would count more values than others
    return np.arange(values.min(), values.max() + width + 1, width) - 0.5
