"""The formats of a .tflite file: the type of its weights and arithmetic, and how exact it is by default.

    converter = tf.lite.TFLiteConverter.from_concrete_functions([function])
    FORMATS["int8"].set_up(converter)
    converter.representative_dataset = …           # as FORMATS["int8"].is_calibrated says

All of them hold builtin operations only, because LiteRT's interpreter has no others.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from framework.export.bounds import Bounds


@dataclasses.dataclass(frozen=True)
class LiteFormat:
    """One format.

    Attributes:
      bound: the default of `Lite.bound`.
      set_up: tells a converter to make the format.
      is_calibrated: whether the ranges of activations are found by running the model on examples.
      is_sparse: whether the file holds only the numbers of pruned weights that are not 0.
      set_up_trained: the same for a model whose graph holds the ranges, from training; None if they are of no use.
    """

    bound: float | Bounds
    set_up: Callable[[Any], None]
    is_calibrated: bool = False
    is_sparse: bool = False
    set_up_trained: Callable[[Any], None] | None = None


def _float32(converter: Any) -> None:
    del converter  # what it makes if nothing is said


def _float16(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.target_spec.supported_types = [tf.float16]


def _dynamic(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]


def _sparse(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.EXPERIMENTAL_SPARSITY]


def _int8(converter: Any) -> None:
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    # An operation without int8 arithmetic, such as a sine, stays in float32 all the same.
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]


def _int8_io(converter: Any) -> None:
    _int8(converter)
    converter.inference_input_type = converter.inference_output_type = tf.int8


def _int8_io_trained(converter: Any) -> None:
    _dynamic(converter)  # which takes the ranges if there are some
    converter.inference_input_type = converter.inference_output_type = tf.int8


# The largest error of a good int8 model says little: 22 % of the range in a ResNet-20 whose accuracy stayed within
# 0.0005 (framework/export/README.md). Activations outside of the ranges of the examples are clipped.
_INT8 = Bounds(max_error=1.0, p99_error=0.05, agreement=0.97, metric=0.01)

FORMATS = {
    "float32": LiteFormat(2e-6, _float32),
    "float16": LiteFormat(Bounds(max_error=0.005, p99_error=0.002, agreement=0.995, metric=0.002), _float16),
    "sparse": LiteFormat(2e-6, _sparse, is_sparse=True),
    "dynamic": LiteFormat(Bounds(max_error=0.1, p99_error=0.03, agreement=0.98, metric=0.005), _dynamic),
    "int8": LiteFormat(_INT8, _int8, is_calibrated=True, set_up_trained=_dynamic),
    "int8_io": LiteFormat(_INT8, _int8_io, is_calibrated=True, set_up_trained=_int8_io_trained),
}
