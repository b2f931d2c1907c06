"""Intervals and tests. The distributions are scipy's and statsmodels'; here is only what is used when."""

from dataclasses import astuple, dataclass, replace

import numpy as np
from scipy.special import comb, expit
from scipy.stats import bootstrap, norm
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM
from statsmodels.stats.inter_rater import cohens_kappa
from statsmodels.stats.proportion import proportion_confint

RESAMPLES = 9_999
LEVEL, POWER = 0.05, 0.8
OVERLAP = 0.05  # share of the prompts that each of two policies must have answered at greater length (or at equal)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95% confidence interval. Without ends there is none; an upper end alone of None is infinite."""

    mean: float
    lower: float | None = None
    upper: float | None = None

    def __format__(self, form: str) -> str:
        """As people read it, `form` being that of each number."""
        ends = [format(number, f"z{form}") for number in (self.mean, self.lower, self.upper) if number is not None]
        if self.lower is None:
            return ends[0]
        return "{} [{}, {}]".format(*ends, *(["inf"] if self.upper is None else []))

    def json(self) -> dict:
        """As the JSON files have it: the ends are `ci`, which is None where there is no interval."""
        others = {name: value for name, value in vars(self).items() if name not in ("lower", "upper")}
        return others | {"ci": None if self.lower is None else [self.lower, self.upper]}


@dataclass(frozen=True)
class Difference(Interval):
    """A mean difference in a family of them; see `family`."""

    p: float = 1.0  # corrected
    detectable: float | None = None  # true difference that this family shows with a power of `POWER`
    tipping: float | None = None  # sd of the difference between seeds above which it is no longer shown

    @property
    def shown(self) -> bool:
        return self.lower > 0 or self.upper < 0

    def within(self, margin: float) -> bool:
        """Whether the difference is shown to be smaller than a margin: two one-sided tests, as strict as the family."""
        return -margin < self.lower and self.upper < margin


def proportion(successes: float, n: float) -> Interval:
    """A share with its Wilson interval (Wilson 1927); `n` may be an effective sample size."""
    lower, upper = proportion_confint(successes, n, alpha=LEVEL, method="wilson")
    return Interval(successes / n, max(float(lower), 0.0), min(float(upper), 1.0))


def share(values: np.ndarray) -> Interval:
    """Mean of one value from 0 to 1 a prompt, shape (n,), with Wilson's interval.

    Values between 0 and 1 (ties, the mean of several replies) vary less than those that are one or the other, so each
    counts for more: the effective sample size of Korn and Graubard (1998). Where all are equal it is n, so that no
    interval claims certainty.
    """
    values = np.asarray(values, dtype=float)
    n, mean = len(values), float(values.mean())
    variance = values.var(ddof=1) * (n - 1) / n if n > 1 else 0.0
    effective = n * mean * (1 - mean) / variance if variance > 0 else n
    return replace(proportion(mean * effective, effective), mean=mean)


def bootstrap_mean(values: np.ndarray, seed: int) -> Interval:
    """Mean of one value a prompt, shape (n,), with its BCa bootstrap interval (Efron 1987); one value has none."""
    values = np.asarray(values, dtype=float)
    if len(values) < 2:
        return Interval(float(values[0]))
    if np.ptp(values) == 0:
        return Interval(float(values[0]), float(values[0]), float(values[0]))
    interval = bootstrap(
        (values,), np.mean, n_resamples=RESAMPLES, method="BCa", rng=np.random.default_rng(seed)
    ).confidence_interval
    return Interval(float(values.mean()), float(interval.low), float(interval.high))


