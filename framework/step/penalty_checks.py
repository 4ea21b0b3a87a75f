"""Which batches the penalties of layers are wrong for: pieces of a batch, padding, weights; and sums that grow."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework.data.batches import Batches
from framework.data.bucketed import last_steps
from framework.errors import UserError
from framework.step.added_losses import layers_of
from framework.step.penalties import COUPLED, UNEVEN


def uneven(model: Any) -> list[str]:
    """Returns the paths of layers whose penalties, as traced so far, are right only if all rows have weight 1."""
    return [path for path, layer in layers_of(model) if layer.__dict__.get(UNEVEN)]


def coupled(model: Any) -> list[str]:
    """Returns the paths of layers whose activity regulariser compares rows with one another."""
    return [path for path, layer in layers_of(model) if layer.__dict__.get(COUPLED)]


def check_penalties(model: Any, batches: Batches, config: FrozenConfigDict, replicas: int) -> None:
    """Checks that no micro-batches, replicas, padding or weights make a penalty wrong, once the loss is traced.

    For penalties that are right only for rows of weight 1, the weights of the first batch are checked, and of the last
    one of an epoch, which may be padded. In any other batch such weights make the penalty NaN.

    Raises:
      UserError: a penalty would be wrong.
    """
    check_pieces(model, config.train.micro_batches, replicas)
    if uneven(model) and not isinstance(batches, tf.Module):  # a batch of these is taken only once
        for step in {0, *last_steps(batches)}:
            check_row_weights(model, batches.at(step)["weight"], f"the training batch of step {step}")


def check_pieces(model: Any, micro_batches: int, replicas: int) -> None:
    """Raises UserError if an activity regulariser compares rows, and a batch is cut into pieces."""
    if micro_batches * replicas > 1 and (layers := coupled(model)):
        cut = f"train.micro_batches={micro_batches}" if micro_batches > 1 else f"{replicas} replicas"
        raise UserError(
            f"{cut}: the activity regulariser of layer '{layers[0]}' is no sum over rows, so that of a batch is not"
            " that of its parts. Use one that is, or a term losses.BatchDependent of make_loss, or"
            " --config.train.micro_batches=1 on one device."
        )


def check_row_weights(model: Any, weight: tf.Tensor, where: str) -> None:
    """Raises UserError if a row has another weight than 1, and a penalty is right for rows of weight 1 alone.

    Args:
      weight: [rows], eager.
      where: the name of the batch in the message.
    """
    problem = weight_problem(model, weight, where)
    if problem:
        raise UserError(problem)


def weight_problem(model: Any, weight: tf.Tensor, where: str = "the batch") -> str:
    """Returns a sentence if weights of rows make a penalty NaN; '' if they do not. For the arguments see above."""
    is_even = bool(tf.reduce_all(tf.equal(weight, 1)))
    if is_even or not (layers := uneven(model)):
        return ""
    return (
        f"{where} has rows that are padded or weighted, but layer '{layers[0]}' adds a loss that is one number for all"
        " rows of a call. Write self.add_loss(per_example), of shape [batch], or make it a term of make_loss, or, if"
        " only padding is in the way, use --config.data.remainder=wrap."
    )


def unlike_mean(whole: float, halves: Sequence[float], close: float) -> str:
    """Returns a sentence if what layers add is a sum over rows; '' for a mean, and for what compares rows.

    Args:
      whole, halves: the means of a penalty over a batch and over its halves.
      close: relative bound.
    """
    if abs(whole - sum(halves)) > close * sum(map(abs, halves)):
        return ""
    return (
        f"what layers add to the loss is {whole:.6g} over a batch and {sum(halves) / len(halves):.6g} over its two"
        " halves: it grows with the batch, but counts as a mean over its rows. Write self.add_loss(per_example), of"
        " shape [batch], or add a mean."
    )
