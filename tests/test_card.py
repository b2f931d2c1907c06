"""The reward model's card: its numbers against known answers, and the command on our reward models and others."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from eval import __main__ as command
from eval.analysis.calibration import calibrated_error, deciles, expected_calibration_error, reliability, temperature
from eval.metrics import PairwiseAccuracy, WinRate
from eval.reward_model import analyse, macro, patterns, spearman
from rlhf_trl.files import read_jsonl


def test_pairwise_accuracy():
    result = PairwiseAccuracy().compute(scores_chosen=[1.0, 2.0, 0.0, 5.0], scores_rejected=[0.0, 2.0, 1.0, 1.0])
    assert result["accuracy"] == (1 + 0.5 + 0 + 1) / 4
    assert result["n"] == 4
    assert result["ci"] == pytest.approx([0.2194, 0.9081], abs=1e-4)  # Wilson for 2.5 of 4
    margins = np.array([1.0, 0.0, -1.0, 4.0])
    assert result["log_loss"] == pytest.approx(-np.log(expit(margins)).mean())


def test_win_rate():
    result = WinRate().compute(score=[1.0, 0.5, 0.0, 1.0, 0.75])
    assert result["win_rate"] == 0.65
    assert result["n"] == 5
    assert result["ci"][0] < 0.65 < result["ci"][1]


def test_calibration_error_of_a_worked_example():
    # confidence .6, right in one of two; confidence .9, right in three of four
    margins = np.log([1.5, 1 / 1.5, 9, 9, 9, 1 / 9])
    bins = reliability(margins)
    assert [b["n"] for b in bins] == [2, 4]
    assert [b["accuracy"].mean for b in bins] == [0.5, 0.75]
    assert [b["confidence"] for b in bins] == pytest.approx([0.6, 0.9])
    assert expected_calibration_error(bins) == pytest.approx((2 * 0.1 + 4 * 0.15) / 6)


def test_calibration_error_beside_that_of_a_calibrated_model():
    """Of 100 calibrated models, on 400 pairs each, about 5 have an ECE above the upper end; overconfident ones all."""
    errors, expected, overconfident = [], [], []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        log_odds = rng.normal(0, 2, 400)
        margins = np.where(rng.random(400) < expit(log_odds), log_odds, -log_odds)
        errors.append(expected_calibration_error(reliability(margins)))
        expected.append(calibrated_error(margins, samples=199))
        overconfident.append(expected_calibration_error(reliability(3 * margins)))
    assert np.mean(errors) == pytest.approx(np.mean([e["mean"] for e in expected]), rel=0.1)
    assert sum(error > e["upper"] for error, e in zip(errors, expected, strict=True)) <= 12  # more: below 0.2%
    assert all(error > e["upper"] > e["mean"] for error, e in zip(overconfident, expected, strict=True))


@pytest.mark.parametrize("true", [0.5, 3.0])
def test_the_temperature_is_found_again(true):
    rng = np.random.default_rng(0)
    log_odds = rng.normal(0, 2, 20_000)
    preferred = rng.random(20_000) < expit(log_odds)
    margins = true * np.where(preferred, log_odds, -log_odds)  # the model overstates the log odds `true` times
    fit = temperature(margins)
    assert fit.lower < fit.mean < fit.upper
    assert fit.upper - fit.lower < 0.08 * true
    assert abs(fit.mean - true) < fit.upper - fit.lower  # about four standard errors


def test_no_temperature_fits_a_model_that_is_always_right_or_no_better_than_chance():
    assert temperature(np.array([1.0, 2.0])) is None
    assert temperature(np.array([1.0, -2.0])) is None


def test_deciles():
    margins = np.concatenate([-np.arange(1, 11), np.arange(11, 101)]) / 10.0
    result = deciles(np.random.default_rng(0).permutation(margins))
    assert [part["accuracy"].mean for part in result] == [0.0] + [1.0] * 9
    assert [part["n"] for part in result] == [10] * 10
    assert (result[0]["lower"], result[0]["upper"]) == (0.1, 1.0)


def test_macro_counts_each_subset_the_same():
    margins = np.array([1, 1, 1, -1] * 10 + [1, -1] * 5)
    subsets = np.array(["a"] * 40 + ["b"] * 10)
    result = macro(margins, subsets)["accuracy"]
    assert result.mean == pytest.approx((0.75 + 0.5) / 2)
    error = np.sqrt((0.75 * 0.25 / 40 + 0.5 * 0.5 / 10) / 4)
    assert result.upper - result.lower == pytest.approx(2 * 1.96 * error, rel=0.05)


# margin, chosen tokens, rejected tokens: one pair a pattern
PATTERNS = {
    "longer rejected preferred": (-1.0, 40, 50),
    "missed quality despite length": (-1.0, 50, 40),
    "very short chosen": (-1.0, 9, 10),
    "very short rejected": (-1.0, 10, 9),
    "close scores": (-0.2, 50, 50),
    "unclear": (-1.0, 49, 40),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_each_pattern(name):
    margin, chosen_tokens, rejected_tokens = PATTERNS[name]
    scores = {"scores_chosen": [margin], "scores_rejected": [0.0]}
    found = patterns(pd.DataFrame(scores | {"chosen_tokens": chosen_tokens, "rejected_tokens": rejected_tokens}))
    assert [pattern for pattern, holds in found.items() if holds[0]] == [name]


def test_length_baselines_and_base_rates():
    pairs = {
        "scores_chosen": [2.0, 2.0, 2.0, 0.0, 0.0],  # three right, two wrong
        "scores_rejected": [0.0, 0.0, 0.0, 1.0, 1.0],
        "chosen_tokens": [50, 10, 20, 10, 20],
        "rejected_tokens": [10, 50, 20, 50, 30],
        "subset": ["x", "x", "x", "x", "y"],
    }
    card = analyse(pd.DataFrame(pairs), seed=0)
    assert card["length"]["pick_longer"]["accuracy"].mean == pytest.approx(1.5 / 5)
    assert card["length"]["pick_shorter"]["accuracy"].mean == pytest.approx(3.5 / 5)
    assert (card["length"]["chosen_longer"]["accuracy"].mean, card["length"]["chosen_longer"]["n"]) == (1.0, 1)
    assert card["length"]["chosen_shorter"]["accuracy"].mean == pytest.approx(1 / 3)
    pattern = card["patterns"]["longer rejected preferred"]
    assert (pattern["wrong"]["share"].mean, pattern["wrong"]["n"]) == (1.0, 2)
    assert (pattern["correct"]["share"].mean, pattern["correct"]["n"]) == (pytest.approx(1 / 3), 3)
    assert card["subsets"]["x"]["accuracy"].mean == 0.75
    assert card["scores"]["chosen"] == pytest.approx({"mean": 1.2, "sd": 0.96**0.5, "min": 0.0, "max": 2.0})


def test_spearman_sees_ranks_only():
    x = np.arange(10.0)
    assert spearman(x, np.exp(x)).mean == pytest.approx(1)
    assert spearman(x, np.ones(10)) is None


@pytest.fixture
def reward_model(world, tmp_path):
    """Makes an (untrained) reward model folder with tokenizer, ours if it is given its mean."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    def make(mean=None, labels=1):
        torch.manual_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=labels)
        if mean is not None:
            model.config.reward_mean, model.config.reward_std = mean, 3.0
        model.save_pretrained(tmp_path / "reward")
        AutoTokenizer.from_pretrained(world / "model").save_pretrained(tmp_path / "reward")
        return model

    return make


