"""Curves of a run: how each metric went over the steps."""

import json
from pathlib import Path


def plot_curves(folder: Path) -> None:
    """Draw every metric of `metrics.jsonl` over the steps, and beside it what it is on validation rows, into
    `curves.png` and `curves.svg`."""
    from matplotlib.figure import Figure  # takes a second

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    skip = {"step", "epoch", "episode", "eps", "total_flos"}
    names = sorted({name for row in rows for name, value in row.items() if isinstance(value, (int, float))} - skip)
    series = {name: [(row["step"], row[name]) for row in rows if name in row] for name in names}
    panels = [name for name, points in series.items() if len(points) > 1 and not name.startswith("eval_")]
    if not panels:
        return
    columns = min(4, len(panels))
    lines = -(-len(panels) // columns)
    width, height = 3.2 * columns, 2.4 * lines  # inches
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(lines, columns, squeeze=False).flat
    for axis, name in zip(axes, panels, strict=False):
        axis.plot(*zip(*series[name], strict=True), linewidth=1)
        if f"eval_{name}" in series:
            axis.plot(*zip(*series[f"eval_{name}"], strict=True), "o-", markersize=3, linewidth=1, label="validation")
            axis.legend(fontsize=7)
        axis.set_title(name, fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=5)  # ticks take most of the time
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.subplots_adjust(0.65 / width, 0.3 / height, 1 - 0.1 / width, 1 - 0.3 / height, wspace=0.35, hspace=0.4)
    figure.savefig(folder / "curves.png", dpi=120)
    figure.savefig(folder / "curves.svg")
