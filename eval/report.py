"""Write the report of a profile: `ANALYSIS.md`, a self-contained `report.html`, `summary.json` and the figures.

    make report PROFILE=gpt2
    python -m eval report --config configs/gpt2/eval.yaml

Every number comes from the files of the run; the sentences follow from the tests. A stage that did not run is
said to be missing.
"""

import base64
import shutil
from pathlib import Path

from eval import figures
from eval.config import EvalConfig, JudgeConfig
from eval.files import read_jsonl, render, replaced, write_json
from eval.summary import claims, column, headline, summarise
from rlhf_trl.config import DataConfig


def main(_: DataConfig, config: EvalConfig, __: JudgeConfig) -> None:
    print(f"The report is in {write_report(config) / 'ANALYSIS.md'}")


def write_report(config: EvalConfig) -> Path:
    """Make OUTPUT_DIR/report from what the other commands left in OUTPUT_DIR; returns its folder.

    Raises:
        UserError: nothing was scored yet.
    """
    root = Path(config.output_dir)
    summary = summarise(root, config)
    report = root / "report"
    unbeaten, sentences = claims(summary["comparisons"])
    with replaced(report) as staging:
        write_json(staging / "summary.json", summary)
        captions = draw(summary, root, config, staging)
        context = {
            "summary": summary,
            "headline": headline(summary["comparisons"], unbeaten),
            "sentences": sentences,
            "missing": summary["missing"],
            "figures": captions,
            "images": {stem: _data_uri(staging / f"{stem}.svg") for stem in captions},
            "prompts": side_by_side(root, list(summary["policies"])),
        }
        for page in ("ANALYSIS.md", "report.html"):
            (staging / page).write_text(render(page, **context), encoding="utf-8")
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
    figures.optimisation(summary["optimisation"]["curves"], summary["optimisation"]["truth"], folder / "optimisation")
    captions["optimisation"] = "Reward along training and along best-of-n, against the root of the KL"
    card = root / "reward-model"
    copies = {}
    if summary["reward_model"]:
        copies["reward_distributions"] = (card / "reward_distributions", "Scores of chosen and rejected replies")
        copies["reliability"] = (card / "reliability", "How often the reward model is right, by how sure it is")
    for name, run in ({"reward": config.reward_model_folder} | config.folders).items():
        copies[f"{name}_curves"] = (Path(run) / "curves", f"Training curves of {name}")
    for stem, (source, caption) in copies.items():
        if source.with_suffix(".svg").exists():
            for suffix in (".png", ".svg"):
                shutil.copy(source.with_suffix(suffix), folder / f"{stem}{suffix}")
            captions[stem] = caption
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


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
