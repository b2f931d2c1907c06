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
