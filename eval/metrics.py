"""Metrics of preference models and judges, as `evaluate.Metric` too: they need no hub and leave no file.

>>> from eval.metrics import PairwiseAccuracy
>>> PairwiseAccuracy().compute(scores_chosen=[1.0, 2.0], scores_rejected=[0.0, 2.0])["accuracy"]
0.75
"""

import tempfile

import evaluate
import numpy as np
from datasets import Features, Value
from scipy.special import expit
from statsmodels.discrete.discrete_model import Logit

from eval.analysis import intervals

BINS = 10
EDGES = np.linspace(0.5, 1, BINS + 1)


class _Metric(evaluate.Metric):
    def __init__(self, **options) -> None:
        # the cache folder is made even if nothing is written to it, and home may be read-only
        super().__init__(keep_in_memory=True, cache_dir=tempfile.gettempdir(), **options)


class PairwiseAccuracy(_Metric):
    """How often, and how surely, the chosen reply scores higher: accuracy, ci, n, log_loss and ece."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Accuracy (a tie is one half) with Wilson's 95% interval, log-loss and ECE of a reward model, "
            "and the ECE that a perfectly calibrated one would show.",
            citation="",
            inputs_description="scores_chosen, scores_rejected: raw scores, whose difference is the log odds.",
            features=Features({"scores_chosen": Value("float64"), "scores_rejected": Value("float64")}),
        )

    def _compute(self, scores_chosen: list[float], scores_rejected: list[float]) -> dict:
        margins = np.subtract(scores_chosen, scores_rejected)
        return {
            **accuracy(margins),
            "log_loss": float(log_losses(margins).mean()),
            "ece": expected_calibration_error(reliability(margins)),
            "ece_calibrated": calibrated_error(margins),
        }


class WinRate(_Metric):
    """Mean score of one policy against another: win_rate, ci and n. Reports of several pairs have wider intervals,
    which hold for all of them together (`eval.comparisons`)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Win rate with its 95% interval; the unit is the prompt.",
            citation="",
            inputs_description="score: of each prompt, the mean of its verdicts (0, 1/2 or 1).",
            features=Features({"score": Value("float64")}),
        )

    def _compute(self, score: list[float]) -> dict:
        estimate = intervals.share(np.array(score))
        return {"win_rate": estimate.mean, "ci": [estimate.lower, estimate.upper], "n": len(score)}


def accuracy(margins: np.ndarray) -> dict:
    """Share of margins (chosen minus rejected), shape (n,), above 0 with its Wilson interval; a tie counts one half."""
    estimate = intervals.proportion(float(np.heaviside(margins, 0.5).sum()), len(margins))
    return {"accuracy": estimate.mean, "ci": [estimate.lower, estimate.upper], "n": len(margins)}


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
            **accuracy(margins[index == i]),
        }
        for i in np.unique(index)
    ]


def expected_calibration_error(bins: list[dict]) -> float:
    """Mean distance of accuracy and confidence weighted by the pairs in a bin (Guo et al. 2017, arXiv 1706.04599)."""
    distances = [abs(b["accuracy"] - b["confidence"]) for b in bins]
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


def _bins(margins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each pair's confidence and the number of its bin, shape (n,)."""
    confidence = expit(np.abs(margins))
    return confidence, np.digitize(confidence, EDGES[1:-1])


def temperature(margins: np.ndarray) -> dict | None:
    """T that minimises the log-loss of sigmoid(margin / T) (Guo et al. 2017), with its 95% interval; 1 is calibrated.

    1/T is the coefficient of a logistic regression without intercept, whose interval statsmodels gives.
    None where no finite T > 0 is best: the model is never wrong, never right or no better than chance. An
    upper end of None is infinity.
    """
    if margins.min() >= 0 or margins.sum() <= 0:
        return None
    fit = Logit(np.ones_like(margins), margins).fit(disp=False)
    low, high = fit.conf_int()[0]
    return {"temperature": float(1 / fit.params[0]), "ci": [float(1 / high), float(1 / low) if low > 0 else None]}
