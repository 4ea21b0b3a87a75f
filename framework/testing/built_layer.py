"""A layer under test: made in a precision, built, its weights moved off their initial values, called as in a step.

subject = Subject(make, inputs, call)
layer = subject.build("float64")
layer.infer(layer.inputs), layer.train(layer.inputs)        # lists of tensors; the draws are those of step 0
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import compat, paths, precision, rng
from framework.testing.comparison import GRADIENT
from framework.testing.function import Kept, Named, floating, gradients_of, products_of

PRODUCTS = "products"  # of the outputs and fixed random numbers, [n]: their sum is what is differentiated

Call = Callable[[Any, Sequence[tf.Tensor], bool], Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """How a layer is made and called.

    Attributes:
      make: () -> a new layer.
      inputs: tensors [batch, …] of a call.
      call: call(layer, inputs, training) -> outputs.
      seed: of initial weights, draws and random numbers.
    """

    make: Callable[[], Any]
    inputs: Sequence[tf.Tensor]
    call: Call
    seed: int = 0

    def build(self, dtype: str = "float64", like: "BuiltLayer | None" = None) -> "BuiltLayer":
        """Makes a layer in a precision of `precision.scope`, with the values of the variables of `like`."""
        layer = BuiltLayer(self, dtype)
        if like is not None:
            layer.assign({path: variable.numpy() for path, variable in paths.variables(like.layer).items()})
        return layer


class BuiltLayer:
    """A layer with its inputs.

    Attributes:
      layer: what `make` returned.
      dtype: the precision that it was made in.
      inputs: {'inputs[0]': tensor, …}; the floating ones are in `dtype`.
      state: its variables by path, and their values after the last `assign`.
    """

    def __init__(self, subject: Subject, dtype: str) -> None:
        self.dtype = dtype
        self._subject = subject
        self._key = rng.key(subject.seed)
        self.inputs = {
            f"inputs[{place}]": tf.cast(x, dtype) if x.dtype.is_floating else x
            for place, x in enumerate(subject.inputs)
        }
        # A scope is open, so that a layer that draws in inference is refused by the check of just this.
        with precision.scope(dtype), compat.seeded_initializers(subject.seed), rng.scope(self._key, 0):
            self.layer = subject.make()
            self._outputs(self.inputs, False)
        rng.name_streams(paths.objects({"layer": self.layer}))
        random = np.random.default_rng(subject.seed)
        variables = paths.variables(self.layer)
        self.assign({path: moved(variable.numpy(), random) for path, variable in variables.items()})

    def assign(self, values: Mapping[str, np.ndarray]) -> None:
        """Sets all variables.

        Raises:
          AssertionError: the layer has variables by other paths, or of other shapes.
        """
        variables = paths.variables(self.layer)
        shapes = {path: [*variable.shape] for path, variable in variables.items()}
        given = {path: [*value.shape] for path, value in values.items()}
        if shapes != given:
            differing = sorted(path for path in shapes.keys() | given.keys() if shapes.get(path) != given.get(path))
            path = differing[0]
            raise AssertionError(
                f"variable '{path}' has shape {given.get(path)} in one layer, {shapes.get(path)} in another"
            )
        for path, value in values.items():
            variables[path].assign(tf.cast(value, variables[path].dtype))
        self.state = Kept(variables)

    def infer(self, inputs: Named) -> list[tf.Tensor]:
        """Returns the outputs in inference, outside of any scope of draws."""
        with precision.scope(self.dtype):
            return self._outputs(inputs, False)

    def train(self, inputs: Named, step: int = 0, first_example: Any = 0) -> list[tf.Tensor]:
        """Returns the outputs in training."""
        with precision.scope(self.dtype), rng.scope(self._key, step, first_example):
            return self._outputs(inputs, True)

    def draws(self) -> bool:
        """Returns whether a call in training draws by `framework.rng`."""
        with precision.scope(self.dtype), rng.scope(self._key, 0):
            self._outputs(self.inputs, True)
            return bool(rng.save_counters())

    def upstream(self) -> dict[int, tf.Tensor]:
        """Returns normal numbers in the shape and dtype of each floating output, by its place."""
        random = np.random.default_rng(self._subject.seed)
        with self.state:
            outputs = floating(dict(enumerate(self.train(self.inputs))))
        return {place: tf.cast(random.normal(size=output.shape), output.dtype) for place, output in outputs.items()}

    def sources(self, inputs: Named) -> Named:
        """Returns the inputs and variables to differentiate by."""
        return floating(inputs) | floating(paths.trainable(self.layer))

    def differentiate(self, inputs: Named, upstream: Mapping[int, tf.Tensor], first_example: Any = 0) -> Named:
        """Returns outputs in training, PRODUCTS, and their gradients by inputs and weights."""
        results: Named = {}

        def products(inputs: Named) -> tf.Tensor:
            outputs = self.train(inputs, first_example=first_example)
            results.update({f"output {place}": output for place, output in enumerate(outputs)})
            results[PRODUCTS] = products_of(dict(enumerate(outputs)), dict(upstream))
            return results[PRODUCTS]

        gradients = gradients_of(products, inputs, self.sources(inputs))
        return results | {f"{GRADIENT}{name}": gradient for name, gradient in gradients.items()}

    def run(self, fn: Callable[[], Named]) -> dict[str, np.ndarray]:
        """Returns the arrays of fn() but PRODUCTS, and of the variables after this call, which are put back."""
        self.state.restore()
        with self.state:
            results = fn()
            after = {f"'{path}' after the call": variable for path, variable in self.state.variables.items()}
            return {name: tensor.numpy() for name, tensor in (results | after).items() if name != PRODUCTS}

    def _outputs(self, inputs: Named, training: bool) -> list[tf.Tensor]:
        returned = self._subject.call(self.layer, [*inputs.values()], training)
        outputs = [tf.convert_to_tensor(output) for output in tf.nest.flatten(returned) if output is not None]
        if not outputs:
            raise AssertionError(f"a call returned {returned!r}, which has no tensor; return the outputs")
        return outputs


def moved(value: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Returns floating values moved at random, so that none is 0 or 1 by chance; what is positive stays so."""
    if not np.issubdtype(value.dtype, np.floating):
        return value
    factors, offsets = random.uniform(size=(2, *value.shape))
    return np.asarray(value * (1 + 0.3 * factors) + 0.1 * offsets, value.dtype)


