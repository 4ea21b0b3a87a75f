"""Runs a loss on one batch, checks what it returns and adds the penalties of layers to its terms.

terms, outputs = forward(loss, model, batch, training=True)
total(terms)                               # scalar: the number that a step differentiates
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError, near
from framework.losses import BatchDependent, Term
from framework.metrics import Metric
from framework.metrics.base import empty_states
from framework.step.penalties import is_penalty, sum_of, with_penalties

Terms = Mapping[str, Term]
Batch = Mapping[str, tf.Tensor]
# loss(model, batch, training) -> (terms, outputs); metrics read the outputs
Loss = Callable[[Any, Batch, bool], tuple[Terms, Mapping[str, tf.Tensor]]]
# A forward pass over a batch, shard or micro-batch: batch -> (terms, outputs)
ForwardPass = Callable[[Batch], tuple[Terms, Mapping[str, tf.Tensor]]]

_FULL = (tf.float32, tf.float64)
_NUMBERS = int | float | np.ndarray | np.generic


def forward(loss: Loss, model: Any, batch: Batch, training: bool) -> tuple[Terms, Mapping[str, Any]]:
    """Returns the terms and outputs of a loss, with the penalties of the model's layers as further terms."""
    return checked_pass(lambda batch: loss(model, batch, training), model)(batch)


def checked_pass(forward_pass: ForwardPass, model: Any) -> ForwardPass:
    """Returns a forward pass that checks what `forward_pass` returns and adds the penalties of layers of the model.

    Raises (when called):
      UserError: something else is returned than (terms, outputs), a term or penalty is not a scalar of at least
        float32, a term has the name of the penalties, or a penalty has no right weight (`penalties.with_penalties`).
    """

    def run(batch: Batch) -> tuple[Terms, Mapping[str, Any]]:
        returned, penalties = with_penalties(lambda: forward_pass(batch), model, batch)
        terms, outputs = _checked(returned)
        return {**terms, **penalties}, outputs

    return run


def total(terms: Terms, normalizers: Mapping[str, tf.Tensor] | None = None) -> tf.Tensor:
    """Returns the sum of the terms, each divided by its normalizer: a scalar. A normalizer of 0 makes its term 0.

    Args:
      terms: of the global batch, a shard or a micro-batch.
      normalizers: the weight of each term over the global batch; by default the terms' own weights.
    """
    normalizers = normalizers or {name: term.weight for name, term in terms.items()}
    return sum_of(
        [tf.math.divide_no_nan(term.sum, tf.cast(normalizers[name], term.sum.dtype)) for name, term in terms.items()]
    )


def count_empty(terms: Terms) -> tf.Tensor:
    """Returns how many terms of the loss have a weight of 0: int64 scalar."""
    own = [term for name, term in terms.items() if not is_penalty(name)]
    return sum(tf.cast(tf.equal(term.weight, 0), tf.int64) for term in own)


def check_batch_dependent(terms: Mapping[str, Any], micro_batches: int, replicas: int) -> None:
    """Raises UserError if a term compares the examples of a batch, and no micro-batch or replica sees all of them."""
    for name, term in terms.items():
        if isinstance(term, BatchDependent) and replicas > 1:
            raise UserError(
                f"term '{name}' compares the examples of a batch with one another, and each of {replicas} replicas sees"
                " but its own. Gather the features with losses.all_gather and set needs_collectives=True on the loss,"
                " or use --config.runtime.strategy=one_device."
            )
        if isinstance(term, BatchDependent) and micro_batches > 1:
            raise UserError(
                f"train.micro_batches={micro_batches}: term '{name}' compares the examples of a batch with one another,"
                " and micro-batches would hide most of them. Use --config.train.micro_batches=1."
            )


def check_step(returned: Any, metrics: Mapping[str, Metric], dtype: tf.DType) -> tuple[Terms, Mapping[str, tf.Tensor]]:
    """Returns the terms and metric states that a step function returned; a metric that it left out is empty.

    Raises:
      UserError: it returned something else, or a metric that `make_metrics` does not have.
    """
    if not isinstance(returned, tuple) or len(returned) != 2 or not all(isinstance(x, Mapping) for x in returned):
        raise UserError(
            f"the step returned {type(returned).__name__}. It must return (terms, metric states), e.g."
            " `return result.terms, result.metrics` of `result = tools.gradients(…)`."
        )
    terms, states = returned
    for name, term in terms.items():
        if not isinstance(term, Term):
            raise UserError(
                f"the step returned the term '{name}' as {_shown(term)}. A term is losses.Term(sum, weight), such as"
                f" result.terms['{name}'] of `result = tools.gradients(…)`."
            )
    _check_terms(terms, "the step")
    for name in states.keys() - metrics.keys():
        raise UserError(
            f"the step returned a metric '{name}' that make_metrics does not have.{near(str(name), metrics)}"
        )
    for name, state in states.items():
        _check_state(name, state, len(metrics[name].empty()))
    return terms, {**empty_states(metrics, dtype), **states}


