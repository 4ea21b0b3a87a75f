"""Slips in an experiment file through launch.py: one line, status 2, before anything is trained or written."""

import os
import re

import pytest

import launch
from framework.config import UserError
from framework.experiment.returns import FUNCTIONS, checked
from framework.run import request

EXPERIMENT = """
import keras as keras_3
import numpy as np
import tensorflow as tf
import tf_keras as keras
from framework import losses, metrics
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests import tiny
from tests.tiny import get_config, make_data, make_exports, make_loss, make_metrics, make_model, make_schedule


{slip}
"""
TINY_BATCH = "image, label, weight"
KERAS_3 = "It is of Keras 3, whose layers, models and optimizers are others: write `import tf_keras as keras`."
DEBUG = "--debug shows the traceback."
METRICS = "It must return {'name': metric}, e.g. {'accuracy': metrics.Accuracy()}.".replace("'name'", "name")

CASES = {
    "os.chdir": (
        "import os\ndef make_metrics(cfg):\n    os.chdir('/')\n    return {}",
        "make_metrics changed the working folder from FOLDER to /, but the run folder and other paths, as typed, are"
        " relative to the first. Open files by absolute paths, or go back with os.chdir before it returns.",
    ),
    "tf.data": (
        "def make_data(cfg, split):\n    return tf.data.Dataset.range(3)",
        "make_data returned a value of type _RangeDataset. It must return batches: make_batches(source, cfg,"
        " training=split == 'train').",
    ),
    "batches of every split for training": (
        "def make_data(cfg, split):\n    return make_batches(tiny.digits(split), cfg, training=True)",
        "make_data makes the batches of 'test' with training=True, so they are shuffled, endless and of"
        " data.batch_size. Write make_batches(source, cfg, training=split == 'train').",
    ),
    "batches of no split for training": (
        "def make_data(cfg, split):\n    return make_batches(tiny.digits(split), cfg, training=False)",
        "make_data makes the batches of 'train' with training=False, so they are in file order, padded and of"
        " eval.batch_size. Write make_batches(source, cfg, training=split == 'train').",
    ),
    "a forgotten return": (
        "def make_model(cfg):\n    tiny.make_model(cfg)",
        "make_model returned None. It must return a model of tf_keras or another tf.Module, or {name: model}.",
    ),
    "Keras 3": (
        "def make_model(cfg):\n    return keras_3.Sequential([keras_3.layers.Dense(10)])",
        f"make_model returned a value of type Sequential. {KERAS_3}",
    ),
    "a loss that was called": (
        "def make_loss(cfg):\n    return 0.5",
        "make_loss returned 0.5. It must return the function loss(model, batch, training).",
    ),
    "a loss of two arguments": (
        "def make_loss(cfg):\n    def loss(model, batch): ...\n    return loss",
        "make_loss returned loss(model, batch). It must return the function loss(model, batch, training).",
    ),
    "a loss to be awaited": (
        "def make_loss(cfg):\n    async def loss(model, batch, training): ...\n    return loss",
        "make_loss returned async loss(model, batch, training). It must return the function loss(model, batch,"
        " training).",
    ),
    "a layer of Keras 3 in a model": (
        "class Net(keras.Model):\n    def __init__(self):\n        super().__init__()\n"
        "        self.last = keras_3.layers.Dense(10)\n\n\ndef make_model(cfg):\n    return Net()",
        f"make_model returned a value of type Net. 'last' in it is a Keras 3 Dense. {KERAS_3}",
    ),
    "a layer of Keras 3 in Sequential": (
        "def make_model(cfg):\n    return keras.Sequential([keras_3.layers.Dense(10, name='k')])",
        "FILE:14: make_model: TypeError: The added layer must be an instance of class Layer. Received: layer=<Dense"
        f" name=k, built=False> of type <class 'keras.src.layers.core.dense.Dense'>. {KERAS_3} {DEBUG}",
    ),
    "a state that is no module": (
        "def make_state(cfg, model):\n    return 3",
        "make_state returned 3. It must return a tf.Module, whose variables are saved.",
    ),
    "a schedule of two arguments": (
        "def make_schedule(cfg, total_steps):\n    def rate(update, total): ...\n    return rate",
        "make_schedule returned rate(update, total). It must return a function of the update: lambda update: 1e-3, or"
        " optim.make_schedule(cfg, total_steps).",
    ),
    "an if on a tensor": (
        "def make_loss(cfg):\n    def loss(model, batch, training):\n"
        "        if batch['weight'][0] > 0:\n            pass\n    return loss",
        "FILE:15: loss: OperatorNotAllowedInGraphError: A tensor has no value while the step is traced, so Python's"
        " `if`, `while`, `and`, `or` and `not` cannot ask for it. Write tf.where(condition, a, b), tf.cond,"
        f" tf.while_loop or tf.logical_and. {DEBUG}",
    ),
    "a model under tf.function": (
        "@tf.function\ndef make_model(cfg):\n    return tiny.make_model(cfg)",
        "make_model: TypeError: To be compatible with tf.function, Python functions must return zero or more Tensors or"
        " ExtensionTypes or None values; in compilation of <function make_model at ADDRESS>, found return value of type"
        f" Sequential, which is not a Tensor or ExtensionType. {DEBUG}",
    ),
    "a function of a library": (
        "import functools, operator\nmake_model = functools.partial(operator.truediv, 1)",
        f"make_model: TypeError: unsupported operand type(s) for /: 'int' and 'FrozenConfigDict'. {DEBUG}",
    ),
    "a key that the config does not have": (
        "def make_model(cfg):\n    return cfg.model.widht",
        "FILE:14: make_model: AttributeError: the config has no key 'widht'. Set it in get_config, in config.model or"
        f" config.data. {DEBUG}",
    ),
    "sys.exit": (
        "def make_model(cfg):\n    import sys\n    sys.exit(3)",
        "FILE:15: make_model: sys.exit: status 3. An experiment does not end the process: raise an exception that says"
        f" what is wrong. {DEBUG}",
    ),
    "recursion": (
        "def make_model(cfg):\n    return make_model(cfg)",
        "FILE:14: make_model: RecursionError: maximum recursion depth exceeded. A function calls itself without end."
        f" {DEBUG}",
    ),
    "an exception that ends processes": (
        "class Own(BaseException): ...\n\n\ndef make_model(cfg):\n    raise Own()",
        f"FILE:17: make_model: Own: it has no message. {DEBUG}",
    ),
    "a rate": (
        "def make_schedule(cfg, total_steps):\n    return 0.001",
        "make_schedule returned 0.001. It must return a function of the update: lambda update: 1e-3, or"
        " optim.make_schedule(cfg, total_steps).",
    ),
    "a list of metrics": (
        "def make_metrics(cfg):\n    return [metrics.Accuracy()]",
        f"make_metrics returned a value of type list. {METRICS}",
    ),
    "a metric of Keras": (
        "def make_metrics(cfg):\n    return {'accuracy': keras.metrics.Mean()}",
        "make_metrics returned a value of type dict. 'accuracy' is a value of type Mean, not a metric of"
        f" framework.metrics. {METRICS}",
    ),
    "one export": (
        "def make_exports(cfg):\n    return 3",
        "make_exports returned 3. It must return a list of exports.",
    ),
    "the path of a file": (
        "def make_files(cfg):\n    return {'a/b.json': ''}",
        "make_files returned a value of type dict. 'a/b.json' is not the name of a file. It must return {file name:"
        " text}, e.g. {'vocabulary.json': words.to_json()}.",
    ),
    "a file that is no text": (
        "def make_files(cfg):\n    return {'b.json': 3}",
        "make_files returned a value of type dict. 'b.json' is 3, not a text. It must return {file name: text},"
        " e.g. {'vocabulary.json': words.to_json()}.",
    ),
    "a step that was called": (
        "def make_step(cfg, tools):\n    pass",
        "make_step returned None. It must return the function step(state, batch).",
    ),
    "the name of an optimizer": (
        "def make_optimizer(cfg, learning_rate):\n    return 'adam'",
        "make_optimizer returned 'adam'. It must return e.g. keras.optimizers.RMSprop(learning_rate).",
    ),
    "an optimizer of Keras 3": (
        "def make_optimizer(cfg, learning_rate):\n    return keras_3.optimizers.Adam(1e-3)",
        f"make_optimizer returned a value of type Adam. {KERAS_3}",
    ),
    "a key that a batch does not have": (
        "def make_loss(cfg):\n    def loss(model, batch, training):\n        return batch['lable']\n    return loss",
        f"there is no 'lable' in a batch, which has {TINY_BATCH}. Did you mean 'label'?",
    ),
    "an output that a metric wants": (
        "def make_loss(cfg):\n    def loss(model, batch, training):\n"
        "        terms, outputs = tiny.make_loss(cfg)(model, batch, training)\n"
        "        return terms, {'logit': outputs['logits']}\n    return loss",
        "a metric reads 'logits' of the outputs that the loss returns, which has logit. Did you mean 'logit'?"
        " Return e.g. terms, {'logits': …}, or leave the metric out of make_metrics.",
    ),
    "NumPy's favourite type": (
        "def make_data(cfg, split):\n"
        "    source = Source({'x': np.ones([256, 3]), 'label': np.zeros(256, np.int32)}, 'made up')\n"
        "    return make_batches(source, cfg, training=split == 'train')\n\n\n"
        "def make_model(cfg):\n    return tf.Module()\n\n\n"
        "def make_loss(cfg):\n    def loss(model, batch, training):\n"
        "        return tf.zeros([128, 3]) - batch['x']\n    return loss",
        "Input 'y' of 'Sub' Op has type float64 that does not match type float32 of argument 'x'. Of the batch, x is"
        " float64, and a run in float32 computes in float32: write e.g. array.astype(np.float32).",
    ),
    "a key that no config has": (
        "def get_config(arg):\n    config = tiny.get_config(arg)\n    config.train.duraton = 'x'\n    return config",
        "FILE:15: config.train.duraton = 'x': there is no such key. Did you mean config.train.duration? Own keys belong"
        " in config.data or config.model.",
    ),
    "a value of another type": (
        "def get_config(arg):\n    config = tiny.get_config(arg)\n    config.train.duration = 20\n    return config",
        "FILE:15: config.train.duration = 20: the value is of type int, not str. --mode=check prints every key with a"
        " value.",
    ),
}


