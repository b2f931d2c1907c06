"""The figures, each as PNG and SVG. Drawn without pyplot: no backend to choose, no figure to close."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.analysis.comparisons import Comparison
from eval.analysis.intervals import Interval

# Text stays text, and the same numbers give the same file
SVG = {"svg.fonttype": "none", "svg.hashsalt": "rlhf-trl"}
LABELS = {"proxy": "proxy reward", "gold": "gold reward", "judge": "judge's score against the reference"}


def save(figure: Figure, stem: Path) -> None:
    """Write `stem`.png and `stem`.svg."""
    figure.savefig(f"{stem}.png", dpi=150)
    figure.set_layout_engine("none")  # done once is enough
    with matplotlib.rc_context(SVG):
        figure.savefig(f"{stem}.svg", metadata={"Date": None})


@contextmanager
def panels(stem: Path, width: float, height: float, number: int = 1) -> Iterator[list[Axes]]:
    """The axes of so many panels of one size in inches, side by side; what is drawn on them is then saved."""
    figure = Figure(figsize=(width * number, height), layout="constrained")
    yield list(figure.subplots(1, number, squeeze=False).flat)
    save(figure, stem)


def histograms(quantities: dict[str, dict[str, np.ndarray]], stem: Path) -> None:
    """A panel for each quantity, named with its unit; in it an outline for each labelled set of values, shape (n,)."""
    with panels(stem, 4, 3.2, len(quantities)) as axes:
        for axis, (quantity, sets) in zip(axes, quantities.items(), strict=True):
            edges = _edges(np.concatenate(list(sets.values())))
            for label, values in sets.items():
                axis.hist(values, edges, density=True, histtype="step", label=label)
            axis.set(xlabel=quantity, ylabel="density")
            axis.legend(fontsize="small", loc="upper right")  # looking for the best place takes seconds


def reliability(bins: list[dict], stem: Path) -> None:
    """Accuracy with its interval by confidence, as `calibration.reliability` bins them; calibrated = diagonal."""
    with panels(stem, 4, 4) as (axis,):
        axis.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", label="calibrated")
        accuracies, confidences = ([b[name] for b in bins] for name in ("accuracy", "confidence"))
        axis.vlines(confidences, [a.lower for a in accuracies], [a.upper for a in accuracies])
        axis.plot(confidences, [a.mean for a in accuracies], "o", label="reward model")
        axis.set(xlabel="confidence: sigmoid of |margin|", ylabel="accuracy", xlim=(0.5, 1), ylim=(0, 1.02))
        axis.legend(loc="lower right")


def comparisons(pairs: list[Comparison], stem: Path) -> None:
    """Forest plot: each pair's difference or win rate with its interval; filled where the corrected test shows one."""
    with panels(stem, 6, 0.8 + 0.35 * len(pairs)) as (axis,):
        for line, pair in enumerate(reversed(pairs)):
            fill = "C0" if pair.better else "white"
            axis.errorbar(pair.mean, line, xerr=_bars([pair]), fmt="o", color="C0", markerfacecolor=fill, capsize=3)
        axis.axvline(pairs[0].equal, color="grey", linestyle="--")
        axis.set_yticks(range(len(pairs)), [pair.pair for pair in reversed(pairs)])
        axis.set_xlabel(pairs[0].unit)


def reward_kl(policies: dict[str, dict], stem: Path) -> None:
    """Reward against sequence KL, one point a policy with its intervals; proxy and, if there is one, gold.

    Without the base model, which would be far away.
    """
    policies = {name: policy for name, policy in policies.items() if policy["kl"] and name != "base"}
    measures = [m for m in ("proxy_reward", "gold_reward") if all(policy[m] for policy in policies.values())]
    with panels(stem, 4.5, 3.6, len(measures)) as axes:
        for axis, measure in zip(axes, measures, strict=True):
            for name, policy in policies.items():
                x, y = policy["kl"], policy[measure]
                axis.errorbar(x.mean, y.mean, xerr=_bars([x]), yerr=_bars([y]), fmt="o", capsize=3, label=name)
            axis.set(xlabel="sequence KL from the reference (nats)", ylabel=measure.replace("_", " "))
            axis.legend(fontsize="small")


def win_rates(pairs: list[Comparison], stem: Path) -> None:
    """Matrix of win rates, row against column."""
    names = list(dict.fromkeys(name for pair in pairs for name in (pair.b, pair.a)))
    rates = np.full((len(names), len(names)), np.nan)
    for pair in pairs:
        a, b = names.index(pair.a), names.index(pair.b)
        rates[a, b], rates[b, a] = pair.mean, 1 - pair.mean
    with panels(stem, 0.9 * len(names) + 1.5, 0.8 * len(names) + 1) as (axis,):
        axis.imshow(rates, cmap="RdBu", vmin=0, vmax=1)
        for (i, j), rate in np.ndenumerate(rates):
            if not np.isnan(rate):
                color = "white" if abs(rate - 0.5) > 0.3 else "black"
                axis.text(j, i, f"{rate:.2f}", ha="center", va="center", color=color)
        axis.set_xticks(range(len(names)), names)
        axis.set_yticks(range(len(names)), names)


def optimisation(curves: dict[str, list[dict]], truth: str, stem: Path) -> None:
    """Proxy and, where there is one, true preference along each curve's points, against the root of the KL."""
    measures = [m for m in ("proxy", truth) if any(point[m] for points in curves.values() for point in points)]
    with panels(stem, 4.5, 3.6, len(measures)) as axes:
        for axis, measure in zip(axes, measures, strict=True):
            for name, points in curves.items():
                known = [point for point in points if point[measure] and point["sqrt_kl"]]
                if known:
                    x, y = ([point[quantity] for point in known] for quantity in ("sqrt_kl", measure))
                    line = {"fmt": "o--" if name == "best_of_n" else "o-", "capsize": 2, "markersize": 3}
                    axis.errorbar([e.mean for e in x], [e.mean for e in y], yerr=_bars(y), label=name, **line)
            axis.set(xlabel="square root of the KL (nats)", ylabel=LABELS[measure])
            axis.legend(fontsize="small")


def _bars(intervals: list[Interval]) -> np.ndarray:
    """Distances from the means to the ends of their intervals, shape (2, n), as matplotlib takes them; 0 for none."""
    ends = [(i.mean, i.mean) if i.lower is None else (i.lower, i.upper) for i in intervals]
    means = np.array([[i.mean] for i in intervals])
    return ((np.array(ends) - means) * (-1, 1)).T.clip(min=0)


def _edges(values: np.ndarray) -> np.ndarray:
    if not np.issubdtype(values.dtype, np.integer):
        return np.histogram_bin_edges(values, bins="auto")
    width = -(-int(np.ptp(values) + 1) // 60)  # a whole number: else some bins would count more values than others
    return np.arange(values.min(), values.max() + width + 1, width) - 0.5
