"""Intervals and tests, against published values and by what they must not claim."""

import itertools
from dataclasses import astuple

import numpy as np
import pytest

from eval.analysis import intervals
from eval.analysis.intervals import Interval

NAMES = ["sft", "ppo", "grpo", "dpo"]
PAIRS = [(b, a) for a, b in itertools.combinations(range(4), 2)]
MEASURES = {
    "win rate": {"reach": 0.5},
    "gold reward": {"reach": 1.0},
    "proxy reward": {"reach": 1.0, "bounded": False},
    "rare wins": {"reach": 0.5},
}


def checkpoints(study: int, measure: str, prompts: int = 100, lead: float = 0.0) -> np.ndarray:
    """Differences of all pairs of four equally good checkpoints (the last may have a `lead`), shape (prompts, 6)."""
    rng = np.random.default_rng([study, prompts])
    values = rng.normal(size=(4, prompts)) + rng.normal(size=prompts)  # some prompts are harder for all
    values[3] += lead
    if measure == "gold reward":
        values = (values[:, :, None] + rng.normal(size=(4, prompts, 2)) > 0).mean(2)  # of two replies
    differences = np.array([values[a] - values[b] for a, b in PAIRS]).T
    if measure == "win rate":
        return np.sign(np.round(differences)) / 2
    if measure == "rare wins":
        return np.sign(np.trunc(differences / 4)) / 2
    return differences


@pytest.fixture
def fast(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 199)


@pytest.mark.parametrize("measure", MEASURES)
def test_equal_checkpoints_are_rarely_told_apart(fast, measure):
    """Any false claim among six pairs in at most 6% of 4,000 simulated reports: three standard errors above 5%."""
    families = (intervals.family(checkpoints(i, measure), seed=i, **MEASURES[measure]) for i in range(4000))
    assert sum(any(difference.shown for difference in family) for family in families) <= 240


def test_intervals_and_tests_of_a_table_say_the_same(fast):
    """In 2,000 simulated tables of all measures and sizes, with missing verdicts, an interval leaves out 0 exactly
    where the corrected p-value is below 5%, and only then there is a tipping point."""
    shown = 0
    for table in range(2000):
        measure, prompts = list(MEASURES)[table % 4], (1, 2, 7, 30, 100)[table % 5]
        differences = checkpoints(table, measure, prompts, lead=table % 3 / 2)
        differences[np.random.default_rng(table).random(differences.shape) < 0.1] = np.nan
        for difference in intervals.family(differences, seed=table, **MEASURES[measure]):
            assert difference.shown == (difference.p < 0.05) == (difference.tipping is not None)
            assert difference.lower <= difference.upper
            shown += difference.shown
    assert shown > 500


def test_intervals_of_a_family_hold_together(fast):
    """All six at once, in 1,000 studies of one checkpoint that is better: at least 93.6% (2 standard errors)."""
    truth = np.array([0.5 * ((a == 3) - (b == 3)) for a, b in PAIRS])
    hits = 0
    for study in range(1000):
        family = intervals.family(checkpoints(study, "proxy reward", lead=0.5), seed=study, **MEASURES["proxy reward"])
        hits += all(d.lower <= t <= d.upper for d, t in zip(family, truth, strict=True))
    assert hits >= 936


def test_equivalence_is_rarely_claimed_of_a_difference_that_matters(fast):
    """A true win rate at the margin, 0.05 above one half: called equivalent in at most 5% of 2,000 studies, though a
    smaller one of zero is so called in most."""

    def claimed(rate: float) -> int:
        count = 0
        for study in range(2000):
            rng = np.random.default_rng(study)
            won = rng.random((400, 1)) < rate
            scores = np.where(rng.random((400, 1)) < 0.6, 0.5, won)  # ties
            count += intervals.family(scores - 0.5, 0.5, study)[0].within(0.05)
        return count

    assert claimed(0.5 + 0.05 / 0.4) <= 100
    assert claimed(0.5) > 1000


def test_what_is_detectable_is_detected_in_four_of_five_studies(fast):
    """Power 80% at n = 100 over 1,000 studies, within three standard errors and the spread of `detectable` itself."""
    detectable = np.mean(
        [
            intervals.family(checkpoints(i, "proxy reward"), seed=i, **MEASURES["proxy reward"])[2].detectable
            for i in range(50)
        ]
    )
    found = 0
    for study in range(1000):
        differences = checkpoints(study, "proxy reward", lead=detectable)
        found += intervals.family(differences, seed=study, **MEASURES["proxy reward"])[2].shown
    assert 740 <= found <= 860


def test_nothing_is_certain_where_all_prompts_agree():
    ties = intervals.family(np.zeros((300, 6)), 0.5, seed=0)[0]
    assert (ties.mean, ties.p, ties.shown) == (0, 1, False)
    assert -0.01 < ties.lower < -0.003 and ties.upper == -ties.lower
    won = intervals.family(np.full((60, 6), 0.5), 0.5, seed=0)[0]
    assert won.mean == 0.5 and 0.4 < won.lower < 0.48 and won.p == 1 / (intervals.RESAMPLES + 1)
    one = intervals.family(np.full((1, 6), 0.5), 0.5, seed=0)[0]
    assert (one.shown, one.detectable, one.tipping) == (False, None, None)
    assert (one.lower, one.upper) == (-0.5, 0.5)


