"""Checks that losses are additive over examples: each term of a batch is the weighted sum of those of its pieces.

    check_additive(loss, model, batch, config)    # ["term 'squares' of the loss is 77.1 over 96 examples and …"]

Micro-batches, replicas and padding rely on it. A [128, 1] beside a [128] becomes [128, 128] without a word, a mean is
right for one batch size alone, and a loss that leaves out batch["weight"] counts padding.
"""

from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import FrozenConfigDict

from framework import rng
from framework.losses import BatchDependent, Term
from framework.step.forward import Loss, forward
from framework.step.padding import counted, is_of_rows
from framework.step.penalties import PENALTY, is_penalty
from framework.step.penalty_checks import unlike_mean
from framework.step.scopes import scopes

_CLOSE = {"float32": 1e-3, "float64": 1e-6}  # of a mean, relative
_CLOSE_IN_HALF = 0.05
_TINY = 1e-6  # of a mean: rounding of what should be zero


def check_additive(
    loss: Loss, model: Any, batch: Mapping[str, tf.Tensor], config: FrozenConfigDict
) -> list[str] | None:
    """Returns a sentence for each term that is not additive; None, after a warning, if the loss cannot be evaluated.

    The rows of the batch have different weights, and the last rows a weight of 0. Sum and weight of a term must stay
    the same when the last rows are left out, and its mean when the other rows, or the first three, are taken in two
    unequal pieces. The loss is evaluated up to seven times, eagerly and not in training; if layers add to it in their
    calls, three times more, see `_sums_of_layers`.

    Args:
      batch: of `padding.padded`. If a tensor has another first dimension than the examples, the result is [].
      config: resolved.
    """
    examples = int(batch["weight"].shape[0])
    if examples < 2 or not is_of_rows(batch, examples):
        return []
    rows = counted(examples)
    # (examples, size of the first piece). A few beside many: of many, both pieces may have about the same root or mean.
    cuts = [(rows, 2 if rows > 3 else 1), *([(3, 1)] if rows > 3 else [])]
    uneven = batch["weight"]

    def terms(weight: tf.Tensor, begin: int, end: int) -> Mapping[str, Term]:
        piece = {name: tensor[begin:end] for name, tensor in {**batch, "weight": weight}.items()}
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)), rng.at_example(begin):
            return forward(loss, model, piece, training=False)[0]

    whole = terms(uneven, 0, examples)
    try:
        compared = [
            (size, first, terms(uneven, 0, size), [terms(uneven, 0, first), terms(uneven, first, size)])
            for size, first in cuts
        ]
    except (tf.errors.OpError, ValueError, TypeError) as error:  # such as a tf.range(batch size) in the loss
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logging.warning(
            "whether the loss adds up over examples is not known, because it cannot be computed for %d of the %d"
            " examples of a batch: %s",
            rows,
            examples,
            reason,
        )
        return None
    close = _CLOSE.get(config.train.precision, _CLOSE_IN_HALF)
    problems = []
    if any(is_penalty(name) and name != PENALTY for name in whole):
        halves = ((0, rows // 2 * 2), (0, rows // 2), (rows // 2, rows // 2 * 2))
        problems += _sums_of_layers([terms(tf.ones_like(uneven), *half) for half in halves], close)
    is_close = _closeness(close)
    for name, term in whole.items():
        if isinstance(term, BatchDependent) or is_penalty(name):
            continue
        real = compared[0][2][name]
        if _counts_padding(term, real, close):
            problems.append(
                f"term '{name}' of the loss is {_shown(term)} over a batch of {examples} and {_shown(real)} over the"
                f" {rows} of them that have a weight: rows of weight 0 must not count. Write losses.Term("
                "tf.reduce_sum(values * batch['weight']), tf.reduce_sum(batch['weight'])); the weights of tokens are"
                " token_weight * batch['weight'][:, tf.newaxis]."
            )
            continue
        for size, first, of_all, of_pieces in compared:
            pieces = [each[name] for each in of_pieces]
            if not is_close([of_all[name]], pieces):
                problems.append(
                    f"term '{name}' of the loss is {_mean([of_all[name]]):.6g} over {size} examples and"
                    f" {_mean(pieces):.6g} over parts of {first} and {size - first} of them. Sum and weight must be"
                    " sums over examples, such as tf.reduce_sum(batch['weight']), and no example may meet another: is"
                    f" there a [{examples}, 1] beside a [{examples}]? A term that compares examples is"
                    " losses.BatchDependent."
                )
                break
    return problems


def _sums_of_layers(terms: list[Mapping[str, Term]], close: float) -> list[str]:
    """Returns sentences about penalties of layers that grow with the batch.

    Args:
      terms: of a batch in which all weights are 1, of its first half, and of its second.
    """
    whole, *halves = terms
    names = [
        name for name in whole if is_penalty(name) and not _closeness(close)([whole[name]], [h[name] for h in halves])
    ]
    sentences = [unlike_mean(_mean([whole[name]]), [_mean([half[name]]) for half in halves], close) for name in names]
    return [sentence for sentence in sentences if sentence]


def _counts_padding(whole: Term, real: Term, close: float) -> bool:
    """Returns whether sum or weight change when rows of weight 0 are left out; their mean may happen to stay."""
    scale = max(abs(float(term.weight)) for term in (whole, real))
    sums, weights = ([float(number) for number in pair] for pair in zip(whole, real, strict=True))
    return any(abs(one - other) > close * max(abs(one), abs(other)) + _TINY * scale for one, other in (sums, weights))


def _shown(term: Term) -> str:
    """Returns 'sum / weight' in numbers."""
    return f"{float(term.sum):.6g} / {float(term.weight):.6g}"


def _closeness(close: float) -> Callable[[list[Term], list[Term]], bool]:
    def is_close(one: list[Term], other: list[Term]) -> bool:
        left, right = _mean(one), _mean(other)
        # Relative to the pieces, not to their sum, in which they may cancel. Infinities and NaN are found elsewhere.
        return not abs(left - right) > close * max(abs(left), abs(right), _mean(other, abs)) + _TINY

    return is_close


def _mean(terms: list[Term], of: Callable[[float], float] = float) -> float:
    """Returns the sum of the sums, or of what `of` makes of them, divided by that of the weights; 0 for no weight."""
    weight = sum(float(term.weight) for term in terms)
    return sum(of(float(term.sum)) for term in terms) / weight if weight else 0.0
