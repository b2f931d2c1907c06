"""Comparisons of checkpoints: the prompt is the unit, and over-optimisation is found where it is."""

import numpy as np
import pytest

from eval.analysis import intervals
from eval.analysis.comparisons import by_prompt, compare, position_bias
from eval.analysis.overoptimisation import optimisation
from eval.pages import sentences
from tests.made_up_run import row
from tests.verdicts import MARGIN, judged, replies, verdict


def test_a_judge_that_always_says_the_first():
    verdicts = [verdict(i, 0.5) | {"orders": ["a", "b"]} for i in range(50)]
    pair = judged(verdicts, replies("sft", "ppo"))[0]
    assert (pair.mean, pair.verdicts["disagreement"], pair.better) == (0.5, 1.0, None)
    assert position_bias(by_prompt(verdicts)).mean == 1.0


def test_a_prompt_counts_once_however_many_replies_were_judged():
    verdicts = [verdict(i, 1) | {"reply": k} for i in range(30) for k in range(4)] + [
        verdict(i, 0) for i in range(30, 60)
    ]
    scores = {
        name: [{"reply": k, "proxy": 0.0, "completion": "x"} for _ in range(60) for k in range(4)]
        for name in ("sft", "ppo")
    }
    (pair,) = judged(verdicts, scores)
    assert (pair.mean, pair.n) == (0.5, 60)


def test_compare_takes_the_mean_over_replies():
    """Two replies a prompt: what is compared is their mean, and the number of prompts decides the interval."""
    rng = np.random.default_rng(0)
    values = {name: (rng.random((40, 2)) < share).astype(float) for name, share in (("sft", 0.4), ("ppo", 0.6))}
    rows = {
        name: [{"reply": k, "gold": value} for prompt in table for k, value in enumerate(prompt)]
        for name, table in values.items()
    }
    (pair,) = compare(rows, "gold", MARGIN, seed=0)
    assert pair.n == 40
    assert pair.mean == pytest.approx(values["ppo"].mean() - values["sft"].mean())


def curve(gold, proxy=(0.0, 1.0, 2.0), prompts=100, seed=0):
    """Over-optimisation of a policy with one checkpoint, given mean proxy and gold at start, checkpoint and end."""
    rng = np.random.default_rng(seed)
    start, middle, end = (
        [row(rng, i, float(rng.random() < g)) | {"proxy": p + rng.normal(0, 0.1), "kl": p} for i in range(prompts)]
        for g, p in zip(gold, proxy, strict=True)
    )
    return optimisation({"sft": start, "ppo": end, "checkpoints/ppo-5": middle}, ["sft", "ppo"], {}, seed)


def test_over_optimisation_is_flagged_where_a_rise_of_the_proxy_costs_gold():
    result = curve(gold=(0.5, 0.9, 0.3))
    assert ("step 5", "final", True) in [(c["from"], c["to"], c["proxy"].lower > 0) for c in result["falls"]]
    assert [point["label"] for point in result["curves"]["ppo"]] == ["start", "step 5", "final"]
    assert result["curves"]["ppo"][1]["sqrt_kl"].mean == pytest.approx(1.0)
    assert curve(gold=(0.3, 0.6, 0.9))["falls"] == []
    (said,) = sentences.falls(result["falls"], "gold reward")
    assert said.startswith("ppo, from step 5 to final: over-optimised (proxy reward +")


def test_a_fall_of_gold_together_with_the_proxy_is_said_too():
    falls = curve(gold=(0.5, 0.9, 0.3), proxy=(0.0, 2.0, 1.0))["falls"]
    assert [c["proxy"].lower > 0 for c in falls if c["from"] == "step 5"] == [False]
    assert "worse without a rise of the proxy being shown" in sentences.falls(falls, "gold reward")[0]


def test_a_curve_of_60_of_60_is_not_certain():
    point = curve(gold=(0.5, 1.0, 1.0), prompts=60)["curves"]["ppo"][-1]["gold"]
    assert point.mean == 1 and point.lower == pytest.approx(0.94, abs=0.01)


def test_falls_are_rarely_found_where_gold_is_flat(monkeypatch):
    """The proxy rises, gold does not change: at most 5% of 200 studies, plus chance, may show a fall (17: below 2%)."""
    monkeypatch.setattr(intervals, "RESAMPLES", 199)
    assert sum(bool(curve((0.5, 0.5, 0.5), seed=seed)["falls"]) for seed in range(200)) <= 17


def test_without_gold_the_judge_is_the_truth():
    rng = np.random.default_rng(0)
    policies = {name: [row(rng, i, 0.0) | {"gold": None} for i in range(60)] for name in ("sft", "ppo")}
    for reply in policies["ppo"]:
        reply["proxy"] += 5
    assert optimisation(policies, list(policies), {}, 0)["tested"] is False
    verdicts = by_prompt([verdict(i, 0 if i % 4 else 1) for i in range(50)])
    (fall,) = optimisation(policies, list(policies), verdicts, 0)["falls"]
    assert (fall["curve"], fall["true"].mean, fall["proxy"].lower > 0) == ("ppo", pytest.approx(-0.24), True)
