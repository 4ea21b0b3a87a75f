"""Compares eager execution, tf.function and XLA.

check_compiled(lambda x: layer(x, training=True), [x])
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework.compile import Compiled
from framework.testing.function import Function, Named, differentiable, floating, gradients_of, products_of

# By dtype: what another order of the same sums may change of a tensor's largest magnitude, and the dtype's eps.
_BOUNDS = {
    "float64": (1e-12, 2.0**-52),
    "float32": (1e-5, 2.0**-23),
    "float16": (4e-3, 2.0**-10),
    "bfloat16": (3e-2, 2.0**-7),
}
_MODE_ROUNDINGS = 16
_GRADIENT = "gradient by "


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
            return outputs | {f"{_GRADIENT}{name}": gradient for name, gradient in gradients.items()}

        results: dict[str, Named] = {}
        for mode in ("eager", "graph", "xla"):
            function.state.restore()
            tensors = Compiled(run, mode, "check")(function.inputs)
            after = {f"{name} after the call": variable for name, variable in function.state.variables.items()}
            results[mode] = {name: tensor.numpy() for name, tensor in (tensors | after).items()}
    for mode in ("graph", "xla"):
        _compare(("eager", mode), results["eager"], results[mode], rtol, atol, bitwise)


def _compare(
    modes: tuple[str, str], one: Named, other: Named, rtol: float | None, atol: float | None, bitwise: bool
) -> None:
    """Raises AssertionError unless two modes gave the same tensors; names the tensor furthest beyond its bound."""
    pair = f"{modes[0]} and {modes[1]} disagree"
    if one.keys() != other.keys():
        names = ", ".join(sorted(one.keys() ^ other.keys()))
        raise AssertionError(f"{pair}: only {modes[0] if one.keys() > other.keys() else modes[1]} has {names}")
    largest = max((_magnitude(x) for name, x in one.items() if name.startswith(_GRADIENT)), default=0.0)
    worst, message = 1.0, ""
    for name, x in one.items():
        y, bound = other[name], 0.0
        if x.shape != y.shape or x.dtype != y.dtype:
            raise AssertionError(f"{pair}: {name} is {x.dtype.name}{[*x.shape]} and {y.dtype.name}{[*y.shape]}")
        if x.dtype.name in _BOUNDS and not bitwise:
            relative, eps = _BOUNDS[x.dtype.name]
            cancelling = _MODE_ROUNDINGS * eps * largest if name.startswith(_GRADIENT) else 0.0
            bound = (relative if rtol is None else rtol) * _magnitude(x) + (cancelling if atol is None else atol)
        bits = f"u{x.itemsize}"
        same = x.view(bits) == y.view(bits) if bitwise else (x == y) | ((x != x) & (y != y))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.nan_to_num(np.abs(x.astype(np.float64) - y.astype(np.float64)), nan=np.inf)
            excess = np.where(same, 0.0, difference / max(bound, 1e-300) if bound else np.inf)
        place = np.unravel_index(int(np.argmax(excess)), x.shape) if x.size else ()
        if x.size and excess[place] > worst:
            worst = float(excess[place])
            where = str([int(i) for i in place]) if place else ""
            limit = "equal bits" if bitwise else f"{bound:.3g}"
            message = f"{pair}: {name}{where} is {x[place]} and {y[place]}, a difference of {difference[place]:.3g};"
            message += f" the bound is {limit}, {int((excess > 1).sum())} of {x.size} elements are beyond it"
    if message:
        raise AssertionError(message)


def _magnitude(x: np.ndarray) -> float:
    """Returns the largest finite magnitude; 0 if there is none."""
    wide = np.abs(x.astype(np.float64))
    return float(np.max(wide, where=np.isfinite(wide), initial=0.0))
