"""Loads SavedModels by TensorFlow alone: nothing of this project, and no Keras, is imported.

call = load("exports/saved_model/1")["serving_default"]
call({"image": images})["logits"]
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

Arrays = dict[str, np.ndarray]
Call = Callable[[Arrays], Arrays]


def load(path: str) -> dict[str, Call]:
    """Returns {signature: NumPy inputs -> NumPy outputs} of a version's folder."""
    loaded = tf.saved_model.load(path)
    return {name: _call(loaded, name) for name in loaded.signatures}


def _call(loaded: Any, name: str) -> Call:
    # The closure keeps `loaded` and so the variables alive: a signature has only weak references to them.
    def call(inputs: Arrays) -> Arrays:
        outputs = loaded.signatures[name](**{key: tf.constant(array) for key, array in inputs.items()})
        return {key: output.numpy() for key, output in outputs.items()}

    return call
