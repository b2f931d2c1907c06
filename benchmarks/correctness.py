"""Do the trainers reach an optimum that is known in closed form? Writes what they do to docs/correctness.md and .svg.

make correctness
python benchmarks/correctness.py --seeds 0 1 2 3 4 --learning_rate 0.001 --output /tmp/correctness
"""

import argparse
import itertools
import time
import warnings
from pathlib import Path

import bandits
import datasets
import matplotlib
import numpy as np
import torch
import transformers
from bandits import BANDITS, METHODS, METHODS_OF, STRENGTHS, Run, total_variation, train
from matplotlib.figure import Figure
from pages import markdown_table, render
from trl import GRPOConfig
from trl.experimental.ppo import PPOConfig

from eval.pages.figures import SVG

TARGET = 0.05  # up to this total variation the optimum counts as reached
SHARES = (0.1, 0.5)  # of the training, after which the two PPO trainers are compared
TITLES = ["b", "policy", "TV, mean", "TV, largest", "KL from the reference (nats)", "E[reward]", "E[reward] - b KL"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    # DPO's number of pairs and batches were chosen on the seeds 0 to 2
    parser.add_argument("--seeds", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--learning_rate", type=float, default=3e-3, help="of all methods, at the start")
    parser.add_argument("--output", type=Path, default=Path("docs"), help="gets correctness.md and .svg")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # so small a model gains nothing from more
    warnings.simplefilter("ignore", FutureWarning)
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()

    start, runs = time.perf_counter(), []
    for (bandit, methods), b in itertools.product(METHODS_OF.items(), STRENGTHS):
        for method, seed in itertools.product(methods, args.seeds):
            runs.append(train(bandit, method, b, seed, learning_rate=args.learning_rate))
            seconds = time.perf_counter() - start
            found = f"{bandit}, b {b}, {method}, seed {seed}: TV {runs[-1].distance():.3f}"
            print(f"{seconds:4.0f} s: {found}", flush=True)
    plot(runs, args.output / "correctness.svg")
    page = args.output / "correctness.md"
    page.write_text(describe(runs, args.learning_rate, seconds))
    print(f"The result is in {page}")


def describe(runs: list[Run], learning_rate: float, seconds: float) -> str:
    """The page on some runs of all methods, in Markdown; what it claims depends on them."""
    one, two = ([run for run in runs if run.bandit == bandit] for bandit in BANDITS)
    ppos = {name: [run for run in one if run.method == name] for name in (bandits.CORRECTED, bandits.PLAIN)}
    grpo, bandit = [run for run in two if run.method == "GRPO"], BANDITS["two tokens"]
    from_limit = [total_variation(run.policies[-1], bandit.grpo_limit(run.strength)) for run in grpo]
    return render(
        "correctness.md.jinja",
        study=bandits,
        target=TARGET,
        claims={"one": claims(one), "two": claims(two)},
        tables={"one": table(one), "two": table(two)},
        taken=[f"{np.mean([run.steps for run in some]):.0f}" for some in ppos.values()],
        nearer=nearer(ppos),
        gaps=", ".join(f"{total_variation(bandit.grpo_limit(b), bandit.optimum(b)):.3f} (b {b})" for b in STRENGTHS),
        from_limit=f"{np.mean(from_limit):.3f}",
        from_optimum=f"{np.mean([run.distance() for run in grpo]):.3f}",
        seeds=" ".join(str(seed) for seed in sorted({run.seed for run in runs})),
        learning_rate=learning_rate,
        cliprange=PPOConfig.cliprange,
        epsilon=GRPOConfig.epsilon,
        seconds=round(seconds),
    )


def claims(runs: list[Run]) -> str:
    """Which methods reach the optimum in the runs on one bandit, as a Markdown list."""
    lines = []
    for method in METHODS_OF[runs[0].bandit]:
        some = [run for run in runs if run.method == method]
        missed = [f"b {run.strength}, seed {run.seed}" for run in some if run.distance() > TARGET]
        verdict = f"reaches the optimum in all of {len(some)} runs"
        if missed:
            verdict = f"misses the optimum in {len(missed)} of {len(some)} runs ({'; '.join(missed)})"
        lines.append(f"- **{method}** {verdict}; largest TV {max(run.distance() for run in some):.3f}.")
    return "\n".join(lines)


def nearer(ppos: dict[str, list[Run]]) -> str:
    """Which PPO trainer is nearer to the optimum on the way, a line for each of `SHARES`."""
    lines = []
    for share in SHARES:
        means = {method: np.mean([run.distance(share) for run in some]) for method, some in ppos.items()}
        near, far = sorted(means, key=means.get)
        lines.append(
            f"After {share:.0%} of the samples {near} is nearer: mean TV {means[near]:.3f} against {means[far]:.3f}."
        )
    return "\n".join(lines)


def table(runs: list[Run]) -> str:
    """A Markdown table with a row for the reference, the optimum and each method on one bandit, by b."""
    name, rows = runs[0].bandit, []
    bandit = BANDITS[name]
    for b in STRENGTHS:
        policies = {"reference": [bandit.reference], "optimum": [bandit.optimum(b)]}
        policies |= {"GRPO's limit": [bandit.grpo_limit(b)]} if bandit.length > 1 else {}
        for method in METHODS_OF[name]:
            policies[method] = [run.policies[-1] for run in runs if (run.method, run.strength) == (method, b)]
        for policy, some in policies.items():
            distances = total_variation(np.array(some), bandit.optimum(b))
            means = np.mean([(bandit.kl(p), p @ bandit.reward, bandit.objective(p, b)) for p in some], 0)
            numbers = [distances.mean(), distances.max(), *means]
            rows.append(dict(zip(TITLES, [f"{b}", policy, *(f"{number:.3f}" for number in numbers)], strict=True)))
    return markdown_table(rows)


def plot(runs: list[Run], path: Path) -> None:
    """Draw the final policies beside reference and optimum, and their distance during training; bars span the seeds."""
    figure = Figure(figsize=(5 * len(STRENGTHS), 6 * len(BANDITS)), layout="constrained")
    axes = figure.subplots(2 * len(BANDITS), len(STRENGTHS), sharey="row")
    shares = np.linspace(0, 1, bandits.ROUNDS + 1)
    for (row, (name, bandit)), (column, b) in itertools.product(enumerate(BANDITS.items()), enumerate(STRENGTHS)):
        answers, distances = axes[2 * row : 2 * row + 2, column]
        x = np.arange(len(bandit.reference))
        answers.bar(x, bandit.reference, 0.9, color="0.85", label="reference")
        answers.hlines(bandit.optimum(b), x - 0.45, x + 0.45, color="black", label="optimum")
        for method in METHODS_OF[name]:
            i = [*METHODS].index(method)
            some = [run for run in runs if (run.bandit, run.method, run.strength) == (name, method, b)]
            low, mean, high = span([run.policies[-1] for run in some])
            errors = (mean - low, high - mean)
            answers.errorbar(x + 0.2 * i - 0.3, mean, errors, fmt="o", markersize=3, color=f"C{i}", label=method)
            low, mean, high = span([run.distance(shares) for run in some])
            distances.plot(shares, mean, color=f"C{i}")
            distances.fill_between(shares, low, high, alpha=0.2, color=f"C{i}")
        distances.axhline(TARGET, color="grey", linestyle="--")
        answers.set(title=f"{name}, b = {b}", ylabel="probability")
        answers.set_xticks(x, bandit.answers, fontsize="small")
        distances.set(xlabel="share of the training", ylabel="TV from the optimum", yscale="log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2 + len(METHODS))
    with matplotlib.rc_context(SVG):
        figure.savefig(path, metadata={"Date": None})


def span(values: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Smallest, mean and largest over the runs."""
    return np.min(values, 0), np.mean(values, 0), np.max(values, 0)


if __name__ == "__main__":
    main()
