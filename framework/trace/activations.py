"""Refuses probabilities where logits are wanted: a softmax of a softmax trains, slowly and to another optimum.

refuse_probabilities("sparse_cross_entropy", logits)     # UserError if they are what a softmax or sigmoid gives
refuse_second_softmax(graph)                             # the same of TensorFlow's own losses in a trace
"""

from typing import Any

import tensorflow as tf

from framework.errors import UserError
from framework.trace.graphs import place

_ACTIVATIONS = {"Softmax": "softmax", "Sigmoid": "sigmoid"}
# Operations that move or round values and leave them what they are.
_PASSING = {"Identity", "Cast", "Reshape", "Squeeze", "ExpandDims", "Transpose", "StopGradient", "CheckNumerics"}
_PASSING |= {"StridedSlice", "GatherV2"}
_OF_LOGITS = {"SparseSoftmaxCrossEntropyWithLogits", "SoftmaxCrossEntropyWithLogits", "LogSoftmax"}


def refuse_probabilities(function: str, logits: tf.Tensor) -> None:
    """Raises UserError if `logits` of a trace come from a softmax or a sigmoid, directly or in another shape or dtype.

    Args:
      function: of the framework, which applies that function itself; for the message.
      logits: a tensor; one that is computed eagerly has no history and passes.
    """
    if tf.is_symbolic_tensor(logits) and (operation := _source(logits.op)).type in _ACTIVATIONS:
        name = _ACTIVATIONS[operation.type]
        raise UserError(
            f"{function}: the logits are what a {name} gives ('{operation.name}'), but {function} takes logits. Leave"
            f" out the {name}, such as activation='{name}' of the last layer; what is exported may apply it."
        )


def refuse_second_softmax(graph: Any) -> None:
    """Raises UserError if a loss of TensorFlow or Keras in a trace takes the softmax of what a softmax gives."""
    for operation in graph.get_operations():
        if operation.type in _OF_LOGITS and _source(operation.inputs[0].op).type == "Softmax":
            where = place(operation)
            line = f"{where[1]}:{where[2]}: " if where else ""
            raise UserError(
                f"{line}a loss takes the softmax of what a softmax gives ('{_source(operation.inputs[0].op).name}')."
                " Leave out activation='softmax' of the last layer."
            )


def _source(operation: Any) -> Any:
    while operation.type in _PASSING:
        operation = operation.inputs[0].op
    return operation
