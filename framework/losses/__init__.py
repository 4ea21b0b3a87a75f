"""Losses as terms: a weighted sum and its weight, never a mean.

    terms = {'cross_entropy': sparse_cross_entropy(logits, batch['label'], batch['weight'])}

The step divides each sum by the weight of the *whole* global batch, which is what makes padding, micro-batches and
replicas change nothing. Each loss takes (logits or predictions, targets, weight, …); `mean(values, weight)` makes a
term of your own values.
"""

from framework import moved
from framework.losses.base import BatchDependent, Term, all_gather, gather_offset, mean, mixed, once
from framework.losses.classification import (
    binary_cross_entropy,
    categorical_cross_entropy,
    focal,
    hinge,
    sparse_cross_entropy,
    sparse_hinge,
)
from framework.losses.distribution import kl_divergence
from framework.losses.ordinal import ordinal
from framework.losses.regression import cosine_distance, huber, mean_absolute_error, mean_squared_error
from framework.losses.retrieval import Drawn, full_softmax, in_batch_softmax, popularity_negatives, uniform_negatives
from framework.losses.sampling import langevin
from framework.losses.sequence import ctc

__all__ = [
    "BatchDependent",
    "Drawn",
    "Term",
    "all_gather",
    "binary_cross_entropy",
    "categorical_cross_entropy",
    "cosine_distance",
    "ctc",
    "focal",
    "full_softmax",
    "gather_offset",
    "hinge",
    "huber",
    "in_batch_softmax",
    "kl_divergence",
    "langevin",
    "mean",
    "mean_absolute_error",
    "mean_squared_error",
    "mixed",
    "once",
    "ordinal",
    "popularity_negatives",
    "sparse_cross_entropy",
    "sparse_hinge",
    "uniform_negatives",
]

__getattr__ = moved.former_names(__name__)
