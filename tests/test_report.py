"""The report says what the files of the run say, of checkpoints and never of methods."""

import re

import numpy as np
import pytest
import yaml

from eval.analysis import intervals
from eval.analysis.results import Results
from eval.analysis.summary import summarise
from eval.config import ReportConfig
from eval.pages import sentences
from rlhf_trl.errors import UserError
from rlhf_trl.files import read_json, write_json, write_jsonl
from tests.made_up_run import made_up_run, row, write_report


def test_no_number_is_typed_in(tmp_path, monkeypatch):
    """Two runs that share no input share no number, but for those that name a method or a level."""
    monkeypatch.setattr(intervals, "RESAMPLES", 999)
    texts = []
    for seed, prompts, wins in ((3, 60, 0.5), (4, 83, 0.9)):
        root = tmp_path / f"run{'ab'[seed - 3]}"
        report = write_report(made_up_run(root, seed, prompts, wins))
        texts.append((report / "ANALYSIS.md").read_text())
    fixed = ("distinct-2", "3-grams", "n - 1", "95%", "5%", "80%", "SHA-256", "3 pairs", "best of 4", "p < 0.001")
    fixed += ("temperatures 1 and 0", "temperature 1", "temperature 0", "sampled at 1", "one half")
    lines = []
    for text in texts:
        for word in fixed:
            text = text.replace(word, "")
        claims_differ = [line for line in text.splitlines() if not line.startswith(("- ", "> "))]
        lines.append([(re.findall(r"-?\d[\d.]*\d|\d", line), line) for line in claims_differ])
    assert len(lines[0]) == len(lines[1])
    # sft's distance from itself is 0 in every run, and so are the marks of best-of-n and the bound of its KL
    known = {"0.00", "-0.00", "0", "1", "2", "4", "0.64", "0.44", "0.80"}
    same = [(a, text) for (a, text), (b, _) in zip(*lines, strict=True) if a and a == b]
    typed = [(numbers, text) for numbers, text in same if not set(numbers) <= known]
    assert typed == [], typed
    assert sum(len(numbers) for numbers, _ in lines[0]) > 250


def test_numbers_and_claims_follow_the_files(tmp_path):
    config = made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.6)
    summary = summarise(Results(config))
    ppo = next(c for c in summary["comparisons"] if (c.a, c.b) == ("ppo", "sft"))
    assert ppo.verdicts["wins"] + ppo.verdicts["ties"] + ppo.verdicts["losses"] == ppo.n == 100
    assert ppo.mean == pytest.approx((ppo.verdicts["wins"] + ppo.verdicts["ties"] / 2) / 100)
    gold = next(c for c in summary["measures"]["gold reward"] if (c.a, c.b) == ("ppo", "sft"))
    assert 2 * (ppo.mean - 0.5) == pytest.approx(gold.mean)
    assert summary["total_seconds"]["ppo"] == (100.5 * 3 + 2) + (100.5 * 3 + 1) + 100.5 * 3  # its own, sft's, reward's
    said = sentences.claims(summary["comparisons"], summary["smallest_difference"])
    decided = ppo.verdicts["wins"] + ppo.verdicts["losses"]
    value = f"win rate {ppo.mean:.2f}, {ppo.lower:.2f} to {ppo.upper:.2f}; {ppo.verdicts['wins']} of {decided} decided"
    assert said[0].startswith(f"The judge prefers the replies of checkpoint ppo to those of sft ({value}")
    assert said[1].startswith("No difference in win rate is shown between checkpoints dpo and sft")
    assert said[2].startswith("The judge prefers the replies of checkpoint ppo to those of dpo (win rate")

    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, checkpoint ppo gives better replies than every other checkpoint compared.**" in text
    for sentence in said:
        assert sentence in text
    made_up_run(tmp_path / "run", 3, 100, ppo_wins=0.0)
    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "**By the judge, no checkpoint is shown to be better than another.**" in text


def test_every_claim_is_about_checkpoints(tmp_path):
    """Whoever wins, no sentence has a method as its subject, and the first ones say that there is no verdict on it."""
    for wins in (0.0, 0.6):
        config = made_up_run(tmp_path / "run", 3, 100, ppo_wins=wins)
        report = write_report(config)
        text, page = ((report / name).read_text() for name in ("ANALYSIS.md", "report.html"))
        claims = [
            line for line in text.splitlines() if re.search("better|prefers|higher|equivalent|No difference", line)
        ]
        assert len(claims) >= 5
        for line in claims:
            assert "checkpoint" in line, line
        assert not re.search(r"\b(PPO|GRPO|DPO)('s| is| are| beats| has| gives)", text)
        for said in (text, page):
            assert re.search(rf"(?s)better.*{re.escape(sentences.NO_VERDICT)}", said[: said.index("What is matched")])


