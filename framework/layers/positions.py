"""Vectors that tell the tokens of a sequence apart by their positions.

table = layers.sinusoidal(length=32, width=128)             # float32 [32, 128]
"""

import numpy as np


def sinusoidal(length: int, width: int) -> np.ndarray:
    """Makes fixed vectors of positions: sines at even places of the width, cosines at odd ones.

    Returns:
      float32 [length, width], computed in float64.
    """
    place = np.arange(width)
    angle = np.arange(length)[:, np.newaxis] / 10_000 ** (place // 2 * 2 / width)
    return np.where(place % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)
