"""Checks a layer for all that a run asks of it: compile modes, replicas, gradients, precisions, files, exports.

testing.check_layer(lambda: MyLayer(3), [x])                       # x: [batch, features]
testing.check_layer(lambda: layers.Dropout(0.2), [x], training_differs=True)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from framework.errors import near
from framework.experiment import user_code
from framework.testing import layer_checks, layer_files
from framework.testing.built_layer import Call, Subject
from framework.testing.layer_checks import Examined
from framework.testing.layer_jumps import check_jumps

# In this order: a check that fails names the cause, before others fail by it.
CHECKS: dict[str, Callable[[Examined], None]] = {
    "attributes": layer_checks.check_attributes,
    "draws": layer_checks.check_draws,
    "training": layer_checks.check_training,
    "precision": layer_checks.check_precision,
    "graph": layer_checks.check_graph,
    "gradients": layer_checks.check_gradients,
    "jumps": check_jumps,
    "xla": layer_checks.check_xla,
    "replicas": layer_checks.check_replicas,
    "config": layer_files.check_config,
    "weights": layer_files.check_weights,
    "saved_model": layer_files.check_saved_model,
    "lite": layer_files.check_lite,
}
EXPORTS = ("saved_model", "lite")
_BUILD = "build"
_ERROR_CHARACTERS = 400


def call_layer(layer: Any, inputs: Sequence[tf.Tensor], training: bool) -> Any:
    """Calls a layer as most are: layer(*inputs, training=training)."""
    return layer(*inputs, training=training)


def check_layer(
    make: Callable[[], Any],
    inputs: Sequence[Any],
    *,
    call: Call = call_layer,
    training_differs: bool = False,
    exempt: Mapping[str, str] | None = None,
    thorough: bool = True,
    seed: int = 0,
) -> None:
    """Runs the checks of the table on a layer, up to the first that fails.

    Two replicas need two logical CPU devices in the process (`tf.config.set_logical_device_configuration`, before
    TensorFlow runs its first operation); with one device, the halves stand for them.

    | check | what holds |
    |---|---|
    | `attributes` | calls change no Python attribute, such as a list or a counter, and traces leave no tensor in one |
    | `draws` | a step draws the same again, another step draws anew |
    | `training` | training and inference differ only if `training_differs`; inference changes no variable |
    | `precision` | outputs, gradients and variables are finite and of the right dtype, also in float16 and bfloat16 |
    | `graph` | a graph of a free batch dimension computes what eager execution does, for other batch sizes too |
    | `gradients` | gradients by inputs and weights are those of differences in float64; outputs depend on each weight |
    | `jumps` | outputs are continuous: no rounding, sign, argmax or comparison, whose gradient is 0 where they jump |
    | `xla` | XLA computes what eager execution does; thoroughly, in every precision and in inference |
    | `replicas` | halves of a batch, and two replicas, give the outputs and gradients of the whole, added losses too |
    | `config` | `from_config(get_config())` computes the same from the same weights |
    | `weights` | checkpoints and `save_weights` restore all variables |
    | `saved_model`, `lite` | thoroughly, exports in float32 return the same outputs, for any batch size |

    Args:
      make: () -> a new layer, without `dtype`: it is called in each precision of `framework.precision.scope`.
      inputs: arrays or tensors [batch, …] with at least two examples; floating ones are cast to the precision.
      call: call(layer, inputs, training) -> a nest of tensors; by default layer(*inputs, training=training).
      training_differs: the layer draws, or uses the statistics of a batch, in training.
      exempt: {check: why the layer cannot pass it}.
      thorough: gradients by every element instead of along 3 directions a tensor, all precisions in all compile modes,
        exports.
      seed: of initial weights, draws and random numbers.

    Raises:
      AssertionError: a check fails; the message names layer, check, worst element and bound.
      ValueError: there are fewer than two examples, or `exempt` names no check or has no reason.
    """
    tensors = [tf.convert_to_tensor(x) for x in inputs]
    exempt = exempt or {}
    for name, reason in exempt.items():
        if name not in CHECKS:
            raise ValueError(f"exempt: there is no check '{name}'.{near(name, CHECKS)} Checks: {', '.join(CHECKS)}")
        if not reason:
            raise ValueError(f"exempt['{name}'] has no reason; write why the layer cannot pass the check")
    if not tensors or any(x.shape.rank == 0 or x.shape[0] < 2 for x in tensors):
        raise ValueError("inputs need at least two examples each, [batch, …], so that replicas have one each")
    subject = Subject(make, tensors, call, seed)
    name, check = "layer", _BUILD
    try:
        examined = Examined(subject, training_differs, thorough)
        name = type(examined.layer.layer).__name__
        for check, run in CHECKS.items():
            if check not in exempt and (thorough or check not in EXPORTS):
                run(examined)
    except AssertionError as error:
        raise AssertionError(f"{name} fails the check '{check}': {error}") from error
    except Exception as error:
        text = user_code.one_line(str(error).partition("Call arguments received")[0], _ERROR_CHARACTERS)
        raise AssertionError(f"{name} fails the check '{check}': {type(error).__name__}: {text}") from error
