"""Write the report of a profile: `report/ANALYSIS.md`, its figures and `report/summary.json`.

    make report PROFILE=gpt2
    python -m eval report --config configs/gpt2/eval.yaml

Every number comes from the files of the run; the sentences follow from the intervals.
"""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from eval import stats
from eval.config import EvalConfig
from rlhf_trl.config import parse
from rlhf_trl.data import DataConfig
from rlhf_trl.errors import UserError


def main() -> None:
    _, config = parse(__doc__, DataConfig, EvalConfig)
    root = Path(config.output_dir)
    summary = summarise(root, config.policies, config.seed)

    report = root / "report"
    staging = root / "report.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    (staging / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    plot_reward_kl(summary, staging / "reward_kl.png")
    curves = [name for name in ("reward", *config.policies) if (root / name / "curves.png").exists()]
    for name in curves:
        shutil.copy(root / name / "curves.png", staging / f"{name}_curves.png")
    environment = Environment(loader=PackageLoader("eval", "templates"), undefined=StrictUndefined, trim_blocks=True)
    environment.filters["interval"] = lambda e, digits=2: (
        f"{e['mean']:.{digits}f} [{e['ci'][0]:.{digits}f}, {e['ci'][1]:.{digits}f}]"
    )
    text = environment.get_template("ANALYSIS.md").render(
        summary=summary,
        reference=config.policies[0],
        verdicts=verdicts(summary["comparisons"]),
        curves=curves,
        manifests={name: json.loads((root / name / "manifest.json").read_text()) for name in curves},
        evaluation=json.loads((root / "eval" / "manifest.json").read_text()),
    )
    (staging / "ANALYSIS.md").write_text(text, encoding="utf-8")
    shutil.rmtree(report, ignore_errors=True)
    staging.rename(report)
    print(f"The report is in {report / 'ANALYSIS.md'}")


def summarise(root: Path, policies: list[str], seed: int) -> dict:
    """The numbers of `summary.json`, from the files that `score` and the recipes left in `root`.

    Raises:
        UserError: nothing was scored yet.
    """
    rows = {name: _read(root / "eval" / "policies" / f"{name}.jsonl") for name in policies}
    pairs = _read(root / "eval" / "reward_model.jsonl")
    evaluation = json.loads((root / "eval" / "manifest.json").read_text())
    margins = np.array([pair["scores_chosen"] - pair["scores_rejected"] for pair in pairs])
    accuracy = stats.proportion(float((margins > 0).sum() + 0.5 * (margins == 0).sum()), len(margins))
    return {
        "profile": root.name,
        "seed": evaluation["seed"],
        "machine": evaluation["machine"],
        "versions": evaluation["versions"],
        "prompts": len(rows[policies[0]]),
        "reward_model": {"accuracy": accuracy.mean, "ci": [accuracy.lower, accuracy.upper], "n": len(margins)},
        "comparisons": compare(rows, seed),
        "policies": {name: _policy(rows[name], rows[policies[0]], root / name, seed) for name in policies},
    }


def compare(rows: dict[str, list[dict]], seed: int) -> list[dict]:
    """Every pair of policies, on the gold reward where there is one, else on the proxy.

    Differences are paired by prompt; p-values are of a sign-flip test, Holm-corrected over all pairs.
    """
    measure = "gold" if next(iter(rows.values()))[0]["gold"] is not None else "proxy"
    pairs = [(b, a) for a, b in itertools.combinations(rows, 2)]
    differences = [_column(rows[a], measure) - _column(rows[b], measure) for a, b in pairs]
    p_values = [stats.sign_flip(difference, seed) for difference in differences]
    return [
        {"a": a, "b": b, "measure": measure, **_as_dict(stats.mean(difference, seed), "diff"), "p": p, "p_holm": p_holm}
        for (a, b), difference, p, p_holm in zip(pairs, differences, p_values, stats.holm(p_values), strict=True)
    ]


def verdicts(comparisons: list[dict]) -> list[str]:
    """What the corrected tests say, and no more: who is not shown to be worse, then each pair."""
    better = {(c["a"], c["b"]) if c["diff"] > 0 else (c["b"], c["a"]) for c in comparisons if _shown(c)}
    names = dict.fromkeys(name for c in comparisons for name in (c["b"], c["a"]))
    beaten = {worse for _, worse in better}
    sentences = [f"Not shown to be worse than any other: {', '.join(n.upper() for n in names if n not in beaten)}."]
    for c in comparisons:
        a, b, measure = c["a"].upper(), c["b"].upper(), f"{c['measure']} reward"
        if _shown(c):
            claim = f"{a}'s {measure} is {'higher' if c['diff'] > 0 else 'lower'} than {b}'s"
        else:
            claim = f"No difference in {measure} is shown between {a} and {b}"
        lower, upper = c["ci"]
        sentences.append(
            f"{claim} (difference {c['diff']:+.2f}, 95% CI {lower:+.2f} to {upper:+.2f}; "
            f"p = {c['p_holm']:.2g} after Holm's correction)."
        )
    return sentences


def plot_reward_kl(summary: dict, path: Path) -> None:
    """Reward against sequence KL, one point a policy with its 95% intervals; proxy and, if any, gold."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    policies = summary["policies"]
    measures = [m for m in ("proxy_reward", "gold_reward") if all(p[m] for p in policies.values())]
    figure, axes = plt.subplots(1, len(measures), figsize=(4.5 * len(measures), 3.5), squeeze=False)
    for axis, measure in zip(axes.flat, measures, strict=True):
        for name, policy in policies.items():
            x, y = policy["kl"], policy[measure]
            axis.errorbar(
                x["mean"],
                y["mean"],
                xerr=[[x["mean"] - x["ci"][0]], [x["ci"][1] - x["mean"]]],
                yerr=[[y["mean"] - y["ci"][0]], [y["ci"][1] - y["mean"]]],
                fmt="o",
                capsize=3,
                label=name,
            )
        axis.set_xlabel("sequence KL from the reference (nats)")
        axis.set_ylabel(measure.replace("_", " "))
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _shown(comparison: dict) -> bool:
    return comparison["p_holm"] < 0.05


def _column(rows: list[dict], name: str) -> np.ndarray:
    return np.array([row[name] for row in rows], dtype=float)


def _as_dict(estimate: stats.Estimate, name: str = "mean") -> dict:
    return {name: estimate.mean, "ci": [estimate.lower, estimate.upper]}


def _policy(rows: list[dict], reference: list[dict], folder: Path, seed: int) -> dict:
    def estimate(values: np.ndarray, name: str = "mean") -> dict:
        return _as_dict(stats.mean(values, seed), name)

    has_gold = rows[0]["gold"] is not None
    differences = {
        measure: estimate(_column(rows, measure) - _column(reference, measure), "diff")
        for measure in (("proxy", "gold") if has_gold else ("proxy",))
    }
    return {
        "proxy_reward": estimate(_column(rows, "proxy")),
        "gold_reward": _as_dict(stats.proportion(_column(rows, "gold").sum(), len(rows))) if has_gold else None,
        "vs_sft": {"gold": None} | differences,
        "kl": estimate(_column(rows, "log_ratio")),
        "completion_tokens": {"mean": float(_column(rows, "completion_tokens").mean())},
        "eos_rate": float(_column(rows, "finished").mean()),
        "train": json.loads((folder / "manifest.json").read_text())["train"],
    }


def _read(path: Path) -> list[dict]:
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise UserError(f"{path} is missing; run 'make score' first") from error
