"""framework/run/summary.py: exact tables; and what `repr(run)` says."""

import numpy as np
import tf_keras as keras

from framework import data, losses, testing
from framework.run import summary
from tests.run.tiny_runs import build


class Twice(keras.Model):
    """A subclassed model: one layer is called twice, one never, one is inside of another."""

    def __init__(self):
        super().__init__()
        self.square = keras.layers.Dense(4)
        self.unused = keras.layers.Dense(3)
        self.blocks = [Inner(), Inner()]
        self.norm = keras.layers.BatchNormalization()
        self.unused.build([None, 4])

    def call(self, x, training=False):
        x = self.square(self.square(x))
        for block in self.blocks:
            x = block(x)
        return self.norm(x, training=training)


class Inner(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(4, use_bias=False)

    def call(self, x):
        return self.dense(x) + x


class Bare(keras.Model):
    """A model without layers, whose weights are its own."""

    def __init__(self):
        super().__init__()
        self.kernel = self.add_weight(name="kernel", shape=[4, 3])

    def call(self, x, training=False):
        return x @ self.kernel


def made(model, tmp_path):
    source = data.Source({"x": np.zeros([8, 4], np.float32)}, origin="zeros")

    def loss(model, batch, training):
        outputs = model(batch["x"], training=training)
        return {"square": losses.mean(outputs[:, 0] ** 2, batch["weight"])}, {}

    functions = {
        "make_data": lambda cfg, split: data.make_batches(source, cfg, training=split == "train"),
        "make_model": lambda cfg: model,
        "make_loss": lambda cfg: loss,
    }
    overrides = {"data.batch_size": 8, "train.duration": "2 steps", "train.compile": "graph"}
    return testing.build(functions, overrides, tmp_path / "run")


def test_a_model_without_layers(tmp_path):
    assert summary.table(made(Bare(), tmp_path)).splitlines() == [
        "layer  class   output  parameters",
        "       in all          12",
    ]


def test_layers_of_a_sequential_model(tmp_path):
    assert summary.table(build(tmp_path / "run")).splitlines() == [
        "layer    class    output      parameters",
        "flatten  Flatten  [128, 784]        0",
        "dense    Dense    [128, 128]  100,480",
        "dropout  Dropout  [128, 128]        0",
        "dense_1  Dense    [128, 10]     1,290",
        "         in all               101,770",
    ]


def test_layers_of_a_subclassed_model(tmp_path):
    built = made(Twice(), tmp_path)
    assert summary.table(built).splitlines() == [
        "layer     class               output      parameters",
        "square    Dense               [8, 4]      20",  # 4 x 4 and 4
        "blocks/0  Inner               [8, 4]      16",
        "blocks/1  Inner               [8, 4]      16",
        "norm      BatchNormalization  [8, 4]       8",
        "unused    Dense               not called  15",  # 4 x 3 and 3
        "          in all                          75, and 8 not trainable",
    ]


def test_many_layers_leave_out_those_in_the_middle(tmp_path):
    model = keras.Sequential([keras.layers.Dense(4, name=f"layer_{place}") for place in range(20)])
    lines = summary.table(made(model, tmp_path), most=5).splitlines()
    assert [line.split()[0] for line in lines] == ["layer", "layer_0", "layer_1", "…", "layer_18", "layer_19", "in"]
    assert lines[3].split() == ["…", "16", "more"]
    assert lines[-1].split() == ["in", "all", "400"]  # 20 of 4 x 4 weights and 4 biases


def test_a_run_shows_itself_in_four_lines(tmp_path):
    assert repr(build(tmp_path / "run")).splitlines() == [
        f"tests/tiny.py in {tmp_path / 'run'}: step 0 of 40",
        "  model    Sequential, 101,770 parameters; terms cross_entropy; metrics accuracy",
        "  data     train 2,560, test 500 examples from made-up digits, batches of 128",
        "  step     graph, float32, 1 replicas, 1 micro-batches",
    ]
