"""The weights of a loss's terms, computed without a forward pass: stage 0 of the step.

    weights = term_normalizers(lambda batch: loss(model, batch, True), batch_specs)
    weights(batch)                                     # {'cross_entropy': 1873.0}

A term is divided by its weight over the *whole* batch, which must be known before the first micro-batch or shard is
differentiated. A weight is a function of the batch alone, so only the operations that lead to the weights are taken
from a trace of the loss: the model is not called, nothing is drawn twice, no moving average moves.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import tensorflow as tf

from framework.errors import UserError
from framework.trace.graphs import ancestors, imported


def term_normalizers(
    run: Callable[..., Any], *specs: Any, of_pieces: Collection[str] = (), examples: Collection[tf.Tensor] = ()
) -> Callable[..., Any]:
    """Returns a function of the same arguments as `run` that returns {term: weight, scalar} alone.

    Args:
      run: tensors -> (terms, outputs); traced once.
      specs: nests of tf.TensorSpec, its arguments.
      of_pieces: terms of which `run` sees a piece of the examples; their weights must depend on the examples.
      examples: tensors of examples that `run` captures. Without a trace around `run` they look like any constant.

    Raises:
      UserError: a weight is computed from a variable of the model, or is the same for each piece.
    """
    weights: dict[str, tf.Tensor] = {}
    sums: dict[str, tf.Tensor] = {}

    def trace(*args: Any) -> None:
        terms, _ = run(*args)
        weights.update({name: tf.identity(term.weight) for name, term in terms.items()})
        sums.update({name: tf.identity(term.sum) for name, term in terms.items()})

    graph = tf.function(trace, autograph=False).get_concrete_function(*specs).graph
    check_weights(graph, weights)
    pieces = {name: (sums[name], weights[name]) for name in of_pieces}
    check_not_constant(pieces, _examples_of(graph, len(tf.nest.flatten(specs)), examples))
    operations = set().union(*(ancestors(weight) for weight in weights.values()))
    inputs = [*graph.inputs[: len(tf.nest.flatten(specs))], *(inner for _, inner in graph.captures)]
    outers = [outer for outer, _ in graph.captures]

    def pruned(*args: Any) -> dict[str, tf.Tensor]:
        given = [*tf.nest.flatten(args), *outers]
        feeds = {
            inner.name: tf.identity(outer) for inner, outer in zip(inputs, given, strict=True) if inner.op in operations
        }
        fetched = imported(graph, list(weights.values()), feeds, "weights")
        return dict(zip(weights, fetched, strict=True))

    return tf.function(pruned, autograph=False)


def check_not_constant(terms: Mapping[str, tuple[tf.Tensor, tf.Tensor]], examples: Collection[tf.Operation]) -> None:
    """Raises UserError if a term's sum depends on the examples of a batch and its weight does not.

    The mean over a batch with a weight of 1 is such a term. Over padded or unequal batches, micro-batches and replicas,
    such terms do not add up to the mean over all examples. A penalty on the weights of a model depends on no example,
    and may have any weight.

    Args:
      terms: {name: (sum, weight)}, tensors of one graph.
      examples: the operations that the batch comes from.
    """
    for name, (total, weight) in terms.items():
        of_sum, of_weight = ancestors(total), ancestors(weight)
        if not of_sum.isdisjoint(examples) and of_weight.isdisjoint(examples):
            raise UserError(
                f"the weight of term '{name}' is the same for every batch and part of one, but its sum is of the"
                " examples: such terms do not add up to a mean. Use a weight of the examples, e.g."
                " losses.Term(tf.reduce_sum(values * batch['weight']), tf.reduce_sum(batch['weight'])), and put a"
                " constant into Term.sum."
            )


def check_weights(graph: Any, weights: Mapping[str, tf.Tensor]) -> None:
    """Raises UserError if a weight is computed from a variable; all are tensors of `graph`, a trace of the loss."""
    handles = {id(variable.handle): variable for variable in graph.variables}
    read = {inner.op: handles[id(outer)] for outer, inner in graph.captures if id(outer) in handles}
    for name, weight in weights.items():
        operations = ancestors(weight)
        for operation in operations & read.keys():
            if any(operation.type.endswith("PartitionedCall") for operation in operations):
                raise UserError(
                    f"the weight of term '{name}' comes out of a tf.function, which hides whether it is computed from"
                    f" the variable '{read[operation].name}'. Take tf.function off the loss: steps are compiled anyway."
                )
            raise UserError(
                f"the weight of term '{name}' is computed from the variable '{read[operation].name}'. A weight is a"
                " function of the batch alone: put factors that depend on the model into Term.sum."
            )


def _examples_of(graph: Any, given: int, examples: Collection[tf.Tensor]) -> set[tf.Operation]:
    """Returns the operations that the examples of a piece come from, but for a scalar such as the step.

    Those are the first `given` inputs of a trace, and what it captures of the trace around it or of `examples`.
    """
    known = {id(tensor) for tensor in examples}
    return {inner.op for inner in graph.inputs[:given]} | {
        inner.op
        for outer, inner in graph.captures
        if (tf.is_symbolic_tensor(outer) and inner.shape.rank) or id(outer) in known
    }