def _checked(returned: Any) -> tuple[Terms, Mapping[str, Any]]:
    """Returns (terms, outputs) as a loss returned them."""
    if not _is_terms_and_outputs(returned):
        _refuse_values(returned)
        raise UserError(
            f"the loss returned {_shown(returned)}. It must return ({{name: Term(sum, weight)}}, {{name: tensor}}):"
            " its terms, and the outputs that metrics read."
        )
    terms, outputs = returned
    _check_terms(terms, "the loss")
    for name, term in terms.items():
        if term.sum.dtype not in _FULL:
            raise UserError(
                f"term '{name}' of the loss is {term.sum.dtype.name}: sums need float32 at least. Cast logits with"
                " tf.cast(logits, tf.float32), or give the last layer dtype='float32'."
            )
        if is_penalty(name):
            raise UserError(
                f"the loss returned a term '{name}', which is what model.losses are called. Give it another name."
            )
    for name, output in outputs.items():
        if not all(tf.is_tensor(each) or isinstance(each, _NUMBERS) for each in tf.nest.flatten(output)):
            raise UserError(
                f"the loss returned the output '{name}' as {_shown(output)}. Outputs are tensors, which metrics read:"
                " leave out what is none."
            )
    return terms, outputs


def _refuse_values(returned: Any) -> None:
    """Raises UserError for a term that is a tensor, such as the losses of the examples or their mean."""
    if isinstance(returned, tuple) and len(returned) == 2 and isinstance(returned[0], Mapping):
        for name, values in returned[0].items():
            if tf.is_tensor(values):
                raise UserError(
                    f"term '{name}' of the loss is a tensor of shape {values.shape}, not a Term, so nobody knows what"
                    f" padding adds to it. Give the loss of each example to losses.mean(values, batch['weight']): it"
                    " returns their weighted sum and the sum of the weights."
                )


def _check_terms(terms: Terms, what: str) -> None:
    """Raises UserError if a term has no name, or its sum or weight is no scalar."""
    for name, term in terms.items():
        if not isinstance(name, str):
            raise UserError(f"{what} returned a term under the name {name!r}. Names are text: write '{name}'.")
        if not hasattr(term.sum, "dtype") or not isinstance(term.weight, tf.Tensor | tf.Variable | _NUMBERS):
            raise UserError(
                f"term '{name}' of {what} has a sum and a weight of types {type(term.sum).__name__} and"
                f" {type(term.weight).__name__}. Both are scalars, e.g. Term(tf.reduce_sum(values * weight),"
                " tf.reduce_sum(weight))."
            )
        shapes = [tf.convert_to_tensor(number).shape for number in term]
        if any(shape.rank for shape in shapes):
            raise UserError(
                f"term '{name}' of {what} has a sum and a weight of shapes {shapes[0]} and {shapes[1]}. Both are"
                " scalars, e.g. Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))."
            )


def _check_state(name: str, state: Any, size: int) -> None:
    """Raises UserError if a step function returned a metric state that is no vector of `size` numbers."""
    is_array = tf.is_tensor(state) or isinstance(state, np.ndarray)
    if not is_array or not tf.TensorShape(state.shape).is_compatible_with([size]):
        shown = f"shape {state.shape}" if is_array else _shown(state)
        raise UserError(
            f"the step returned the metric '{name}' as {shown}, but its state is a vector of {size} numbers. Return"
            f" result.metrics of `result = tools.gradients(…)`, or {{'{name}': metric.update(outputs, batch)}}."
        )


def _is_terms_and_outputs(returned: Any) -> bool:
    if not isinstance(returned, tuple) or len(returned) != 2:
        return False
    terms, outputs = returned
    return (
        isinstance(terms, Mapping)
        and bool(terms)
        and all(isinstance(term, Term) for term in terms.values())
        and isinstance(outputs, Mapping)
    )


def _shown(returned: Any) -> str:
    """Returns '(dict of SymbolicTensor, dict)': what kind of thing a loss returned."""
    if isinstance(returned, tuple) and not isinstance(returned, Term):
        return f"({', '.join(_shown(item) for item in returned)})"
    if isinstance(returned, Mapping):
        kinds = sorted({type(value).__name__ for value in returned.values()})
        return f"dict of {' and '.join(kinds)}" if kinds else "an empty dict"
    return type(returned).__name__
