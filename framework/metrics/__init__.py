"""Metrics as data that merges: states are sums, so batches, replicas and steps add up exactly.

    accuracy = Accuracy()
    state = accuracy.update({'logits': logits}, batch)        # traced: the state of this batch alone
    total = accuracy.merge(total, state)                      # over steps, on the host, in float64
    accuracy.result(total)                                    # 0.9785

The same states come out of training steps, evaluation passes and exported models.
"""

from framework.metrics.base import Mean, Metric, Picture, Sums
from framework.metrics.classification import Accuracy

__all__ = ["Accuracy", "Mean", "Metric", "Picture", "Sums"]