def test_a_difference_without_losses_is_not_yet_a_difference():
    values = np.zeros((300, 1))
    values[:5] = 0.5  # the sign test has p = 0.06
    assert not intervals.family(values, 0.5, seed=0)[0].shown
    values[5:9] = 0.5  # and here 0.004
    assert intervals.family(values, 0.5, seed=0)[0].shown


def test_the_tipping_point_is_where_chance_between_seeds_hides_a_difference():
    values = np.random.default_rng(0).normal(0.3, 1, (400, 1))
    difference = intervals.family(values, 1.0, seed=0)[0]
    error = (difference.upper - difference.lower) / 2 / 1.96
    with_seeds = np.hypot(error, difference.tipping)
    assert 1.96 * with_seeds == pytest.approx((difference.upper + difference.lower) / 2, rel=0.03)


def test_wilson_interval():
    """The example of Newcombe (1998), table I: 81 of 263."""
    assert astuple(intervals.proportion(81, 263))[1:] == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert astuple(intervals.share(np.repeat([1, 0], [81, 182]))) == pytest.approx(
        astuple(intervals.proportion(81, 263))
    )


def test_a_share_of_60_of_60_is_not_certain():
    assert astuple(intervals.share(np.ones(60))) == pytest.approx((1.0, 0.9398, 1.0), abs=1e-4)
    assert astuple(intervals.share(np.full(300, 0.5)))[1:] == pytest.approx((0.444, 0.556), abs=1e-3)


@pytest.mark.parametrize("replies", [1, 4])
@pytest.mark.parametrize("rate", [0.5, 0.65, 0.9])
def test_intervals_of_shares_cover(rate, replies):
    """Coverage at n = 100 in 1,000 simulated studies: between 93% and 97%."""
    hits = 0
    for study in range(1000):
        rng = np.random.default_rng([study, round(100 * rate)])
        easy = np.clip(rng.normal(rate, 0.05, 100), 0, 1)[:, None]
        interval = intervals.share((rng.random((100, replies)) < easy).mean(1))
        hits += interval.lower <= rate <= interval.upper
    assert 930 <= hits <= 970


def test_one_value_has_no_interval_and_equal_ones_have_themselves():
    assert intervals.bootstrap_mean(np.array([3.0]), seed=0) == Interval(3.0)
    assert intervals.bootstrap_mean(np.zeros(10), seed=0) == Interval(0, 0, 0)


def test_bootstrap_interval_of_normal_values_is_the_t_interval():
    values = np.random.default_rng(1).normal(2, 1, 400)
    half = 1.966 * values.std(ddof=1) / 20
    estimate = intervals.bootstrap_mean(values, seed=0)
    assert estimate.mean == pytest.approx(values.mean())
    # a bootstrap endpoint of 9,999 resamples has a standard error of about 2% of the half width
    assert (estimate.lower, estimate.upper) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )


def test_a_longer_reply_is_no_better_one():
    """Replies that win only by length have a win rate of one half at equal length."""
    rng = np.random.default_rng(0)
    length = rng.normal(30, 40, 2000)
    scores = (rng.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(length / length.std())))).astype(float)
    assert intervals.share(scores).lower > 0.6
    controlled = intervals.length_controlled(scores, length)
    assert controlled.lower <= 0.5 <= controlled.upper
    assert intervals.length_controlled(np.ones(9), np.arange(9)) is None


def test_without_overlap_there_is_no_win_rate_at_equal_length():
    rng = np.random.default_rng(0)
    scores, lengths = rng.integers(0, 2, 300), rng.uniform(20, 60, 300)
    assert intervals.length_controlled(scores, lengths) is None
    lengths[:10] *= -1  # of 300: still an extrapolation
    assert intervals.length_controlled(scores, lengths) is None
    lengths[:30] = -rng.uniform(20, 60, 30)
    assert intervals.length_controlled(scores, lengths) is not None


def test_kappa_of_a_published_example():
    """Two raters, 50 proposals: 20 both yes, 15 both no, 5 and 10 split: kappa 0.4."""
    first = np.repeat([1, 1, -1, -1], [20, 5, 10, 15])
    second = np.repeat([1, -1, 1, -1], [20, 5, 10, 15])
    kappa = intervals.kappa(first, second)
    assert kappa.mean == pytest.approx(0.4)
    assert kappa.lower < 0.4 < kappa.upper
    assert intervals.kappa(np.ones(4), np.ones(4)) is None


def test_best_of_n_is_the_mean_of_all_draws():
    rewards = np.random.default_rng(0).normal(size=(2, 6))
    gold = np.random.default_rng(1).normal(size=(2, 6))
    for n in (1, 3, 6):
        draws = [max(draw, key=lambda i: rewards[0, i]) for draw in itertools.combinations(range(6), n)]
        expected = np.mean([gold[0, i] for i in draws])
        assert (intervals.best_of_n_weights(rewards, n) * gold).sum(1)[0] == pytest.approx(expected)


def test_an_interval_is_printed_and_written_in_one_way():
    assert f"{Interval(-0.001, -0.5, 0.25):.2f}" == "0.00 [-0.50, 0.25]"
    assert f"{Interval(2.0, 1.5):.1f}" == "2.0 [1.5, inf]" and f"{Interval(2.0):.0f}" == "2"
    assert Interval(2.0, 1.5).json() == {"mean": 2.0, "ci": [1.5, None]} and Interval(2.0).json()["ci"] is None
