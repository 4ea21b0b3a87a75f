"""Losses as terms: a weighted sum and its weight, never a mean.

    terms = {'cross_entropy': sparse_cross_entropy(logits, batch['label'], batch['weight'])}

The step divides each sum by the weight of the *whole* global batch, which is what makes padding, micro-batches and
replicas change nothing.
"""

from framework import moved
from framework.losses.base import BatchDependent, Term, all_gather, gather_offset
from framework.losses.classification import sparse_cross_entropy

__all__ = ["BatchDependent", "Term", "all_gather", "gather_offset", "sparse_cross_entropy"]

__getattr__ = moved.former_names(__name__)
