"""Makes a batch whose last rows have a weight of 0, as padding has, and finds metrics that count these rows.

batch = padded(batches)                                  # weights of 0.5 to 1.5, and 0 for the last quarter
check_metrics(loss, model, metrics, batch, config)       # ["metric 'perplexity' counts rows of weight 0: …"]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import FrozenConfigDict

from framework.data.batches import Batches
from framework.data.bucketed import longest
from framework.metrics import Metric
from framework.step.forward import Batch, Loss, forward
from framework.step.scopes import scopes

_CLOSE = 1e-3  # relative: states are sums of the same numbers in another order
_TINY = 1e-6  # relative to the largest number of a state


def padded(batches: Batches) -> Batch:
    """Returns the first batch, eagerly, with its weights multiplied by 0.5 to 1.5, and those of its last rows by 0.

    The weights are multiplied before the transform, as padding stands there already. An experiment's own batches
    without a method `weighted` get the weights afterwards. Batches of several shapes have that of the longest.
    """
    batches = longest(batches)
    weighted = getattr(batches, "weighted", None)
    return with_padding(batches.at(0)) if weighted is None else weighted(0, factors(batches.batch_size))


def with_padding(batch: Batch) -> Batch:
    """Returns a batch with its weights multiplied by `factors`."""
    weight = batch["weight"]
    return {**batch, "weight": weight * tf.cast(factors(weight.shape[0]), weight.dtype)}


def factors(examples: int) -> tf.Tensor:
    """Returns float32 [examples]: from 0.5 to 1.5, and 0 for the rows after `counted(examples)`."""
    rows = counted(examples)
    # By NumPy: the many operations of tf.linspace take an eager process 0.1 s the first time.
    return tf.constant([*np.linspace(0.5, 1.5, rows), *np.zeros(examples - rows)], tf.float32)


def counted(examples: int) -> int:
    """Returns how many rows of a padded batch have a weight; all, if there are only two."""
    return examples - max(1, examples // 4) if examples > 2 else examples


def is_of_rows(tensors: Mapping[str, Any], examples: int) -> bool:
    """Returns whether every tensor has the examples first."""
    return all(tf.is_tensor(tensor) and tensor.shape[:1] == [examples] for tensor in tensors.values())


def check_metrics(
    loss: Loss, model: Any, metrics: Mapping[str, Metric], batch: Batch, config: FrozenConfigDict
) -> list[str]:
    """Returns a sentence for each metric whose state changes when the rows of weight 0 are left out of the batch.

    A metric that cannot be computed without these rows is told of in a warning. The loss is evaluated once, eagerly
    and not in training, or twice if it has outputs that do not have the examples first.

    Args:
      batch: of `padded`. If a tensor has another first dimension than the examples, the result is [].
      config: resolved.
    """
    examples = int(batch["weight"].shape[0])
    rows = counted(examples)
    if not metrics or rows == examples or not is_of_rows(batch, examples):
        return []
    problems = []
    with scopes(config.train.precision, 0, tf.constant(0, tf.int64)):
        outputs = forward(loss, model, batch, training=False)[1]
        for name, metric in metrics.items():
            whole = metric.update(outputs, batch)
            try:
                real = metric.update(*_first(rows, loss, model, outputs, batch))
            except (tf.errors.OpError, ValueError, TypeError) as error:  # such as a metric for one batch size alone
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                logging.warning(
                    "whether metric '%s' counts rows of weight 0 is not known, because it cannot be computed for %d of"
                    " the %d examples of a batch: %s",
                    name,
                    rows,
                    examples,
                    reason,
                )
                continue
            states = np.asarray(whole, np.float64), np.asarray(real, np.float64)
            problems += _problem(name, metric, states, examples, rows)
    return problems


def _first(rows: int, loss: Loss, model: Any, outputs: Batch, batch: Batch) -> tuple[Batch, Batch]:
    """Returns the outputs of the first rows, and these rows of the batch."""
    examples = batch["weight"].shape[0]
    piece = {field: tensor[:rows] for field, tensor in batch.items()}
    if is_of_rows(outputs, examples):
        return {output: tensor[:rows] for output, tensor in outputs.items()}, piece
    return dict(forward(loss, model, piece, training=False)[1]), piece


def _problem(name: str, metric: Metric, states: tuple[np.ndarray, np.ndarray], examples: int, rows: int) -> list[str]:
    """Returns a sentence if the states of the whole batch and of its first rows differ."""
    whole, real = states
    tiny = _TINY * np.max(np.abs(real), initial=0.0, where=np.isfinite(real))
    is_close = np.isclose(whole, real, rtol=_CLOSE, atol=tiny, equal_nan=True)
    if is_close.all():
        return []
    place = int(np.argmin(is_close))
    field = getattr(metric, "weight", None)
    advice = (
        f"Make '{field}' 0 in these rows, in the transform: {field} * batch['weight'][:, tf.newaxis] of tokens."
        if isinstance(field, str) and field != "weight"
        else "Multiply what update adds up by batch['weight']."
    )
    return [
        f"metric '{name}' counts rows of weight 0: state[{place}] is {whole[place]:.6g} over a batch of {examples} and"
        f" {real[place]:.6g} over the {rows} of them that have a weight. {advice}"
    ]
