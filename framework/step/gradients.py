"""From a loss to gradients: the only training tape.

    terms, outputs, gradients = terms_and_gradients(loss, model, batch, variables)
    total(terms)

`variables` are named, so that an error can say which parameter the loss leaves out.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from framework.config import UserError
from framework.losses import Term

Terms = Mapping[str, Term]
# loss(model, batch, training) -> (terms, outputs); outputs feed metrics
Loss = Callable[[Any, Mapping[str, tf.Tensor], bool], tuple[Terms, Mapping[str, tf.Tensor]]]

PENALTY = "penalty"


def forward(loss: Loss, model: Any, batch: Mapping[str, tf.Tensor], training: bool) -> tuple[Terms, Mapping[str, Any]]:
    """The loss's terms and outputs, with the model's penalties (`model.losses`) as one more term of weight 1."""
    returned = loss(model, batch, training)
    if not _is_terms_and_outputs(returned):
        raise UserError(
            f"the loss returned {_shown(returned)}. It must return ({{name: Term(sum, weight)}}, {{name: tensor}}):"
            " its terms, and the outputs that metrics read."
        )
    terms, outputs = returned
    # A plain tf.Module has none; Keras may still hold those that a layer added in an earlier trace.
    penalties = [penalty for penalty in getattr(model, "losses", ()) if _is_of_this_trace(penalty)]
    if penalties:
        penalty = _sum(penalties)
        terms = {**terms, PENALTY: Term(penalty, tf.ones([], penalty.dtype))}
    return terms, outputs


def _is_of_this_trace(penalty: tf.Tensor) -> bool:
    if tf.executing_eagerly():
        return not tf.is_symbolic_tensor(penalty)
    return not tf.is_symbolic_tensor(penalty) or penalty.graph is tf.compat.v1.get_default_graph()


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
    """'(dict of SymbolicTensor, dict)': what kind of thing a loss returned."""
    if isinstance(returned, tuple) and not isinstance(returned, Term):
        return f"({', '.join(_shown(part) for part in returned)})"
    if isinstance(returned, Mapping):
        kinds = sorted({type(value).__name__ for value in returned.values()})
        return f"dict of {' and '.join(kinds)}" if kinds else "an empty dict"
    return type(returned).__name__


def total(terms: Terms) -> tf.Tensor:
    """Sum of the terms' means, scalar; a term of zero weight contributes 0."""
    return _sum([tf.math.divide_no_nan(term.sum, term.weight) for term in terms.values()])


def _sum(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sum of scalars, in float64 if one of them is (layers may differ in dtype)."""
    dtype = tf.float64 if any(value.dtype == tf.float64 for value in values) else tf.float32
    return tf.add_n([tf.cast(value, dtype) for value in values])


def terms_and_gradients(
    loss: Loss, model: Any, batch: Mapping[str, tf.Tensor], variables: Mapping[str, tf.Variable]
) -> tuple[Terms, Mapping[str, Any], list[tf.Tensor]]:
    """Differentiates the total of the terms.

    Returns:
      terms, outputs, and a dense gradient for each of `variables`, in their order.

    Raises:
      UserError: a variable that the loss does not depend on.
    """
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        terms, outputs = forward(loss, model, batch, training=True)
        value = total(terms)
    gradients = tape.gradient(value, list(variables.values()))
    idle = [path for path, gradient in zip(variables, gradients, strict=True) if gradient is None]
    if idle:
        raise UserError(
            f"the loss does not depend on {', '.join(idle)}, so it would never train."
            " Use it in make_loss, or set trainable=False on its layer."
        )
    return terms, outputs, [tf.convert_to_tensor(gradient) for gradient in gradients]
