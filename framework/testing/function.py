"""A function that a check calls again and again: the same draws, the same values of its variables.

function = Function(fn, inputs, variables, seed=0)
with function.state:                      # puts all variables back
    outputs = function(function.inputs)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths, rng

Named = dict[str, Any]  # tensors, arrays or variables by name


class Kept:
    """Remembers the values of variables that a check may change, and as a context puts them back."""

    def __init__(self, variables: Named) -> None:
        self.variables = variables
        self._values = {name: variable.numpy() for name, variable in variables.items()}

    def restore(self) -> None:
        for name, variable in self.variables.items():
            variable.assign(self._values[name])

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.restore()


class Function:
    """`fn` with its draws fixed, and with the variables that it reads and assigns.

    Attributes:
      inputs: {'inputs[0]': tensor, …}; floating: those of a floating dtype.
      state: all variables, by name.
    """

    def __init__(self, fn: Callable[..., Any], inputs: Sequence[Any], variables: Any, seed: int) -> None:
        if not isinstance(inputs, list | tuple):
            raise TypeError(f"inputs is of type {type(inputs).__name__}; write a list of tensors, [x] for a single one")
        self._fn, self._key, self._seed = fn, rng.key(seed), seed
        self.inputs = {f"inputs[{place}]": tf.convert_to_tensor(x) for place, x in enumerate(inputs)}
        self.floating = floating(self.inputs)
        # Traced before anything is run: layers build themselves, and nothing is assigned yet.
        graph = tf.function(lambda: self(self.inputs), autograph=False).get_concrete_function().graph
        known = _tracked(variables)
        ids = {id(variable) for variable in known.values()}
        for variable in sorted(graph.variables, key=lambda variable: variable.name):
            if id(variable) not in ids:
                name = variable.name.partition(":")[0]
                known[name if name not in known else f"{name} ({len(known)})"] = variable
        self.state = Kept(known)

    def __call__(self, inputs: Named) -> list[tf.Tensor]:
        """Returns the outputs in the order of tf.nest; inputs that are left out keep their values."""
        with rng.scope(self._key, 0):
            outputs = self._fn(*(self.inputs | inputs).values())
        return [tf.convert_to_tensor(output) for output in tf.nest.flatten(outputs) if output is not None]

    def random_weights(self) -> dict[int, tf.Tensor]:
        """Returns normal numbers in the shape and dtype of each floating output, by its place."""
        random = np.random.default_rng(self._seed)
        self.state.restore()
        outputs = floating(dict(enumerate(self(self.inputs))))
        return {place: tf.cast(random.normal(size=output.shape), output.dtype) for place, output in outputs.items()}


def gradients_of(products: Callable[[Named], tf.Tensor], inputs: Named, sources: Named) -> dict[str, tf.Tensor]:
    """Returns the gradients of sum(products(inputs)) by inputs and variables; a gradient of None is left out."""
    watched = {name: inputs.get(name, source) for name, source in sources.items()}
    with tf.GradientTape() as tape:
        tape.watch(list(watched.values()))
        total = products(inputs)
    gradients = tape.gradient(total, watched)
    return {name: tf.convert_to_tensor(gradient) for name, gradient in gradients.items() if gradient is not None}


def products_of(tensors: dict[Any, tf.Tensor], weights: dict[Any, tf.Tensor]) -> tf.Tensor:
    """Returns [n]: all elements times their weights, in float32 at least; tensors without weights are left out."""
    dtype = tf.float64 if any(weight.dtype == tf.float64 for weight in weights.values()) else tf.float32
    vectors = [tf.reshape(tensors[key] * weight, [-1]) for key, weight in weights.items() if key in tensors]
    return tf.concat([tf.cast(vector, dtype) for vector in vectors] or [tf.zeros([0], dtype)], axis=0)


def direction(shape: Any, random: np.random.Generator) -> np.ndarray:
    """Returns a random unit vector of a shape."""
    vector = random.normal(size=shape)
    return np.asarray(vector / max(np.linalg.norm(vector), 1e-300))


def floating(named: dict[Any, Any]) -> dict[Any, Any]:
    """Returns the tensors or variables of a floating dtype."""
    return {name: x for name, x in named.items() if x.dtype.is_floating}


def _tracked(variables: Any) -> Named:
    """Returns all variables by path; those of a list by place and name."""
    if isinstance(variables, list | tuple):
        return {f"variables[{place}] {v.name.partition(':')[0]}": v for place, v in enumerate(variables)}
    return dict(paths.variables(variables))


def differentiable(variables: Any) -> Named:
    """Returns the variables to differentiate by: the trainable ones of a layer, the floating ones of a list."""
    return floating(_tracked(variables) if isinstance(variables, list | tuple) else paths.trainable(variables))
