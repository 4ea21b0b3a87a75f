"""The residual networks of He et al. for CIFAR: three stages of pictures of 32, 16 and 8 pixels.

    model = layers.cifar_resnet()                                    # ResNet-20, 269,722 trained weights
    model = layers.cifar_resnet(56, normalization="group", groups=8, stochastic_depth=0.1)

Source: He et al., 2015, "Deep residual learning for image recognition", section 4.2.
"""

from collections.abc import Sequence
from typing import Any

import tf_keras as keras

from framework.layers.normalization import make_normalization
from framework.layers.residual import BasicBlock

_STAGES = 3
_CONVOLUTIONS = 2  # of a block


def cifar_resnet(
    depth: int = 20,
    classes: int = 10,
    *,
    filters: int = 16,
    stochastic_depth: float = 0.0,
    shape: Sequence[int] = (32, 32, 3),
    **block: Any,
) -> keras.Model:
    """Returns a network of `depth` layers with weights: pictures -> logits.

    Layers are named `stem`, `stage_1_block_1` to `stage_3_block_n` and `head`, for warm starts and parameter groups.
    The means over pixels and the logits are computed in full precision.

    Args:
      depth: 6 n + 2, for n blocks a stage.
      classes: number of logits.
      filters: of the first stage; each further stage has twice as many, and half the height and width.
      stochastic_depth: of the last block; it grows in equal steps from the first block to the last.
      shape: height, width and channels of a picture.
      block: further arguments of `BasicBlock`; by default shortcut='padded' and zero_last=False, as in the paper.

    Raises:
      ValueError: `depth` is of another form, or as in `BasicBlock`.
    """
    blocks, rest = divmod(depth - 2, _STAGES * _CONVOLUTIONS)
    if rest or blocks < 1:
        nearest = _STAGES * _CONVOLUTIONS * max(blocks, 1) + 2
        raise ValueError(f"depth={depth} is not 6 n + 2. Write depth={nearest} or {nearest + _STAGES * _CONVOLUTIONS}")
    block = {"shortcut": "padded", "zero_last": False, **block}
    is_late = block.get("pre_activation", False)  # the sum of the last block is not normalised yet
    pixels = keras.Input(shape, name="pixels")
    has_norm = block.get("normalization", "batch") != "none"
    x = keras.layers.Conv2D(
        filters, 3, padding="same", use_bias=not has_norm, kernel_initializer="he_normal", name="stem"
    )(pixels)
    x = x if is_late else _activated(x, block, "stem")
    for stage in range(_STAGES):
        for number in range(blocks):
            rate = stochastic_depth * (stage * blocks + number + 1) / (_STAGES * blocks)
            stride = 2 if stage and not number else 1
            name = f"stage_{stage + 1}_block_{number + 1}"
            x = BasicBlock(filters * 2**stage, stride, stochastic_depth=rate, **block, name=name)(x)
    x = _activated(x, block, "last") if is_late else x
    full = keras.backend.floatx()
    x = keras.layers.GlobalAveragePooling2D(dtype=full, name="pool")(x)
    logits = keras.layers.Dense(classes, kernel_initializer="he_normal", dtype=full, name="head")(x)
    return keras.Model(pixels, logits, name=f"resnet_{depth}")


def _activated(x: Any, block: dict[str, Any], name: str) -> Any:
    """Returns x normalised and activated as in the blocks."""
    norm = make_normalization(block.get("normalization", "batch"), block.get("groups"), name=f"{name}_norm")
    x = x if norm is None else norm(x)
    return keras.layers.Activation(block.get("activation", "relu"), name=f"{name}_activation")(x)
