"""Write the report of a profile: `ANALYSIS.md`, a self-contained `report.html`, `summary.json` and the figures.

    make report PROFILE=gpt2
    python -m eval report --config configs/gpt2.yaml

Every number comes from the files of the run; the sentences follow from the tests. A stage that did not run is
said to be missing.
"""

import base64
import shutil
from pathlib import Path

from eval.analysis.comparisons import per_prompt
from eval.analysis.results import Results
from eval.analysis.summary import summarise
from eval.config import ReportConfig
from eval.pages import figures, sentences
from eval.pages.markdown import render
from eval.pages.page import body
from rlhf_trl.files import write_json
from rlhf_trl.provenance import Task

TRUTHS = {"gold": "gold reward", "judge": "judge's score"}
SHOWN = ("completion", "finished", "proxy", "gold")  # of a reply in the sample browser


def main(task: Task, config: ReportConfig) -> None:
    results = Results(config)
    summary = summarise(results)
    with task.written() as staging:
        write_json(staging / "summary.json", summary)
        pairs, curves = summary["comparisons"], summary["optimisation"]
        context = {
            "summary": summary,
            "headline": sentences.headline(pairs),
            "no_verdict": sentences.NO_VERDICT,
            "sentences": sentences.claims(pairs, summary["smallest_difference"], summary["same_method"]),
            "changes": sentences.changes(summary["signs"]["changes"]),
            "falls": sentences.falls(curves["falls"], TRUTHS[curves["truth"]]),
            "cautions": sentences.cautions(summary["judge"] or {}),
            "conditions": sentences.conditions(summary["conditions"]),
            "missing": summary["missing"],
            "figures": draw(summary, results, staging),
            "gold": results.has_gold,
            "cue": summary["policies"][summary["reference"]]["cue"] is not None,
        }
        text = render("ANALYSIS.md", **context)
        (staging / "ANALYSIS.md").write_text(text, encoding="utf-8")
        images = {f"{path.stem}.png": _data_uri(path) for path in staging.glob("*.svg")}
        page = render("report.html", **context, body=body(text, images), prompts=side_by_side(results))
        (staging / "report.html").write_text(page, encoding="utf-8")
    print(f"The report is in {task.folder / 'ANALYSIS.md'}")


def draw(summary: dict, results: Results, folder: Path) -> dict[str, str]:
    """Draw all figures for which there are numbers; returns the captions of those copied from other steps, by name."""
    figures.comparisons(summary["comparisons"], folder / "comparisons")
    figures.reward_kl(summary["policies"], folder / "reward_kl")
    proxies = {name: per_prompt(rows, "proxy") for name, rows in results.shown.items()}
    figures.histograms({"proxy reward (sd)": proxies}, folder / "rewards")
    if summary["judge"]:
        figures.win_rates(summary["judge"]["pairs"], folder / "win_rates")
    figures.optimisation(summary["optimisation"]["curves"], summary["optimisation"]["truth"], folder / "optimisation")
    copies = {}
    if results.card:
        card = results.root / "reward-model"
        copies["reward_distributions"] = (card / "reward_distributions", "Scores of chosen and rejected replies")
        copies["reliability"] = (card / "reliability", "How often the reward model is right, by how sure it is")
    for name, run in results.folders.items():
        copies[f"{name}_curves"] = (run / "curves", f"Training curves of {name}")
    captions = {}
    for stem, (source, caption) in copies.items():
        if source.with_suffix(".svg").exists():
            for suffix in (".png", ".svg"):
                shutil.copy(source.with_suffix(suffix), folder / f"{stem}{suffix}")
            captions[stem] = caption
    return captions


def side_by_side(results: Results) -> list[dict]:
    """For each prompt the first reply of every policy, with its scores and the judge's verdicts on it."""
    first = {name: [row for row in rows if row["reply"] == 0] for name, rows in results.shown.items()}
    verdicts = {f"{a}:{b}": prompts for (a, b), prompts in results.verdicts.items() if a in first}
    return [
        {
            "dialogue": rows[0]["dialogue"],
            "replies": {name: {key: row[key] for key in SHOWN} for name, row in zip(first, rows, strict=True)},
            "verdicts": {
                pair: row["score"]
                for pair, prompts in verdicts.items()
                for row in prompts.get(i, [])
                if row["reply"] == 0
            },
        }
        for i, rows in enumerate(zip(*first.values(), strict=True))
    ]


def _data_uri(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
