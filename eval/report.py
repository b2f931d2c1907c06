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
from eval.analysis.summary import summarise
from eval.config import ReportConfig
from eval.files import render
from eval.pages import figures, sentences
from eval.pages.page import body
from rlhf_trl.files import files_hash, read_jsonl, replaced, write_json
from rlhf_trl.provenance import MANIFEST, Task

TRUTHS = {"gold": "gold reward", "judge": "judge's score"}


def main(task: Task, config: ReportConfig) -> None:
    root = Path(config.output_dir)
    summary = summarise(root, config)
    with replaced(task.folder) as staging:
        write_json(staging / "summary.json", summary)
        captions = draw(summary, root, config, staging)
        pairs, truth = summary["comparisons"], summary["optimisation"]["truth"]
        context = {
            "summary": summary,
            "headline": sentences.headline(pairs),
            "no_verdict": sentences.NO_VERDICT,
            "sentences": sentences.claims(pairs, summary["smallest_difference"]),
            "changes": sentences.changes(summary["signs"]["changes"]),
            "falls": sentences.falls(summary["optimisation"]["falls"], TRUTHS[truth]),
            "cautions": sentences.cautions(summary["judge"] or {}),
            "missing": summary["missing"],
            "figures": captions,
            "gold": summary["policies"][summary["reference"]]["gold_reward"] is not None,
            "cue": summary["policies"][summary["reference"]]["cue"] is not None,
        }
        text = render("ANALYSIS.md", **context)
        (staging / "ANALYSIS.md").write_text(text, encoding="utf-8")
        images = {f"{path.stem}.png": _data_uri(path) for path in staging.glob("*.svg")}
        prompts = side_by_side(root, list(summary["policies"]))
        page = render("report.html", **context, body=body(text, images), prompts=prompts)
        (staging / "report.html").write_text(page, encoding="utf-8")
        write_json(staging / MANIFEST, task.manifest(files_hash(staging)))
    print(f"The report is in {task.folder / 'ANALYSIS.md'}")


def draw(summary: dict, root: Path, config: ReportConfig, folder: Path) -> dict[str, str]:
    """Draw all figures for which there are numbers; returns the captions of those copied from other steps, by name."""
    scores = {name: read_jsonl(root / "scores" / f"{name}.jsonl") for name in summary["policies"]}
    figures.comparisons(summary["comparisons"], folder / "comparisons")
    figures.reward_kl(summary["policies"], folder / "reward_kl")
    proxies = {name: per_prompt(rows, "proxy") for name, rows in scores.items()}
    figures.histograms({"proxy reward (sd)": proxies}, folder / "rewards")
    if summary["judge"]:
        figures.win_rates(summary["judge"]["pairs"], folder / "win_rates")
    figures.optimisation(summary["optimisation"]["curves"], summary["optimisation"]["truth"], folder / "optimisation")
    card = root / "reward-model"
    copies = {}
    if summary["reward_model"]:
        copies["reward_distributions"] = (card / "reward_distributions", "Scores of chosen and rejected replies")
        copies["reliability"] = (card / "reliability", "How often the reward model is right, by how sure it is")
    for name, run in ({"reward": config.reward_model} | config.folders).items():
        copies[f"{name}_curves"] = (Path(run) / "curves", f"Training curves of {name}")
    captions = {}
    for stem, (source, caption) in copies.items():
        if source.with_suffix(".svg").exists():
            for suffix in (".png", ".svg"):
                shutil.copy(source.with_suffix(suffix), folder / f"{stem}{suffix}")
            captions[stem] = caption
    return captions


def side_by_side(root: Path, names: list[str]) -> list[dict]:
    """For each prompt the first reply of every policy, with its scores and the judge's verdicts on it."""
    rows = {name: [row for row in read_jsonl(root / "scores" / f"{name}.jsonl") if row["reply"] == 0] for name in names}
    verdicts: dict[int, dict[str, float]] = {}
    for verdict in read_jsonl(root / "judge" / "verdicts.jsonl"):
        if verdict["reply"] == 0 and verdict["a"] in rows:
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
