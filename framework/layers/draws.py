"""The generator by which layers of Keras draw from `framework.rng`: by (seed, layer, step, example) alone.

    class Noise(KeyedDraws, keras.layers.GaussianNoise):    # the arguments and the call of Keras, our draws
        ...

    draw_by_key(layer)                                      # the same, of a layer that Keras made

tf_keras's own layers draw from a process-wide generator that is in no checkpoint: a resumed run would see other masks.
"""

import weakref
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat, rng
from framework.errors import UserError

_RATES = ("rate", "dropout", "recurrent_dropout")


class KeyedDraws:
    """Makes a layer of Keras, as its first base class, draw from the stream of its path."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if (seed := compat.given_seed(self)) is not None:
            raise ValueError(
                f"seed={seed}: a {type(self).__name__} draws by the seed of the run and by its own path in the model."
                f" Leave seed out of the layer, and type --config.seed={seed}"
            )
        draw_by_key(self)

    @property
    def rng_stream(self) -> str:
        """The stream of the draws: the layer's path, from when the state is created on."""
        return str(compat.generator_of(self).rng_stream)

    @rng_stream.setter
    def rng_stream(self, stream: str) -> None:
        compat.generator_of(self).rng_stream = stream


def draw_by_key(layer: keras.layers.Layer) -> None:
    """Makes a layer that Keras made draw from the stream of its path; weights, paths and calls stay.

    Raises:
      ValueError: the layer would drop everything.
    """
    for name in _RATES:
        check_rate(name, getattr(layer, name, 0))
    compat.set_generator(layer, KeyedGenerator(type(layer).__name__.lower()))
    compat.wrap_masks(layer, _Masks)


def check_rate(name: str, rate: float) -> None:
    """Raises ValueError unless 0 <= rate < 1."""
    if not 0 <= rate < 1:
        raise ValueError(f"{name}={rate} must be at least 0 and below 1")


class KeyedGenerator(compat.RandomGenerator):
    """Draws in place of a generator of Keras; the first dimension of all draws is that of the examples.

    Outside of `rng.scope`, which the step opens, a draw is a RuntimeError.

    Attributes:
      rng_stream: the path of the layer; empty until the state is created.
      default_stream: the stream until then.
    """

    def __init__(self, name: str) -> None:
        super().__init__(rng_type=self.RNG_LEGACY_STATEFUL)  # the type that adds nothing to a layer's config
        self.rng_stream = ""
        self.default_stream = name

    def dropout(self, inputs: tf.Tensor, rate: float, noise_shape: Any = None) -> tf.Tensor:
        """Zeroes elements with probability `rate` and scales the others so that the mean stays.

        Args:
          inputs: floating [batch, …].
          rate: 0 <= rate < 1; the nearest multiple of 2**-16 is what is drawn and scaled by.
          noise_shape: shape of the mask, [batch, …], each dimension that of the inputs or 1.

        Raises:
          ValueError: the examples of a batch would share a mask, which would depend on how the batch is cut.
        """
        if rng.is_shape_inference():
            return inputs
        shape = tf.shape(inputs) if noise_shape is None else noise_shape
        static = inputs.shape if noise_shape is None else _static(noise_shape)
        if static[0] is not None and static[0] != inputs.shape[0]:
            rest = ", ".join(map(str, ["None", *static[1:]]))
            raise ValueError(
                f"'{self._stream}': each example has its own mask, but noise_shape={tuple(static)} has one for all."
                f" Write noise_shape=({rest})"
            )
        keep = rng.keep_mask(self._stream, static[0] or shape[0], self._per_example(static), rate)
        scale = tf.constant(2**16 / (2**16 - rng.threshold(rate)), inputs.dtype)
        return tf.where(tf.reshape(keep, shape), inputs * scale, tf.zeros([], inputs.dtype))

    def random_uniform(
        self, shape: Any, minval: float = 0.0, maxval: float | None = None, dtype: Any = None, nonce: None = None
    ) -> tf.Tensor:
        """Draws multiples of 2**-24 times the range, [batch, …]."""
        dtype, static = tf.as_dtype(dtype or keras.backend.floatx()), _static(shape)
        if rng.is_shape_inference():
            return tf.zeros(shape, dtype)
        drawn = rng.uniform(self._stream, static[0] or shape[0], self._per_example(static))
        drawn = tf.cast(tf.reshape(drawn, shape), dtype)
        return drawn * ((1.0 if maxval is None else maxval) - minval) + minval

    def random_normal(
        self, shape: Any, mean: float = 0.0, stddev: float = 1.0, dtype: Any = None, nonce: None = None
    ) -> tf.Tensor:
        """Draws normal numbers, [batch, …], by `rng.normal`."""
        dtype, static = tf.as_dtype(dtype or keras.backend.floatx()), _static(shape)
        if rng.is_shape_inference() or not stddev:
            return tf.fill(shape, tf.cast(mean, dtype))
        per_example = self._per_example(static)
        wide = dtype if dtype == tf.float64 else tf.float32
        normal = tf.reshape(rng.normal(self._stream, static[0] or shape[0], per_example, stddev, wide), shape)
        return tf.cast(normal + mean if mean else normal, dtype)

    def refuse(self, *args: Any, **kwargs: Any) -> tf.Tensor:
        """Raises UserError: the draws of these methods belong to a whole batch, not to an example each."""
        raise UserError(
            f"'{self._stream}' draws for a whole batch, which would depend on how it is cut into replicas and"
            " micro-batches. Write a layer that draws for each example, by framework.rng:"
            " rng.uniform(self.rng_stream, examples, per_example)."
        )

    truncated_normal = make_seed_for_stateless_op = make_legacy_seed = refuse  # no layer of framework.layers needs them

    @property
    def _stream(self) -> str:
        return self.rng_stream or self.default_stream

    def _per_example(self, static: tf.TensorShape) -> int:
        size = static[1:].num_elements()
        if size is None:
            raise ValueError(f"'{self._stream}' needs static dimensions after the first, but draws {static}")
        return int(size)


class _Masks:
    """Holds the dropout masks of a cell: draws them once, and keeps them until the sequence or the step ends."""

    def __init__(self, draw: Any) -> None:
        self._draw = draw
        self._kept: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()

    def clear(self) -> None:
        self._kept.clear()

    def setdefault(self, *, kwargs: dict[str, Any]) -> Any:
        scope = rng.current()
        if scope is None:
            return self._draw(**kwargs)
        if scope not in self._kept:
            self._kept[scope] = self._draw(**kwargs)
        return self._kept[scope]


def _static(shape: Any) -> tf.TensorShape:
    """Returns as much of a shape as a trace knows."""
    return tf.zeros(shape, tf.bool).shape
