"""What a report says of comparisons, and that it says no more than was tested."""

from dataclasses import replace

import pytest

from eval.analysis import intervals
from eval.analysis.comparisons import signs
from eval.pages import sentences
from tests.verdicts import MARGIN, judged, replies, rounds, verdict


def test_what_is_tested_is_what_is_printed():
    """65 prompts won narrowly and 35 lost clearly: more are won than lost, and yet the win rate is below one half."""
    verdicts = [verdict(i, 0.75 if i < 65 else 0) for i in range(100)]
    (pair,) = judged(verdicts, replies("sft", "ppo"))
    assert pair.mean == pytest.approx(0.4875) and (pair.verdicts["wins"], pair.verdicts["losses"]) == (65, 35)
    assert pair.better is None and pair.lower < 0.5 < pair.upper
    assert "65 of 100 decided prompts won" in sentences.claims([pair], MARGIN)[0]
    verdicts = [verdict(i, 0.75 if i < 55 else 0) for i in range(100)]
    (pair,) = judged(verdicts, replies("sft", "ppo"))
    assert pair.better == "sft"
    assert sentences.claims([pair], MARGIN)[0].startswith("The judge prefers the replies of checkpoint sft to those of")


def test_headlines():
    beats = sentences.headline
    assert beats(rounds(("a", "b"), ("a", "c"), ("b", "c"))).startswith(
        "By the judge, checkpoint a gives better replies"
    )
    cycle = beats(rounds(("a", "b"), ("b", "c"), ("c", "a")))
    assert (
        "every checkpoint is beaten by another, so they have no order: a is better than b, b is better than c and"
        in cycle
    )
    ties = [verdict(i, 0.5, *pair) for pair in (("b", "a"), ("c", "a"), ("c", "b")) for i in range(300)]
    pairs = judged(ties, replies("a", "b", "c", prompts=300))
    assert beats(pairs) == "By the judge, all checkpoints compared are equivalent."
    assert all("all prompts tied; p = 1" in said and "equivalent" in said for said in sentences.claims(pairs, MARGIN))
    one = judged([verdict(0, 1)], replies("sft", "ppo"))
    assert beats(one) == "By the judge, no checkpoint is shown to be better than another."
    assert "with 80% power" not in sentences.claims(one, MARGIN)[0]
    some = sentences.headline(pairs[:2])
    assert some == "By the judge, no checkpoint is shown to be better than another in the pairs compared."
    half = rounds(("a", "b"), ("c", "b")) + judged([verdict(i, 0.5, "c", "a") for i in range(9)], replies("a", "c"))
    assert beats(half).endswith(
        "no checkpoint is shown to be the best: a and c are not shown to be worse than another."
    )
    assert half[-1].equivalent is False
    half[-1] = replace(half[-1], equivalent=True)
    assert beats(half).endswith("a and c are not shown to be worse than another; they are equivalent to each other.")


def test_a_small_difference_can_be_shown_and_not_matter():
    verdicts = [verdict(i, 1 if i < 40 else 0.5) for i in range(2000)]
    (pair,) = judged(verdicts, replies("sft", "ppo", prompts=2000))
    said = sentences.claims([pair], MARGIN)[0]
    assert pair.better == "ppo" and said.startswith("The judge prefers") and "they are equivalent" in said


def test_a_p_value_at_the_resamples_floor_is_a_bound():
    pair = rounds(("a", "b"))[0]
    assert pair.p == 1 / (intervals.RESAMPLES + 1)
    assert "p < 1e-4" in sentences.claims([pair], MARGIN)[0]
    assert sentences.p_value(0.0123) == "p = 0.012"


def test_a_sign_that_changes_with_the_temperature_is_said():
    warm = judged([verdict(i, 1 if i < 60 else 0) for i in range(80)], replies("sft", "ppo"))
    greedy = judged([verdict(i, 0 if i < 60 else 1) for i in range(80)], replies("sft", "ppo"))
    assert signs(warm, warm) == []
    (said,) = sentences.changes(signs(warm, greedy))
    assert said.startswith(
        "The order of checkpoints ppo and sft changes with the temperature: sampled at 1, ppo is ahead"
    )
    assert "greedily, sft is (win rate 0.75" in said and "not shown" not in said
    chance = judged([verdict(i, 0 if i < 41 else 1) for i in range(80)], replies("sft", "ppo"))
    (said,) = sentences.changes(signs(warm, chance))
    assert said.count("not shown") == 1
    assert signs(chance, judged([verdict(i, i % 80 < 41) for i in range(80)], replies("sft", "ppo"))) == []


def test_cautions_about_a_judge():
    judge = {"looks": [{"seen": 10, "planned": 50}], "pending": 4, "failures": {"a:b": {"rate limit": 3}}}
    looks, pending, failed = sentences.cautions(judge | {"worst_case": {"a:b": [0.41, 0.62]}})
    assert "after 10 of 50 comparisons" in looks and "not fixed beforehand" in looks
    assert "4 requests were not made" in pending
    assert "3 requests failed (rate limit 3)" in failed and "would be 0.41 or 0.62" in failed
    assert sentences.cautions({"looks": [], "pending": 0, "failures": {}, "worst_case": {}}) == []
