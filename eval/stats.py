"""Intervals and tests. The statistics are scipy's and statsmodels'; here is only which one is used when."""

from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, permutation_test
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 9_999


class Estimate(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    lower: float
    upper: float


def proportion(successes: float, n: int) -> Estimate:
    """A share with its Wilson interval (Wilson 1927)."""
    lower, upper = proportion_confint(successes, n, alpha=0.05, method="wilson")
    return Estimate(successes / n, float(lower), float(upper))


def mean(values: np.ndarray, seed: int) -> Estimate:
    """Mean of one value a prompt, shape (n,), with its BCa bootstrap interval (Efron 1987).

    Paired differences are passed as such, so that what the prompts have in common cancels out.
    """
    values = np.asarray(values, dtype=float)
    if np.ptp(values) == 0:
        return Estimate(values[0], values[0], values[0])
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high))


def sign_flip(differences: np.ndarray, seed: int) -> float:
    """Two-sided p-value of the hypothesis that paired differences, shape (n,), are symmetric about 0."""
    return float(
        permutation_test(
            (np.asarray(differences, dtype=float),),
            np.mean,
            permutation_type="samples",
            vectorized=True,
            n_resamples=RESAMPLES,
            rng=np.random.default_rng(seed),
        ).pvalue
    )


def holm(p_values: list[float]) -> list[float]:
    """p-values corrected so that the chance of any false claim among them stays below their threshold (Holm 1979)."""
    return multipletests(p_values, method="holm")[1].tolist()
