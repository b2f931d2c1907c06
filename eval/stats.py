"""Intervals and tests. The statistics are scipy's and statsmodels'; here is only which one is used when."""

from typing import NamedTuple

import numpy as np
from scipy.special import comb, expit
from scipy.stats import binom, binomtest, bootstrap, permutation_test
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 9_999


class Estimate(NamedTuple):
    """A mean with its 95% confidence interval."""

    mean: float
    lower: float
    upper: float


def as_dict(value: Estimate | None, name: str = "mean") -> dict | None:
    """An estimate as the JSON files have it: `name` and `ci`."""
    return value and {name: value.mean, "ci": [value.lower, value.upper]}


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
        return Estimate(float(values[0]), float(values[0]), float(values[0]))
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Estimate(float(values.mean()), float(interval.low), float(interval.high))


def win_rate(scores: np.ndarray, seed: int) -> Estimate:
    """Mean of the prompts' scores, shape (n,), each 0 (lost) to 1 (won): Wilson if all were won or lost, else BCa.

    Where every prompt was a tie the bootstrap would claim certainty; Wilson's interval does not.
    """
    scores = np.asarray(scores, dtype=float)
    if np.isin(scores, (0, 1)).all() or np.ptp(scores) == 0:
        return proportion(float(scores.sum()), len(scores))
    return mean(scores, seed)


def sign_test(scores: np.ndarray) -> float:
    """Two-sided p-value of the exact sign test that as many prompts are won as lost; ties do not count."""
    wins, losses = int((np.asarray(scores) > 0.5).sum()), int((np.asarray(scores) < 0.5).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def smallest_detectable(n: int, ties: int = 0, power: float = 0.8) -> float | None:
    """The smallest win rate over n prompts that an exact sign test at 5% shows with the given power; None if none.

    Only decided prompts count in the test, but ties pull the win rate towards one half.
    """
    decided = n - ties
    lost = binom.ppf(0.025, decided, 0.5) - 1  # at most so many losses are significant
    shares = np.arange(0.5, 1, 0.005)
    shown = shares[binom.cdf(lost, decided, 1 - shares) >= power]
    return 0.5 + float(shown[0] - 0.5) * decided / n if len(shown) else None


def smallest_difference(differences: np.ndarray, power: float = 0.8) -> float:
    """The smallest mean of paired differences, shape (n,), that a test at 5% shows with the given power."""
    return float(TTestPower().solve_power(nobs=len(differences), alpha=0.05, power=power) * np.std(differences, ddof=1))


def length_controlled(scores: np.ndarray, length_differences: np.ndarray) -> Estimate | None:
    """The win rate at equal length: a logistic GLM on tanh of the standardised length difference, HC1 errors.

    After Dubois et al. 2024 (arXiv 2404.04475), without their terms for prompt difficulty. Arrays of shape (n,).
    None where there is nothing to fit (equal scores or lengths) or no finite fit (the longer always wins).
    """
    scores, differences = np.asarray(scores, dtype=float), np.asarray(length_differences, dtype=float)
    if np.ptp(scores) == 0 or differences.std() == 0:
        return None
    design = np.column_stack([np.ones(len(scores)), np.tanh(differences / differences.std())])
    fit = GLM(scores, design, family=Binomial()).fit(cov_type="HC1")
    lower, upper = fit.conf_int()[0]
    if not np.isfinite([lower, upper]).all():
        return None
    return Estimate(float(expit(fit.params[0])), float(expit(lower)), float(expit(upper)))


def kappa(first: np.ndarray, second: np.ndarray) -> Estimate | None:
    """Cohen's kappa (1960) of two raters' labels, -1 or 1, shape (n,); None where one of them uses one label only."""
    table = np.array([[np.sum((first == i) & (second == j)) for j in (-1, 1)] for i in (-1, 1)])
    if not table.sum(0).all() or not table.sum(1).all():
        return None
    result = cohens_kappa(table)
    # the interval is a normal one, which few pairs can carry beyond what kappa can be
    return Estimate(float(result.kappa), max(float(result.kappa_low), -1.0), min(float(result.kappa_upp), 1.0))


def best_of(rewards: np.ndarray, n: int) -> np.ndarray:
    """Weights, shape (prompts, N), that turn values of N replies into the expected value of the best of n of them.

    `rewards`, shape (prompts, N), decide which is best. The unbiased estimator of Nakano et al. 2021
    (arXiv 2112.09332, appendix I): the i-th smallest of N is the best of n draws with C(i-1, n-1) / C(N, n).
    """
    total = rewards.shape[1]
    by_rank = comb(np.arange(total), n - 1) / comb(total, n)
    ranks = rewards.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return by_rank[ranks]


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
