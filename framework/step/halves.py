"""Whether a loss says the same of a batch and of its two halves, as every sum over examples does.

    unlike_halves(loss, model, batch, config)    # ["term 'squares' of the loss is 77.1 over a batch of 128, …"]

A [128, 1] beside a [128] becomes [128, 128] without a word, and a constant weight is right for one batch size alone.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import rng
from framework.losses import Coupled
from framework.step.gradients import Loss, forward
from framework.step.probe import scopes

_CLOSE = {"float32": 1e-3, "float64": 1e-6}  # of a mean, relative
_CLOSE_IN_HALF = 0.05


def unlike_halves(loss: Loss, model: Any, batch: Mapping[str, tf.Tensor], config: FrozenConfigDict) -> list[str]:
    """A sentence for each term whose mean differs; evaluates the loss three times, eagerly and not in training.

    Args:
      batch: {name: [examples, ...]}. Where one of its tensors has another first dimension, nothing is found.
      config: resolved.
    """
    examples = batch["weight"].shape[0]
    if examples < 2 or any(tensor.shape.rank == 0 or tensor.shape[0] != examples for tensor in batch.values()):
        return []
    middle = examples // 2
    with scopes(config.train.precision, 0, tf.constant(0, tf.int64)):
        start = rng.position()
        whole = forward(loss, model, batch, training=False)[0]
        halves = []
        for first, last in ((0, middle), (middle, examples)):
            part = {name: tensor[first:last] for name, tensor in batch.items()}
            with rng.rewound(start), rng.at_example(first):
                halves.append(forward(loss, model, part, training=False)[0])
    close = _CLOSE.get(config.train.precision, _CLOSE_IN_HALF)
    return [
        f"term '{name}' of the loss is {one:.6g} over a batch of {examples} and {two:.6g} over its two halves. Its"
        " weight must be a sum over examples, such as tf.reduce_sum(batch['weight']), and no example may meet another:"
        f" is there a [{examples}, 1] beside a [{examples}]? A term that compares examples is losses.Coupled."
        for name, term in whole.items()
        if not isinstance(term, Coupled)
        and not _is_close(one := _mean([term]), two := _mean([half[name] for half in halves]), close)
    ]


def _mean(terms: list[Any]) -> float:
    weight = sum(float(term.weight) for term in terms)
    return sum(float(term.sum) for term in terms) / weight if weight else 0.0


def _is_close(one: float, two: float, close: float) -> bool:
    """Whether they are; what is not finite is found elsewhere."""
    return not abs(one - two) > close * max(abs(one), abs(two))