@pytest.fixture
def evaluate(world, tmp_path, monkeypatch):
    def call(**options):
        options = {"dataset": world / "data", "output_dir": tmp_path, "error_samples": 5} | options
        words = [f"--{name}={value}" for name, value in options.items()]
        monkeypatch.setattr(sys, "argv", ["eval", "reward-model", *words])
        command.main()
        return tmp_path / "reward-model"

    return call


def test_our_model_and_a_foreign_one_give_the_same_card(reward_model, evaluate, capsys):
    reward_model()
    result = evaluate()
    foreign = json.loads((result / "card.json").read_text())
    foreign_rows = read_jsonl(result / "pairs.jsonl")
    reward_model(mean=0.25)
    result = evaluate()
    card = json.loads((result / "card.json").read_text())
    rows = read_jsonl(result / "pairs.jsonl")

    assert list(rows[0]) == [
        "subset", "prompt", "chosen", "rejected", "scores_chosen", "scores_rejected", "chosen_tokens", "rejected_tokens"
    ]  # fmt: skip
    assert rows[0]["scores_chosen"] == pytest.approx(foreign_rows[0]["scores_chosen"] - 0.25)  # raw: not scaled
    assert card["accuracy"] == foreign["accuracy"]
    assert card["log_loss"] == pytest.approx(foreign["log_loss"])
    assert card["n"] == len(rows)
    assert card["accuracy"] == np.mean([row["scores_chosen"] > row["scores_rejected"] for row in rows])
    errors = read_jsonl(result / "errors.jsonl")
    assert len(errors) == card["errors_sampled"] == 5
    assert all(row["scores_chosen"] < row["scores_rejected"] and row["patterns"] for row in errors)
    assert len(card["manifest"]["reward_model"]["sha256"]) == 64
    for stem in ("reward_distributions", "reliability"):
        assert (result / f"{stem}.png").exists()
        assert (result / f"{stem}.svg").exists()
    text, calibrated = (result / "CARD.md").read_text(), card["ece_calibrated"]
    assert f"accuracy {card['accuracy']:.3f}" in text
    assert f"would show {calibrated['mean']:.3f}" in text and f"at most {calibrated['upper']:.3f}" in text
    assert capsys.readouterr().out.rstrip().endswith(str(result / "CARD.md"))


