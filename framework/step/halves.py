"""Whether a loss says the same of a batch and of its two halves, as every sum over examples does.

    unlike_halves(loss, model, batch, config)    # ["term 'squares' of the loss is 77.1 over a batch of 128, …"]

A [128, 1] beside a [128] becomes [128, 128] without a word, and a constant weight is right for one batch size alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import rng
from framework.losses import Coupled
from framework.step.gradients import Loss, forward
from framework.step.penalties import is_penalty, unlike
from framework.step.probe import scopes

_CLOSE = {"float32": 1e-3, "float64": 1e-6}  # of a mean, relative
_CLOSE_IN_HALF = 0.05
_TINY = 1e-6  # of a mean: rounding of what should be zero


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
    found = []
    for name, term in whole.items():
        parts = [half[name] for half in halves]
        one, two = _mean([term]), _mean(parts)
        # Beside what the halves are, not their sum, in which they may cancel. What is not finite is found elsewhere.
        differs = abs(one - two) > close * max(abs(one), abs(two), _mean(parts, abs)) + _TINY
        if differs and is_penalty(name):
            found += [sentence for sentence in [unlike(one, [_mean([part]) for part in parts], close)] if sentence]
        elif differs and not isinstance(term, Coupled):
            found.append(
                f"term '{name}' of the loss is {one:.6g} over a batch of {examples} and {two:.6g} over its two halves."
                " Its weight must be a sum over examples, such as tf.reduce_sum(batch['weight']), and no example may"
                f" meet another: is there a [{examples}, 1] beside a [{examples}]? A term that compares examples is"
                " losses.Coupled."
            )
    return found


def _mean(terms: list[Any], of: Callable[[float], float] = float) -> float:
    """Sum of the sums, or of what `of` makes of them, divided by that of the weights; 0 for no weight."""
    weight = sum(float(term.weight) for term in terms)
    return sum(of(float(term.sum)) for term in terms) / weight if weight else 0.0
