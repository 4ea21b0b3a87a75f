"""From a loss to gradients: the only training tape.

    terms, outputs, gradients = terms_and_gradients(loss, model, batch, variables)
    total(terms)

`variables` are named, so that an error can say which parameter the loss leaves out.
"""

from collections.abc import Callable, Mapping
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
    terms, outputs = loss(model, batch, training)
    penalties = model.losses
    if penalties:
        penalty = tf.add_n(penalties)
        terms = {**terms, PENALTY: Term(penalty, tf.ones([], penalty.dtype))}
    return terms, outputs


def total(terms: Terms) -> tf.Tensor:
    """Sum of the terms' means, scalar; a term of zero weight contributes 0."""
    return tf.add_n([tf.math.divide_no_nan(term.sum, term.weight) for term in terms.values()])


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
