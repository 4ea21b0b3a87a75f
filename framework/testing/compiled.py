"""Compares eager execution, tf.function and XLA.

check_compiled(lambda x: layer(x, training=True), [x])
"""

from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

from framework.compile import Compiled
from framework.testing.comparison import GRADIENT, compare
from framework.testing.function import Function, Named, differentiable, floating, gradients_of, products_of


def check_compiled(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    *,
    variables: Any = None,
    rtol: float | None = None,
    atol: float | None = None,
    seed: int = 0,
    bitwise: bool = False,
) -> None:
    """Compares eager execution with tf.function and with XLA: outputs, gradients, and variables after the call.

    The gradients are those of the outputs times fixed random numbers, by the floating inputs and the trainable
    variables. Tensors that are not floating must be equal.

    Args:
      fn: fn(*inputs) -> tensor, or a nest of tensors.
      inputs: tensors.
      variables: as in `check_gradients`; by default all trainable variables that fn reads.
      rtol: bound, relative to the largest magnitude of the tensor; by default 1e-12 for float64, 1e-5 for float32, 4e-3
        for float16, 3e-2 for bfloat16.
      atol: added to the bound; by default 0, but for gradients 16 roundings of the largest of them all, since the
        gradient of a bias before a normalisation is a sum that cancels.
      seed: of the random numbers and of the draws of fn.
      bitwise: floating tensors must have the same bits too.

    Raises:
      AssertionError: two modes disagree.
    """
    function = Function(fn, inputs, () if variables is None else variables, seed)
    read = {name: variable for name, variable in function.state.variables.items() if variable.trainable}
    sources = function.floating | (floating(read) if variables is None else differentiable(variables))
    with function.state:
        weights = function.random_weights()

        def run(inputs: Named) -> Named:
            outputs: Named = {}

            def products(inputs: Named) -> tf.Tensor:
                outputs.update({f"output {place}": output for place, output in enumerate(function(inputs))})
                return products_of(dict(enumerate(outputs.values())), weights)

            gradients = gradients_of(products, inputs, sources)
            return outputs | {f"{GRADIENT}{name}": gradient for name, gradient in gradients.items()}

        results: dict[str, Named] = {}
        for mode in ("eager", "graph", "xla"):
            function.state.restore()
            tensors = Compiled(run, mode, "check")(function.inputs)
            after = {f"{name} after the call": variable for name, variable in function.state.variables.items()}
            results[mode] = {name: tensor.numpy() for name, tensor in (tensors | after).items()}
    for mode in ("graph", "xla"):
        compare(("eager", mode), results["eager"], results[mode], rtol, atol, bitwise)