def family(differences: np.ndarray, reach: float, seed: int, bounded: bool = True) -> list[Difference]:
    """Mean differences with simultaneous 95% intervals, corrected p-values and what could have been shown, all of one
    family: an interval excludes 0 exactly where the corrected test is below 5%.

    The test flips the signs of prompts, each prompt's for all columns at once, and takes the largest |t| (Westfall and
    Young 1993): it is exact where a prompt's differences are as likely as their opposites. The interval is what lies
    within the same critical value of the mean, and at least a normal one. Two prompts of opposite sign and greatest
    size are added (Bonett and Price 2012), so that nothing is certain where all prompts agree; they pull the interval
    a little towards 0.

    Args:
        differences: shape (prompts, columns); nan where a prompt has no value.
        reach: the greatest size that a prompt's difference can have or, where it is not `bounded`, usually has.
        seed: of the flips.
    """
    values = np.vstack([differences, np.full(differences.shape[1], reach), np.full(differences.shape[1], -reach)])
    n, values = (~np.isnan(values)).sum(0), np.nan_to_num(values)

    def centres_and_errors(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and their standard errors, shape (..., columns), from sums of the values."""
        return totals / n, np.sqrt(((values**2).sum(0) - totals**2 / n) / (n - 1) / n)

    signs = 2.0 * np.random.default_rng(seed).integers(0, 2, (RESAMPLES, len(values)), np.int8) - 1
    flipped, errors = centres_and_errors(signs @ values)
    with np.errstate(divide="ignore"):  # all flips of one prompt can be equal
        largest = np.abs(flipped / errors).max(axis=1) * (1 + 1e-9)  # rounding must not part what is equal
    beaten = np.sort(largest)[-int(np.ceil(LEVEL * (RESAMPLES + 1))) + 1]  # by what has a p-value below the level
    critical, bound = max(beaten, norm.isf(LEVEL / 2)), reach if bounded else np.inf

    result = []
    for centre, error, prompts in zip(*centres_and_errors(values.sum(0)), n - 2, strict=True):
        t, reached = abs(centre) / error, critical * error
        p = max((1 + (largest >= t).sum()) / (RESAMPLES + 1), 2 * norm.sf(t))
        difference = Difference(
            mean=centre * (prompts + 2) / prompts if prompts else 0.0,
            lower=max(centre - reached, -bound),
            upper=min(centre + reached, bound),
            p=p,
            detectable=detectable if (detectable := (critical + norm.ppf(POWER)) * error) < bound else None,
        )
        if difference.shown:
            difference = replace(difference, tipping=np.sqrt((centre / critical) ** 2 - error**2))
        result.append(Difference(*(None if number is None else float(number) for number in astuple(difference))))
    return result


def length_controlled(scores: np.ndarray, length_differences: np.ndarray) -> Interval | None:
    """The win rate at equal length: a logistic GLM on tanh of the standardised length difference, HC1 errors.

    After Dubois et al. 2024 (arXiv 2404.04475), without their terms for prompt difficulty. Arrays of shape (n,).
    None where there is nothing to fit (equal scores or lengths), no finite fit (the longer always wins), or no overlap:
    where one policy's replies are nearly always the longer ones, equal length would be an extrapolation.
    """
    scores, differences = np.asarray(scores, dtype=float), np.asarray(length_differences, dtype=float)
    overlap = min((differences <= 0).mean(), (differences >= 0).mean())
    if np.ptp(scores) == 0 or differences.std() == 0 or overlap < OVERLAP:
        return None
    design = np.column_stack([np.ones(len(scores)), np.tanh(differences / differences.std())])
    fit = GLM(scores, design, family=Binomial()).fit(cov_type="HC1")
    lower, upper = fit.conf_int()[0]
    if not np.isfinite([lower, upper]).all():
        return None
    return Interval(float(expit(fit.params[0])), float(expit(lower)), float(expit(upper)))


def kappa(first: np.ndarray, second: np.ndarray) -> Interval | None:
    """Cohen's kappa (1960) of two raters' labels, -1 or 1, shape (n,); None where one of them uses one label only."""
    table = np.array([[np.sum((first == i) & (second == j)) for j in (-1, 1)] for i in (-1, 1)])
    if not table.sum(0).all() or not table.sum(1).all():
        return None
    result = cohens_kappa(table)
    # the interval is a normal one, which few pairs can carry beyond what kappa can be
    return Interval(float(result.kappa), max(float(result.kappa_low), -1.0), min(float(result.kappa_upp), 1.0))


def best_of_n_weights(rewards: np.ndarray, n: int) -> np.ndarray:
    """Weights, shape (prompts, N), that turn values of N replies into the expected value of the best of n of them.

    `rewards`, shape (prompts, N), decide which is best. The unbiased estimator of Nakano et al. 2021
    (arXiv 2112.09332, appendix I): the i-th smallest of N is the best of n draws with C(i-1, n-1) / C(N, n).
    """
    total = rewards.shape[1]
    by_rank = comb(np.arange(total), n - 1) / comb(total, n)
    ranks = rewards.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    return by_rank[ranks]
