"""Compares the gradients of the tape with differences of the function.

layer = MyLayer(dtype="float64")
check_gradients(lambda x: layer(x, training=True), [x], variables=layer)      # x: float64 [batch, features]
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework.testing.function import Function, Kept, Named, differentiable, direction, gradients_of, products_of

_DIFFERENCE_ROUNDINGS = 32


def check_gradients(
    fn: Callable[..., Any],
    inputs: Sequence[Any],
    variables: Any = (),
    *,
    order: int = 1,
    rtol: float = 1e-6,
    atol: float | None = None,
    step: float = np.finfo(np.float64).eps ** (1 / 3),
    seed: int = 0,
    samples: int = 8,
) -> None:
    """Compares the gradients of the tape with differences of the function, both in float64.

    The outputs are multiplied by fixed random numbers and summed. The sum is differentiated by four-point central
    differences: by every element of a tensor of at most 2 * `samples`; of a larger one by `samples` of its elements and
    along `samples` random directions through all of them.

    Args:
      fn: fn(*inputs) -> float64 tensor, or a nest with at least one. It must be traceable, as in the step.
      inputs: tensors; the floating ones are differentiated and must be float64.
      variables: what else to differentiate by: a layer, model, tf.Module or dict of models (its trainable variables,
        named by path), or a list of variables.
      order: 2 checks the second derivatives too: the gradient of <gradient, random direction> against its differences.
      rtol: bound, relative to the larger of the two values.
      atol: added to the bound; by default the rounding error of the difference (1e-9 where the outputs have norm 1).
      step: of the differences, times max(1, |x|). A kink of fn within two steps of a value spoils the difference there.
      seed: of the random numbers and of the draws of fn.
      samples: elements and directions of a large tensor, see above.

    Raises:
      AssertionError: a gradient is wrong, or fn gave two results for the same inputs, variables and draws.
      TypeError: an input, variable or output is floating but not float64.
      ValueError: `order` is not 1 or 2, or there is nothing to differentiate.
    """
    if order not in (1, 2):
        raise ValueError(f"order={order} is not 1 or 2")
    function = Function(fn, inputs, variables, seed)
    sources = function.floating | differentiable(variables)
    if not sources:
        raise ValueError("nothing to differentiate: no input is floating and no variable is given")
    with function.state:
        weights = function.random_weights()
        for name, tensor in {**sources, **{f"output {place}": weight for place, weight in weights.items()}}.items():
            if tensor.dtype != tf.float64:
                raise TypeError(
                    f"{name} is {tensor.dtype.name}; differences need float64, e.g. Layer(…, dtype='float64')"
                )
        if not weights:
            raise ValueError("nothing to differentiate: fn returns no floating tensor")
        random = np.random.default_rng(seed)
        directions = {name: tf.constant(direction(source.shape, random)) for name, source in sources.items()}
        point = Point(function.state, function.floating, sources)

        def products(inputs: Named) -> tf.Tensor:
            return products_of(dict(enumerate(function(inputs))), weights)

        def slopes(inputs: Named) -> tf.Tensor:
            return products_of(gradients_of(products, inputs, sources), directions)

        probing = Probing(lambda shape: _probes(shape, random, samples), rtol, atol, step)
        for what, fn in (("gradient", products), ("second derivative", slopes))[:order]:
            by_tape = functools.partial(gradients_of, fn, function.floating, sources)
            check_differences(what, fn, by_tape, point, probing)


@dataclasses.dataclass(frozen=True)
class Point:
    """Where a function is differentiated.

    Attributes:
      state: its variables, and the values that they have there.
      inputs: {name: floating tensor}.
      sources: {name: input or variable to differentiate by}.
    """

    state: Kept
    inputs: Named
    sources: Named


@dataclasses.dataclass(frozen=True)
class Probing:
    """How gradients are compared with differences.

    Attributes:
      probes: shape -> (place, unit vector) pairs, along which a tensor of this shape is moved.
      rtol, atol, step: as in `check_gradients`.
    """

    probes: Callable[[Any], list[tuple[str, np.ndarray]]]
    rtol: float = 1e-6
    atol: float | None = None
    step: float = np.finfo(np.float64).eps ** (1 / 3)


def check_differences(
    what: str, products: Callable[[Named], tf.Tensor], gradients: Callable[[], Named], point: Point, probing: Probing
) -> None:
    """Compares gradients of sum(products(inputs)) with its differences.

    Args:
      what: the gradients are called.
      products: {name: floating input} -> [n].
      gradients: () -> {name: gradient} by the sources; one that the tape gave as None is left out.
      point: where; the variables are left at any value.
      probing: how.

    Raises:
      AssertionError: a gradient is wrong; the message names the worst.
    """
    state, sources = point.state, point.sources
    state.restore()
    values = {name: source.numpy() for name, source in sources.items()}

    def at(name: str, value: np.ndarray) -> np.ndarray:
        state.restore()
        if name in point.inputs:
            return products(point.inputs | {name: tf.constant(value)}).numpy()
        sources[name].assign(value)
        return products(point.inputs).numpy()

    start = next(iter(sources))
    first, second = at(start, values[start]), at(start, values[start])
    rounding = _DIFFERENCE_ROUNDINGS * np.finfo(np.float64).eps * float(np.linalg.norm(first))
    if not np.isfinite(rounding):
        raise AssertionError(f"{what}: not finite before anything is changed; give inputs where fn is finite")
    if not np.linalg.norm(first - second) <= rounding:
        raise AssertionError(
            f"fn is not a function of its inputs, variables and draws: two calls differ by up to"
            f" {np.abs(first - second).max():.3g}; does it count in Python, or draw without framework.rng?"
        )
    state.restore()
    slopes = gradients()
    worst, message = 1.0, ""
    for name, value in values.items():
        gradient = slopes[name].numpy() if name in slopes else np.zeros_like(value)
        for place, along in probing.probes(value.shape):
            width = probing.step * max(1.0, abs(float(np.vdot(value, along))))
            near, far = (at(name, value + n * width * along) - at(name, value - n * width * along) for n in (1, 2))
            short, long = float(near.sum()) / (2 * width), float(far.sum()) / (4 * width)
            difference, tape = (4 * short - long) / 3, float(np.vdot(gradient, along))
            bound = probing.rtol * max(abs(difference), abs(tape))
            bound += rounding / width if probing.atol is None else probing.atol
            apart = abs(difference - tape)
            excess = apart / max(bound, 1e-300) if np.isfinite(apart) else np.inf
            if excess > worst:
                worst = excess
                message = f"{what} by {name}{place}: {tape:.12g} by the tape, {difference:.12g} by differences;"
                message += f" they differ by {apart:.3g}, the bound is {bound:.3g}"
                message += "" if name in slopes else ". The tape gave None: it found no way back from the outputs"
                if not abs(short - long) <= max(bound, 1e-3 * abs(short)):
                    message += f". Steps of {width:.0e} and twice that disagree: fn has a kink or rounds to float32"
    if message:
        raise AssertionError(message)


def _probes(shape: Any, random: np.random.Generator, samples: int) -> list[tuple[str, np.ndarray]]:
    """Returns (place, direction) pairs: a one-hot direction for each element of a small tensor.

    For a larger tensor: one-hot directions of `samples` elements, and as many random unit vectors.
    """
    size = int(np.prod(shape))
    every = size <= 2 * samples
    chosen = range(size) if every else sorted(random.choice(size, samples, replace=False).tolist())
    probes = []
    for flat in chosen:
        place = [int(i) for i in np.unravel_index(flat, shape)]
        probes.append((str(place) if place else "", (np.arange(size) == flat).astype(np.float64).reshape(shape)))
    return probes + [(f" along direction {i}", direction(shape, random)) for i in range(0 if every else samples)]
