"""What a metric is, weighted means, and pictures.

state = metric.update(outputs, batch)        # in the step: [n], sums over the examples of this batch
total = metric.merge(total, state)           # over steps, in float64
metric.result(total)                         # a float, a dict of floats or a Picture
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import tensorflow as tf

from framework.errors import UserError

Tensors = Mapping[str, Any]
LOGGED = ("step", "interval", "evaluation")


class Metric(Protocol):
    """A quantity that is computed from sums over examples.

    A state is a floating vector of fixed length. The states of replicas and micro-batches are added; the states of
    steps go through `merge`, which may do something else, such as forget. A maximum is no sum, so it is right only on
    one device in one micro-batch.

    Attributes:
      mode: 'max' or 'min', which results are better; {key: 'max' or 'min'} if the keys of a dict differ in that.
      logged: (optional) where the results are shown.
        'step', the default: a logged row has the result of its own step, and `mean/<name>` over all steps since the
          last row. Each step keeps its state until its block ends, so the state is a few numbers.
        'interval': only `mean/<name>`. The step adds the states on the device, in float64, so the state may be large,
          and `merge` must be an addition.
        'evaluation': only in evaluations; training does not compute the metric. Otherwise as 'interval'. Pictures, and
          whatever is expensive.
    """

    mode: str | Mapping[str, str]

    def empty(self) -> np.ndarray:
        """Returns the state of no examples: float64 [n]."""
        ...

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        """Returns the state of one batch: floating [n]. Reads the loss's outputs and the batch with its 'weight'."""
        ...

    def merge(self, total: np.ndarray, state: np.ndarray) -> np.ndarray:
        """Returns the state of the examples of both."""
        ...

    def result(self, state: np.ndarray) -> "float | Mapping[str, float] | Picture":
        """Returns what is reported: a float, {key: float} with the same keys for every state, or a Picture.

        A dict is logged as `<name>/<key>`. The result for no examples is NaN.
        """
        ...


@dataclasses.dataclass(frozen=True)
class Picture:
    """A metric's result that is looked at: evaluations write it beside their numbers.

    Attributes:
      pixels: [height, width, 1] (grey) or [height, width, 3] (red, green, blue), uint8 or floating from 0 to 1.
    """

    pixels: np.ndarray

    def __post_init__(self) -> None:
        pixels = np.asarray(self.pixels)
        if pixels.ndim != 3 or pixels.shape[-1] not in (1, 3):
            raise UserError(f"metrics.Picture has shape {pixels.shape}. It must be [height, width, 1 or 3].")
        is_float = np.issubdtype(pixels.dtype, np.floating)
        if not (is_float or pixels.dtype == np.uint8):
            raise UserError(f"metrics.Picture is {pixels.dtype}. It must be uint8, or floating from 0 to 1.")
        if is_float and not ((pixels >= 0) & (pixels <= 1)).all():
            raise UserError(
                f"metrics.Picture has pixels from {pixels.min()} to {pixels.max()}. Floating pixels are from 0 to 1."
            )
        object.__setattr__(self, "pixels", pixels)


class Sums:
    """Base of metrics whose states are added. Subclasses give `empty`, `update` and `result`."""

    mode: str | Mapping[str, str] = "max"
    logged = "step"

    def merge(self, total: np.ndarray, state: np.ndarray) -> np.ndarray:
        return total + np.asarray(state, np.float64)


class Mean(Sums):
    """Base of weighted means; the state is (sum, weight). Subclasses give `values`."""

    def empty(self) -> np.ndarray:
        return np.zeros(2)

    def values(self, outputs: Tensors, batch: Tensors) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns value and weight of each example (or token), of the same shape; numbers or bools of any dtype."""
        raise UserError(f"{type(self).__name__} must define values(outputs, batch).")

    def update(self, outputs: Tensors, batch: Tensors) -> tf.Tensor:
        """Returns float32 [2], or float64 if values or weights are. A value of weight 0 may be NaN or infinite."""
        values, weight = (tf.convert_to_tensor(tensor) for tensor in self.values(outputs, batch))
        if not values.shape.is_compatible_with(weight.shape):
            raise UserError(
                f"{type(self).__name__}: values have shape {values.shape} and weights {weight.shape}, but each value"
                " has its weight."
            )
        # Never in a dtype of integers, which would cut weights of 0.5 off, nor in half precision.
        dtype = tf.float64 if tf.float64 in (values.dtype, weight.dtype) else tf.float32
        values, weight = tf.cast(tf.ensure_shape(values, weight.shape), dtype), tf.cast(weight, dtype)
        return tf.stack([tf.reduce_sum(tf.math.multiply_no_nan(values, weight)), tf.reduce_sum(weight)])

    def result(self, state: np.ndarray) -> float:
        return float(state[0] / state[1]) if state[1] else float("nan")


def is_summed(metric: Metric) -> bool:
    """Whether the step adds the metric's states on the device instead of keeping the state of each step."""
    return getattr(metric, "logged", "step") != "step"


def in_training(metrics: Mapping[str, Metric]) -> dict[str, Metric]:
    """Returns the metrics that training computes."""
    return {name: metric for name, metric in metrics.items() if getattr(metric, "logged", "step") != "evaluation"}


def cast_state(metric: Metric, state: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the state of a batch in float64 if the states are summed on the device, in `dtype` otherwise."""
    return tf.cast(state, tf.float64 if is_summed(metric) else dtype)


def empty_states(metrics: Mapping[str, Metric], dtype: tf.DType) -> dict[str, tf.Tensor]:
    """Returns {name: zeros}, what metrics without any example add; dtypes are those of `cast_state`."""
    return {
        name: tf.zeros([len(metric.empty())], tf.float64 if is_summed(metric) else dtype)
        for name, metric in metrics.items()
    }
