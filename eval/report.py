"""Write the report of a profile: `ANALYSIS.md`, a self-contained `report.html`, `summary.json` and the figures.

    make report PROFILE=gpt2
    python -m eval report --config configs/gpt2/eval.yaml

Every number comes from the files of the run; the sentences follow from the tests. A stage that did not run is
said to be missing.
"""

import base64
import shutil
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from eval import figures
from eval.config import CONFIGS, EvalConfig, read_jsonl, write_json
from eval.summary import MISSING, claims, column, summarise
from rlhf_trl.config import parse


def main() -> None:
    _, config, _ = parse(__doc__, *CONFIGS)
    print(f"The report is in {write_report(config) / 'ANALYSIS.md'}")


def write_report(config: EvalConfig) -> Path:
    """Make OUTPUT_DIR/report from what the other commands left in OUTPUT_DIR; returns its folder.

    Raises:
        UserError: nothing was scored yet.
    """
    root = Path(config.output_dir)
    summary = summarise(root, config)
    report, staging = root / "report", root / "report.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    write_json(staging / "summary.json", summary)
    captions = draw(summary, root, config, staging)
    unbeaten, sentences = claims(summary["comparisons"])
    environment = Environment(
        loader=PackageLoader("eval", "templates"),
        undefined=StrictUndefined,
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": _interval, "percent": lambda share: f"{share:.1%}"}
    context = {
        "summary": summary,
        "unbeaten": unbeaten,
        "sentences": sentences,
        "missing": {name: MISSING[name] for name in summary["missing"]},
        "figures": captions,
    }
    (staging / "ANALYSIS.md").write_text(environment.get_template("ANALYSIS.md").render(context), encoding="utf-8")
    context["images"] = {stem: _data_uri(staging / f"{stem}.svg") for stem in captions}
    context["prompts"] = side_by_side(root, list(summary["policies"]))
    (staging / "report.html").write_text(environment.get_template("report.html").render(context), encoding="utf-8")
    shutil.rmtree(report, ignore_errors=True)
    staging.rename(report)
    return report


def draw(summary: dict, root: Path, config: EvalConfig, folder: Path) -> dict[str, str]:
    """Draw all figures for which there are numbers; returns their captions by file name."""
    proxies = {name: column(read_jsonl(root / "scores" / f"{name}.jsonl"), "proxy") for name in summary["policies"]}
    figures.comparisons(summary["comparisons"], folder / "comparisons")
    figures.reward_kl(summary["policies"], folder / "reward_kl")
    figures.histograms({"proxy reward (sd)": proxies}, folder / "rewards")
    captions = {
        "comparisons": "Every pair with its 95% interval; filled where the corrected test shows a difference",
        "reward_kl": f"Reward against sequence KL from {summary['reference']}, with 95% intervals",
        "rewards": "Distribution of the proxy reward",
    }
    if summary["judge"]:
        figures.win_rates(summary["judge"]["pairs"], folder / "win_rates")
        captions["win_rates"] = "Win rate of the row against the column, both orders judged"
    if summary["optimisation"]:
        figures.optimisation(summary["optimisation"]["curves"], folder / "optimisation")
        captions["optimisation"] = (
            "Over-optimisation: reward along training and along best-of-n, against the root of the KL"
        )
    copies = {f"{name}_curves": Path(run) / "curves" for name, run in _runs(config).items()}
    copies |= {name: root / "reward-model" / name for name in ("reward_distributions", "reliability")}
    for stem, source in copies.items():
        if source.with_suffix(".svg").exists():
            for suffix in (".png", ".svg"):
                shutil.copy(source.with_suffix(suffix), folder / f"{stem}{suffix}")
            captions[stem] = stem.replace("_", " ").capitalize()
    return captions


def side_by_side(root: Path, names: list[str]) -> list[dict]:
    """For each prompt the replies of all policies, with their scores and the judge's verdicts."""
    rows = {name: read_jsonl(root / "scores" / f"{name}.jsonl") for name in names}
    verdicts: dict[int, dict[str, float]] = {}
    for verdict in read_jsonl(root / "judge" / "verdicts.jsonl"):
        verdicts.setdefault(verdict["prompt"], {})[f"{verdict['a']}:{verdict['b']}"] = verdict["score"]
    shown = ("completion", "finished", "proxy", "gold")
    return [
        {
            "dialogue": row["dialogue"],
            "replies": {name: {key: rows[name][i][key] for key in shown} for name in names},
            "verdicts": verdicts.get(i, {}),
        }
        for i, row in enumerate(rows[names[0]])
    ]


def _runs(config: EvalConfig) -> dict[str, str]:
    return {"reward": config.reward_model_folder} | config.folders


def _interval(estimate: dict | None, digits: int = 2) -> str:
    if estimate is None:
        return "none"
    mean = estimate.get("mean", estimate.get("diff"))
    return f"{mean:.{digits}f} [{estimate['ci'][0]:.{digits}f}, {estimate['ci'][1]:.{digits}f}]"


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
