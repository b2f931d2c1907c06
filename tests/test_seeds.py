"""Results over seeds: mean, interval and paired differences of made-up runs with known numbers."""

import json
import sys

import pytest
import yaml

from benchmarks import seeds
from eval.files import write_json, write_jsonl
from rlhf_trl.errors import UserError

# Share of good replies in seeds 0, 1 and 2
GOLD = {"sft": (0.2, 0.3, 0.4), "ppo": (0.6, 0.8, 0.9), "grpo": (0.3, 0.3, 0.3), "dpo": (0.4, 0.5, 0.5)}


@pytest.fixture
def runs(tmp_path):
    """Profile folders of three seeds, each with ten prompts, one checkpoint a method and two steps of training."""
    roots = [tmp_path / str(seed) / "made_up" for seed in range(3)]
    for seed, root in enumerate(roots):
        for name in seeds.RECIPES:
            manifest = {
                "created": "2026-11-22T00:00:00+00:00",
                "seed": seed,
                "versions": {"trl": "1.12.0"},
                "machine": {"cpu": "abacus", "threads": 1, "gpus": []},
                "train": {"seconds": 12},
            }
            write_json(root / name / "manifest.json", manifest)
            config = {"learning_rate": 0.1, "num_train_epochs": 1, "output_dir": str(root)}
            (root / name / "config.yaml").write_text(yaml.safe_dump(config))
            write_json(root / name / "checkpoint-1/trainer_state.json", {"max_steps": 4})
            reward = seeds.TRAINING_REWARD.get(name, "loss")
            write_jsonl(root / name / "metrics.jsonl", [{"step": step, reward: step + seed} for step in (1, 2)])
        for name, gold in GOLD.items():
            rows = [
                {
                    "dialogue": f"{seed}-{i}",
                    "proxy": float(i),
                    "kl": 0.0,
                    "gold": float(i < round(10 * gold[seed])),
                }
                for i in range(10)
            ]
            for file in (name, f"checkpoints/{name}-1", f"checkpoints/{name}-final"):
                write_jsonl(root / "scores" / f"{file}.jsonl", rows)
    return roots


def test_mean_interval_and_spread(runs):
    policies = {(row["measure"], row["policy"]): row for row in seeds.summarise(runs)["policies"]}
    sft = policies["gold reward", "sft"]
    half = 4.302653 * 0.1 / 3**0.5  # t's 97.5% point with 2 degrees of freedom
    assert [sft["mean"], *sft["ci"]] == pytest.approx([0.3, 0.3 - half, 0.3 + half], abs=1e-6)
    assert [point["share"] for point in seeds.summarise(runs)["curves"]["ppo"]] == [0, 0.25, 1]
    assert (sft["sd"], sft["min"], sft["max"]) == pytest.approx((0.1, 0.2, 0.4))


def test_differences_are_paired_by_seed(runs):
    pairs = {(pair["a"], pair["b"]): pair for pair in seeds.summarise(runs)["pairs"]}
    pair = pairs["ppo", "sft"]  # 0.4, 0.5, 0.5
    assert (pair["mean"], pair["sd"], pair["higher"]) == pytest.approx((1.4 / 3, 0.057735, 3), abs=1e-6)
    assert pair["ci"][1] - pair["mean"] == pytest.approx(4.302653 / 30, abs=1e-6)
    assert pair["p_holm"] == pytest.approx(6 * 0.0050633, abs=1e-5)  # t = 14, and the smallest of six
    assert pair["better"] == "ppo"
    assert (pairs["grpo", "sft"]["higher"], pairs["grpo", "sft"]["lower"]) == (1, 1)


def test_the_page_claims_what_the_numbers_show(runs, tmp_path, monkeypatch):
    monkeypatch.setattr("gc.disable", lambda: None)  # for all the tests after this one
    monkeypatch.setattr(sys, "argv", ["seeds.py", *map(str, runs), "--output", str(tmp_path / "out")])
    seeds.main()
    page = (tmp_path / "out/made_up-seeds.md").read_text()
    assert "PPO's gold reward is higher than SFT's (difference +0.47, 95% CI +0.32 to +0.61, sd 0.06; " in page
    assert "higher in all 3 seeds" in page
    assert "No difference in gold reward is shown between GRPO and SFT (difference +0.00, 95% CI -0.25 to +0.25" in page
    assert "no policy's gold reward is shown to be higher than that of every other" in page
    assert "| gold reward | sft | 0.30 [0.05, 0.55] | 0.100 | 0.20 to 0.40 |" in page
    assert "<svg" in (tmp_path / "out/made_up-seeds.svg").read_text()


def test_what_is_missing_is_named_with_the_command_that_makes_it(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("gc.disable", lambda: None)
    monkeypatch.setattr(sys, "argv", ["seeds.py", *map(str, runs), str(tmp_path / "9/made_up")])
    with pytest.raises(SystemExit, match="2"):
        seeds.main()
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert f"make score PROFILE=made_up RUNS={tmp_path / '9'}" in error


def test_only_runs_that_differ_in_their_seed_make_a_spread_over_seeds(runs):
    with pytest.raises(UserError, match="each seed once"):
        seeds.summarise([runs[0], runs[0]])
    path = runs[2] / "ppo/config.yaml"
    path.write_text(json.dumps(yaml.safe_load(path.read_text()) | {"learning_rate": 0.2}))
    with pytest.raises(UserError, match="differ in ppo's learning_rate"):
        seeds.summarise(runs)
