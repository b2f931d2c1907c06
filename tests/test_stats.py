"""Intervals, against published values and by what they must not claim."""

import numpy as np
import pytest

from eval import stats


def test_wilson_interval():
    """The example of Newcombe (1998), table I: 81 of 263."""
    assert stats.proportion(81, 263)[1:] == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_a_difference_without_losses_is_not_yet_a_difference():
    values = np.zeros(300)
    values[0] = 1
    assert stats.mean(values, seed=0).lower <= 0


def test_no_difference_is_no_difference():
    assert stats.mean(np.zeros(10), seed=0) == (0, 0, 0)


def test_bootstrap_interval_of_normal_values_is_the_t_interval():
    values = np.random.default_rng(1).normal(2, 1, 400)
    half = 1.966 * values.std(ddof=1) / 20
    estimate = stats.mean(values, seed=0)
    assert estimate.mean == pytest.approx(values.mean())
    # a bootstrap endpoint of 9,999 resamples has a standard error of about 2% of the half width
    assert (estimate.lower, estimate.upper) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )


@pytest.mark.parametrize("ties", [0.0, 0.3])
@pytest.mark.parametrize("rate", [0.5, 0.65, 0.9])
def test_win_rate_intervals_cover(monkeypatch, rate, ties):
    """Coverage at n = 100 in 1,000 simulated studies: between 93% and 97%."""
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    hits = 0
    for study in range(1000):
        rng = np.random.default_rng([study, round(100 * rate)])
        won = (rng.random(100) < rate).astype(float)
        tied = rng.random(100) < ties
        # a tie is between two draws of the same rate, so that the mean stays what it is
        scores = np.where(tied, (won + (rng.random(100) < rate)) / 2, won)
        _, lower, upper = stats.win_rate(scores, study)
        hits += lower <= rate <= upper
    assert 930 <= hits <= 970


@pytest.mark.parametrize("shape", ["normal", "skewed"])
def test_intervals_of_paired_differences_cover(monkeypatch, shape):
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    hits = 0
    for study in range(1000):
        rng = np.random.default_rng(study)
        prompt = rng.normal(0, 3, 100)  # what the prompts have in common cancels out
        noise = rng.normal(0, 1, (2, 100)) if shape == "normal" else rng.exponential(1, (2, 100)) ** 1.2
        a, b = prompt + 0.4 + noise[0], prompt + noise[1]
        _, lower, upper = stats.mean(a - b, study)
        hits += lower <= 0.4 <= upper
    assert 930 <= hits <= 970


def test_power():
    """evaluation.md's table: 100 prompts detect 65%, 200 detect 60%, 805 detect 55% (by steps of half a percent)."""
    assert [stats.smallest_detectable(n) for n in (100, 200, 805)] == pytest.approx([0.65, 0.605, 0.55])
    assert stats.smallest_detectable(200, ties=100) == pytest.approx(0.5 + 0.15 / 2)
    assert stats.smallest_detectable(5) is None
    differences = np.random.default_rng(0).normal(0, 1, 400)
    assert stats.smallest_difference(differences) == pytest.approx(2.8 * differences.std() / 20, rel=0.01)


def test_sign_test_counts_no_ties():
    assert stats.sign_test(np.array([1, 1, 1, 1, 1, 0.75, 0.5, 0.5])) == pytest.approx(2 / 2**6)
    assert stats.sign_test(np.array([0.5, 0.5])) == 1


def test_a_longer_reply_is_no_better_one():
    """Replies that win only by length have a win rate of one half at equal length."""
    rng = np.random.default_rng(0)
    length = rng.normal(30, 40, 2000)
    scores = (rng.random(2000) < 1 / (1 + np.exp(-2 * np.tanh(length / length.std())))).astype(float)
    assert stats.win_rate(scores, 0).lower > 0.6
    controlled = stats.length_controlled(scores, length)
    assert controlled.lower <= 0.5 <= controlled.upper
    assert stats.length_controlled(np.ones(9), np.arange(9)) is None


def test_kappa_of_a_published_example():
    """Two raters, 50 proposals: 20 both yes, 15 both no, 5 and 10 split: kappa 0.4."""
    first = np.repeat([1, 1, -1, -1], [20, 5, 10, 15])
    second = np.repeat([1, -1, 1, -1], [20, 5, 10, 15])
    kappa = stats.kappa(first, second)
    assert kappa.mean == pytest.approx(0.4)
    assert kappa.lower < 0.4 < kappa.upper
    assert stats.kappa(np.ones(4), np.ones(4)) is None


def test_best_of_n_is_the_mean_of_all_draws():
    import itertools

    rewards = np.random.default_rng(0).normal(size=(2, 6))
    gold = np.random.default_rng(1).normal(size=(2, 6))
    for n in (1, 3, 6):
        draws = [max(draw, key=lambda i: rewards[0, i]) for draw in itertools.combinations(range(6), n)]
        expected = np.mean([gold[0, i] for i in draws])
        assert (stats.best_of(rewards, n) * gold).sum(1)[0] == pytest.approx(expected)
