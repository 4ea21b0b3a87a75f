"""An export that returns what a test wants, and the batches it is verified with."""

import dataclasses
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from framework.export.base import Signature
from framework.export.runner import export_all


class Scale(tf.Module):
    """The live model: outputs are inputs times a variable, so references are known by eye."""

    def __init__(self, factor=1.0):
        super().__init__()
        self.factor = tf.Variable(factor)


SIGNATURE = Signature(
    lambda model, inputs: {"logits": inputs["x"] * model.factor}, {"x": tf.TensorSpec([None, 3], tf.float32)}
)


def keep(outputs):
    return outputs


@dataclasses.dataclass(frozen=True)
class Fake:
    """Writes the factor as text and multiplies in NumPy; `spoil` changes what it returns, `fail` where it raises."""

    name: str = "fake"
    bound: float = 2e-6
    spoil: Callable = keep
    fail: Exception | None = None
    signature: Signature = SIGNATURE

    @property
    def signatures(self):
        return {"serving_default": self.signature}

    def target(self, folder):
        return folder / "factor.txt"

    def write(self, model, path):
        if self.fail:
            raise self.fail
        path.write_text(str(float(model.factor)))

    def load(self, path):
        factor = np.float32(path.read_text())
        return {"serving_default": lambda inputs: self.spoil({"logits": inputs["x"] * factor})}


class Hits:
    """Weighted share of rows whose argmax is the label."""

    def empty(self):
        return np.zeros(2)

    def update(self, outputs, batch):
        hit = outputs["logits"].argmax(-1) == batch["label"]
        return np.array([(hit * batch["weight"]).sum(), batch["weight"].sum()])

    def merge(self, total, state):
        return total + state

    def result(self, state):
        return state[0] / state[1]


def make_batch(x, weight=None, label=None):
    x = np.asarray(x, np.float32)
    weight = np.ones(len(x), np.float32) if weight is None else np.asarray(weight, np.float32)
    label = np.zeros(len(x), np.int32) if label is None else np.asarray(label, np.int32)
    return {"x": x, "label": label, "weight": weight}


X = np.float32([[10, 2, 3], [4, 5, -6], [0, 0.5, 1]])


def export_one(tmp_path, hook, batches=None, metrics=None, model=None):
    [report] = export_all([hook], model or Scale(), batches or [make_batch(X)], metrics or {}, tmp_path)
    return report


def adding(delta):
    return lambda outputs: {"logits": outputs["logits"] + np.float32(delta)}