@pytest.mark.parametrize(
    ("name", "returned", "expected"),
    [
        ("make_hooks", "hook", "make_hooks returned 'hook'. It must return a list of hooks."),
        ("make_writers", None, "make_writers returned None. It must return a list of writers."),
        (
            "make_evaluators",
            [1],
            "make_evaluators returned a value of type list. It must return {name: function of the run}, e.g. {'digits':"
            " digits}.",
        ),
    ],
)
def test_a_function_that_returns_a_value_of_another_kind(name, returned, expected):
    arguments = FUNCTIONS[name].arguments
    with pytest.raises(UserError) as error:
        checked({name: lambda *given: returned})[name](*arguments)
    assert str(error.value) == expected


@pytest.mark.parametrize(
    ("name", "returned"), [("make_hooks", []), ("make_writers", (1,)), ("make_evaluators", {"worst": len})]
)
def test_a_function_that_returns_a_value_of_its_kind(name, returned):
    assert checked({name: lambda *given: returned})[name](*FUNCTIONS[name].arguments) is returned


OWN = """

def make_optimizer(cfg, learning_rate):
    return keras.optimizers.{made}
"""


@pytest.mark.parametrize(
    ("made", "is_ignored"),
    [
        ("RMSprop(learning_rate)", True),
        ("RMSprop(learning_rate, rho=cfg.model.rho)", True),
        ("RMSprop(learning_rate, rho=cfg.optimizer.beta_1)", True),
        ("RMSprop(learning_rate, momentum=cfg.optimizer.momentum)", False),
        ("RMSprop(learning_rate, **_settings(cfg.optimizer))", False),
        ("RMSprop(learning_rate, **_settings(cfg))", False),
    ],
)
def test_an_own_optimizer_that_does_not_read_what_was_typed(tmp_path, made, is_ignored):
    file = tmp_path / "own.py"
    file.write_text(EXPERIMENT.replace("{slip}", OWN.replace("{made}", made)))
    typed = ["--config.optimizer.momentum=0.9"]
    if not is_ignored:
        assert request.resolve_request(str(file), typed, tmp_path / "run").config.optimizer.momentum == 0.9
        return
    with pytest.raises(UserError) as error:
        request.resolve_request(str(file), typed, tmp_path / "run")
    assert str(error.value) == (
        f"optimizer.momentum=0.9 has no effect: make_optimizer of {file} does not read cfg.optimizer.momentum."
        " Leave it out, or read it there."
    )
    request.resolve_request(str(file), ["--config.optimizer.groups=('.*/bias: lr=2',)"], tmp_path / "run")


@pytest.mark.parametrize(("slip", "expected"), CASES.values(), ids=CASES)
def test_one_line_before_training(tmp_path, capsys, slip, expected):
    file = tmp_path / "slip.py"
    file.write_text(EXPERIMENT.replace("{slip}", slip))
    assert launch.main(["launch.py", f"--config={file}", f"--workdir={tmp_path / 'run'}"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    line = re.sub(r"0x\w+", "ADDRESS", err.splitlines()[-1])
    assert line == f"error: {expected.replace('FILE', str(file)).replace('FOLDER', os.getcwd())}"
    assert not (tmp_path / "run").exists()