def test_two_runs_that_differ_in_their_seed_are_said_to_be_one_method(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    settings = yaml.safe_load((tmp_path / "ppo/config.yaml").read_text())
    manifest = yaml.safe_load((tmp_path / "ppo/manifest.json").read_text())

    def said(own: dict, run: dict) -> bool:
        (tmp_path / "dpo/config.yaml").write_text(yaml.safe_dump(settings | own))
        write_json(tmp_path / "dpo/manifest.json", manifest | {"sha256": "dpo"} | run)
        text = (write_report(config) / "ANALYSIS.md").read_text()
        return "Checkpoints ppo and dpo come from the same settings with another seed: what sets them apart" in text

    assert said({"seed": 1, "output_dir": "elsewhere"}, {"seed": 1})
    assert not said({"seed": 1, "learning_rate": 7}, {"seed": 1})
    assert not said({}, {})
    assert not said({"seed": 1}, {"seed": 1, "made_of": {"model": {"sha256": "other", "path": "p"}}})


def test_matched_is_said_only_of_what_was_checked(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    summary = summarise(Results(config))
    assert summary["matched"]
    assert [c["what"] for c in summary["conditions"]] == [
        "ppo and dpo started from sft",
        "the reward model that scores the replies is the one behind ppo and dpo",
        "dpo learned from the pairs of the reward model",
        "all have one seed",
    ]
    table = summary["differences"]
    assert table["strength of the KL (b)"] == {"ppo": "0.039", "dpo": "0.222"}  # beta 0.2 over a scale of 0.9
    assert table["optimizer steps"] == {"ppo": 35, "dpo": 36}
    assert table["examples"] == {"ppo": "1920 replies sampled", "dpo": "9027 pairs read"}
    for change in (
        {"seed": 1},
        {"data": {"sha256": "x", "rows": 1, "dataset": "d"}},
        {"made_of": {"model": {"sha256": "other", "path": "p"}}},
        {"made_of": {"model": {"sha256": "sft", "path": "p"}, "reward_model": {"sha256": "other", "path": "p"}}},
    ):
        made_up_run(tmp_path, 3, 60, 0.5)
        manifest = tmp_path / "dpo/manifest.json"
        write_json(manifest, yaml.safe_load(manifest.read_text()) | change)
        summary = summarise(Results(config))
        assert not summary["matched"] and sum(not c["holds"] for c in summary["conditions"]) == 1, change
    manifest.unlink()
    text = (write_report(config) / "ANALYSIS.md").read_text()
    assert "Nothing was checked" in text and "of one run" not in text.splitlines()[0]


def test_missing_stages_are_said_to_be_missing(tmp_path):
    config = made_up_run(tmp_path, 3, 30, 0.5, stages=())
    report = write_report(config)
    for page in ("ANALYSIS.md", "report.html"):
        text = (report / page).read_text()
        for words in ("No judge", "Neither checkpoints nor best-of-n", "No failure-mode probes", "no card of this"):
            assert words in text
        assert "were not analysed" in text
    with pytest.raises(UserError, match="make score"):
        Results(ReportConfig(output_dir=str(tmp_path), policies=["sft", "grpo"]))


def test_what_was_made_with_other_models_is_not_reported(tmp_path):
    config = made_up_run(tmp_path, 3, 30, 0.5)
    manifest = tmp_path / "scores/manifest.json"
    scored = read_json(manifest)
    write_json(manifest, scored | {"options": {"reference": "ppo"}})
    with pytest.raises(UserError, match="the scores' reference is not sft"):
        summarise(Results(config))
    write_json(manifest, scored | {"made_of": {"reward_model": {"path": "r", "sha256": "other"}}})
    assert summarise(Results(config))["reward_model"] is None


def test_an_evaluation_by_subset_shows_who_refuses_everything(tmp_path):
    config = made_up_run(tmp_path, 3, 60, 0.5)
    rows = [row(np.random.default_rng(i), i, float(i % 2)) | {"refused": True} for i in range(60)]
    write_jsonl(tmp_path / "scores/ppo.jsonl", rows)
    subsets = summarise(Results(config))["subsets"]
    assert {name: part["prompts"] for name, part in subsets.items()} == {"even": 30, "odd": 30}
    ppo = {name: part["policies"]["ppo"] for name, part in subsets.items()}
    assert [ppo[name]["gold_reward"].mean for name in ("even", "odd")] == [0, 1]
    assert all(part["refused"].mean == 1 for part in ppo.values())