def shard(tensors: Mapping[Any, tf.Tensor], begin: int, end: int | None) -> dict[Any, tf.Tensor]:
    """Returns some examples of a batch."""
    return {name: tensor[begin:end] for name, tensor in tensors.items()}


def joined(shards: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns the results of a batch from those of its shards: gradients by weights add up, the others are in a row."""
    return {
        name: np.sum([one[name] for one in shards], axis=0)
        if name.startswith(GRADIENT) and not name.startswith(f"{GRADIENT}inputs[")
        else np.concatenate([one[name] for one in shards])
        for name in shards[0]
        if name != PRODUCTS and not name.endswith("after the call")
    }


class Trace:
    """`BuiltLayer.differentiate` as one graph of a free batch dimension, which several checks call.

    Attributes:
      variables: all that the graph reads or assigns.
    """

    def __init__(self, layer: BuiltLayer, upstream: Mapping[int, tf.Tensor]) -> None:
        self._layer, self._upstream = layer, upstream
        free = lambda x: tf.TensorSpec([None, *x.shape[1:]], x.dtype)  # noqa: E731
        specs = [[free(x) for x in named.values()] for named in (layer.inputs, upstream)]

        def fn(inputs: list[tf.Tensor], upstream: list[tf.Tensor], first_example: tf.Tensor) -> Named:
            named = dict(zip(layer.inputs, inputs, strict=True))
            return layer.differentiate(named, dict(zip(self._upstream, upstream, strict=True)), first_example)

        function = tf.function(fn, autograph=False)
        self._concrete = function.get_concrete_function(*specs, tf.TensorSpec([], tf.int64))
        self.variables = self._concrete.graph.variables

    def __call__(self, inputs: Named, begin: int = 0, end: int | None = None) -> Named:
        """Returns the results for the examples from `begin` to `end` of a batch."""
        upstream = shard(self._upstream, begin, end)
        return self._concrete([*shard(inputs, begin, end).values()], [*upstream.values()], tf.constant(begin, tf.int64))
