"""The dtype that a run computes in, and the loss scale that half precision needs.

    with precision.scope('bfloat16'):
        model = make_model(config)
    precision.full('bfloat16')               # 'float32': what inputs, logits and logged numbers are in

tf_keras keeps its policy and `floatx` for the whole process; the scope sets both and puts them back, so that two runs
of one notebook do not touch each other.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict

from framework import compat, paths

_POLICIES = {"bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@contextlib.contextmanager
def scope(precision: str) -> Iterator[None]:
    """While open, models are built and traced in `precision`.

    'float32' and 'float64' hold for everything: variables, computation, schedule. Under 'bfloat16' and 'float16' layers
    compute in half precision; variables, normalisation, loss, update and the sums of biases' gradients stay in float32.
    """
    policy = keras.mixed_precision.global_policy()
    floatx = keras.backend.floatx()
    keras.backend.set_floatx(full(precision))
    keras.mixed_precision.set_global_policy(_POLICIES.get(precision, precision))
    is_bfloat16 = precision == "bfloat16"
    try:
        with compat.gradient_of("BiasAdd", _summed_in_full) if is_bfloat16 else contextlib.nullcontext():
            yield
    finally:
        keras.backend.set_floatx(floatx)
        keras.mixed_precision.set_global_policy(policy)


def _summed_in_full(gradient_of: compat.GradientOf) -> compat.GradientOf:
    """Returns the gradient of BiasAdd that sums bfloat16 in float32; the kernel of TensorFlow sums it in bfloat16."""

    def gradient(op: Any, upstream: tf.Tensor) -> Sequence[tf.Tensor]:
        rank = upstream.shape.rank
        if upstream.dtype != tf.bfloat16 or rank is None:  # other kernels sum in float32
            return gradient_of(op, upstream)
        channels = 1 if op.get_attr("data_format") == b"NCHW" else rank - 1
        return upstream, tf.reduce_sum(upstream, [axis for axis in range(rank) if axis != channels])

    return gradient


def full(precision: str) -> str:
    """Returns 'float32' or 'float64': the dtype of variables, inputs, logits, losses and logged numbers.

    The last layer of a model takes it: `keras.layers.Dense(10, dtype=precision.full(cfg.train.precision))`.
    """
    return "float64" if precision == "float64" else "float32"


def master_dtype(precision: str) -> tf.DType:
    """Returns `full(precision)` as a TensorFlow dtype."""
    return tf.as_dtype(full(precision))


def halved(model: Any) -> list[keras.layers.Layer]:
    """Returns the layers of a model, or of a dict of models, that compute in half precision."""
    holder = tf.Module()
    holder.model = model
    children = paths.objects(holder).values()
    layers = [child for child in children if isinstance(child, keras.layers.Layer)]
    return [layer for layer in layers if layer.compute_dtype in _POLICIES]


@contextlib.contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """While open, layers of half precision compute in float32, from the same variables, which are float32.

    A function that was traced before stays in half precision, and so does a tensor that a layer casts itself.
    """
    layers = halved(model)
    policies = [layer.dtype_policy for layer in layers]
    for layer in layers:
        compat.set_dtype_policy(layer, "float32")
    try:
        yield
    finally:
        for layer, policy in zip(layers, policies, strict=True):
            compat.set_dtype_policy(layer, policy)


class LossScale(tf.Module):
    """The factor of the loss that keeps small gradients from vanishing in float16.

    A dynamic scale (Micikevicius et al., 2018, "Mixed precision training") is multiplied by `growth_factor` after
    `growth_interval` finite updates in a row, and by `backoff_factor` after each update that is not finite and skipped.

    Args:
      settings: config.loss_scale.
      is_dynamic: False keeps the initial scale.

    Attributes:
      scale: float32 scalar variable.
      good: int64 scalar variable; finite updates in a row; 0 again when they reach `growth_interval`.
      stuck: int64 scalar variable; non-finite updates in a row with the scale at its floor.
    """

    def __init__(self, settings: ConfigDict, is_dynamic: bool) -> None:
        super().__init__("loss_scale")
        self.is_dynamic = is_dynamic
        self._settings = settings
        self.scale = tf.Variable(settings.initial, trainable=False, dtype=tf.float32)
        self.good = tf.Variable(0, trainable=False, dtype=tf.int64)
        self.stuck = tf.Variable(0, trainable=False, dtype=tf.int64)

    def update(self, finite: tf.Tensor, counted: Any = True) -> None:
        """Adapts the scale to one update.

        Args:
          finite: bool scalar; whether all of its gradients were finite.
          counted: bool scalar; False leaves the scale as it is.
        """
        if not self.is_dynamic:
            return
        settings = self._settings
        scale, good, stuck = (variable.read_value() for variable in (self.scale, self.good, self.stuck))
        grows = finite & (good + 1 >= settings.growth_interval)
        larger = tf.minimum(scale * settings.growth_factor, settings.ceiling)
        smaller = tf.maximum(scale * settings.backoff_factor, settings.floor)
        self.scale.assign(tf.where(counted, tf.where(finite, tf.where(grows, larger, scale), smaller), scale))
        self.good.assign(tf.where(counted, tf.where(finite & ~grows, good + 1, 0), good))
        self.stuck.assign(tf.where(counted, tf.where(~finite & (scale <= settings.floor), stuck + 1, 0), stuck))

    @property
    def is_stuck(self) -> tf.Tensor:
        """Bool scalar: whether no scale helps, so that float16 is not the cause."""
        return self.stuck >= self._settings.patience


def make_loss_scale(config: ConfigDict) -> LossScale | None:
    """Returns the loss scale of a run; None if it has none."""
    name = config.loss_scale.name
    if name == "auto":
        name = "dynamic" if config.train.precision == "float16" else "none"
    return None if name == "none" else LossScale(config.loss_scale, is_dynamic=name == "dynamic")
