"""How often a reward model is right, and whether as often as it says.

A margin is the score of the chosen reply minus that of the rejected one, which is meant as log odds.
"""

import numpy as np
from scipy.special import expit
from statsmodels.discrete.discrete_model import Logit

from eval.analysis import intervals
from eval.analysis.intervals import Interval

BINS = 10
EDGES = np.linspace(0.5, 1, BINS + 1)


def accuracy(margins: np.ndarray) -> Interval | None:
    """Share of margins above 0 with its Wilson interval; a tie counts one half. None without any."""
    return intervals.proportion(float(np.heaviside(margins, 0.5).sum()), len(margins)) if len(margins) else None


def log_losses(margins: np.ndarray) -> np.ndarray:
    """-log sigmoid(margin) in nats, shape (n,): the loss that a Bradley-Terry reward model was trained on."""
    return np.logaddexp(0, -margins)


def reliability(margins: np.ndarray) -> list[dict]:
    """Accuracy by confidence, in equal bins of [1/2, 1]; empty bins are left out.

    A pair has no positive class, so the confidence is that in the reply the model prefers: sigmoid(|margin|).
    """
    confidence, index = _bins(margins)
    return [
        {
            "lower": float(EDGES[i]),
            "upper": float(EDGES[i + 1]),
            "confidence": float(confidence[index == i].mean()),
            "accuracy": accuracy(margins[index == i]),
            "n": int((index == i).sum()),
        }
        for i in np.unique(index)
    ]


def deciles(margins: np.ndarray) -> list[dict]:
    """Accuracy in each tenth of the pairs, from the smallest |margin| to the largest."""
    ordered = margins[np.argsort(np.abs(margins), kind="stable")]
    return [
        {"lower": float(abs(part[0])), "upper": float(abs(part[-1])), "accuracy": accuracy(part), "n": len(part)}
        for part in np.array_split(ordered, 10)
        if len(part)
    ]


def expected_calibration_error(bins: list[dict]) -> float:
    """Mean distance of accuracy and confidence weighted by the pairs in a bin (Guo et al. 2017, arXiv 1706.04599)."""
    distances = [abs(b["accuracy"].mean - b["confidence"]) for b in bins]
    return float(np.average(distances, weights=[b["n"] for b in bins]))


def calibrated_error(margins: np.ndarray, samples: int = 999) -> dict:
    """The ECE of a model that is right as often as it says, on pairs with these confidences: the `mean` over simulated
    samples, and `upper`, which 95% of them stay below. Few pairs give an ECE above 0 by chance alone."""
    confidence, index = _bins(margins)
    members = np.eye(BINS)[index] / len(margins)  # (pairs, bins)
    rng = np.random.default_rng(0)
    draws = (rng.random(len(margins)) < confidence for _ in range(samples))  # one by one: all would fill the memory
    errors = [np.abs((right - confidence) @ members).sum() for right in draws]
    return {"mean": float(np.mean(errors)), "upper": float(np.quantile(errors, 0.95))}


def temperature(margins: np.ndarray) -> Interval | None:
    """T that minimises the log-loss of sigmoid(margin / T) (Guo et al. 2017); 1 is calibrated.

    1/T is the coefficient of a logistic regression without intercept, whose interval statsmodels gives.
    None where no finite T > 0 is best: the model is never wrong, never right or no better than chance.
    """
    if margins.min() >= 0 or margins.sum() <= 0:
        return None
    fit = Logit(np.ones_like(margins), margins).fit(disp=False)
    low, high = fit.conf_int()[0]
    return Interval(float(1 / fit.params[0]), float(1 / high), float(1 / low) if low > 0 else None)


def _bins(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's confidence and the number of its bin, shape (n,)."""
    confidence = expit(np.abs(margins))
    return confidence, np.digitize(confidence, EDGES[1:-1])
