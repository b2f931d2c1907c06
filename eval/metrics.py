"""Metrics of preference models and judges, as `evaluate.Metric` too: they need no hub and leave no file.

>>> from eval.metrics import PairwiseAccuracy
>>> PairwiseAccuracy().compute(scores_chosen=[1.0, 2.0], scores_rejected=[0.0, 2.0])["accuracy"]
0.75
"""

import tempfile

import evaluate
import numpy as np
from datasets import Features, Value

from eval.analysis import calibration, intervals


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
        accuracy = calibration.accuracy(margins)
        return {
            "accuracy": accuracy.mean,
            "ci": [accuracy.lower, accuracy.upper],
            "n": len(margins),
            "log_loss": float(calibration.log_losses(margins).mean()),
            "ece": calibration.expected_calibration_error(calibration.reliability(margins)),
            "ece_calibrated": calibration.calibrated_error(margins),
        }


class WinRate(_Metric):
    """Mean score of one policy against another: win_rate, ci and n. Reports of several pairs have wider intervals,
    which hold for all of them together (`eval.analysis.comparisons`)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Win rate with its 95% interval; the unit is the prompt.",
            citation="",
            inputs_description="score: of each prompt, the mean of its verdicts (0, 1/2 or 1).",
            features=Features({"score": Value("float64")}),
        )

    def _compute(self, score: list[float]) -> dict:
        won = intervals.share(np.array(score))
        return {"win_rate": won.mean, "ci": [won.lower, won.upper], "n": len(score)}
