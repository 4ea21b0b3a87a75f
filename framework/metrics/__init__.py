"""Metrics as data that merges: states are sums, so batches, replicas and steps add up exactly.

    accuracy = Accuracy()
    state = accuracy.update({'logits': logits}, batch)        # traced: the state of this batch alone
    total = accuracy.merge(total, state)                      # over steps, on the host, in float64
    accuracy.result(total)                                    # 0.9785

The same states come out of training steps, evaluation passes and exported models. `error_rates`, `bleu` and `chrf` are
functions of decoded sequences, `ranking` and `ranking_per_user` of recommended items, for evaluators.
"""

from framework.metrics.accuracy import Accuracy, BinaryAccuracy, TopKAccuracy
from framework.metrics.base import Mean, Metric, Picture, Sums
from framework.metrics.classification import AUC, F1, CalibrationError, ConfusionMatrix, Precision, Recall
from framework.metrics.ranking import paired_bootstrap, ranking, ranking_per_user
from framework.metrics.regression import R2, MeanAbsoluteError, RootMeanSquaredError
from framework.metrics.scores import ErrorRates, Score, bleu, chrf, edit_distances, error_rates
from framework.metrics.text import Perplexity

__all__ = [
    "AUC",
    "F1",
    "R2",
    "Accuracy",
    "BinaryAccuracy",
    "CalibrationError",
    "ConfusionMatrix",
    "ErrorRates",
    "Mean",
    "MeanAbsoluteError",
    "Metric",
    "Perplexity",
    "Picture",
    "Precision",
    "Recall",
    "RootMeanSquaredError",
    "Score",
    "Sums",
    "TopKAccuracy",
    "bleu",
    "chrf",
    "edit_distances",
    "error_rates",
    "paired_bootstrap",
    "ranking",
    "ranking_per_user",
]