def test_pairs_too_long_are_counted(reward_model, evaluate):
    reward_model()
    everything = json.loads((evaluate() / "card.json").read_text())
    result = evaluate(max_completion_tokens=10, fresh=True)
    card = json.loads((result / "card.json").read_text())
    assert everything["left_out"]["pairs"] == 0
    assert card["left_out"]["n"] == everything["n"]
    assert card["left_out"]["pairs"] == everything["n"] - card["n"] > 0
    assert all(row["chosen_tokens"] <= 10 for row in read_jsonl(result / "pairs.jsonl"))


def test_an_adapter_is_a_reward_model_too(world, tmp_path, evaluate):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(world / "model", num_labels=1)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, init_lora_weights=False))
    model.save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(world / "model").save_pretrained(tmp_path / "reward")
    rows = read_jsonl(evaluate() / "pairs.jsonl")

    tokenizer = AutoTokenizer.from_pretrained(world / "model")
    ids = tokenizer(rows[0]["prompt"])["input_ids"] + tokenizer(rows[0]["chosen"])["input_ids"]
    with torch.no_grad():
        expected = model.eval()(torch.tensor([[*ids, tokenizer.eos_token_id]])).logits.item()
    assert rows[0]["scores_chosen"] == pytest.approx(expected, abs=1e-4)


def test_a_pad_token_can_be_added(world, tmp_path, reward_model, evaluate, capsys):
    from transformers import AutoTokenizer

    reward_model()
    expected = read_jsonl(evaluate() / "pairs.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "reward")
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(tmp_path / "reward")
    with pytest.raises(SystemExit, match="2"):
        evaluate()
    assert "no pad token besides eos" in capsys.readouterr().err
    rows = read_jsonl(evaluate(pad_token="<|new|>", fresh=True) / "pairs.jsonl")
    for name in ("scores_chosen", "scores_rejected"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in expected], abs=1e-5)


def causal_lm(world, tmp_path, reward_model):
    (tmp_path / "reward").symlink_to(world / "model")
    return "holds no reward model"


def two_labels(world, tmp_path, reward_model):
    reward_model(labels=2)
    return "gives 2 labels"


def adapter_with_two_labels(world, tmp_path, reward_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(reward_model(labels=2), LoraConfig(task_type="SEQ_CLS", r=2))
    (tmp_path / "reward/config.json").unlink()
    model.save_pretrained(tmp_path / "reward")
    return "more labels than one"


def nothing(world, tmp_path, reward_model):
    return "does not exist"


@pytest.mark.parametrize("prepare", [causal_lm, two_labels, adapter_with_two_labels, nothing])
def test_what_is_no_reward_model_is_one_line(prepare, world, tmp_path, reward_model, evaluate, capsys):
    message = prepare(world, tmp_path, reward_model)
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        evaluate()
    assert message in capsys.readouterr().err
    assert not (tmp_path / "reward-model").exists()
