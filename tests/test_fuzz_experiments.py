"""Slips in the functions of an experiment: each is one line, or the run has the right numbers; never a traceback.

The experiment is a linear regression under SGD, of which NumPy knows every number.
"""

import json
from pathlib import Path

import numpy as np
import pytest

import launch

SOURCE = Path("tests/linear.py").read_text()


def reference(weight=None, rate=0.05, decay=0.0):
    """The loss over all examples after five steps of SGD, each of eight examples in their order, in float64."""
    x = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32).astype(np.float64)
    y = x @ [1, -2, 3, 0.5] + 1
    weight, x = np.ones(40) if weight is None else weight, np.concatenate([x, np.ones((40, 1))], axis=1)
    kernel = np.zeros(5)
    for part in np.arange(40).reshape(5, 8):
        error = x[part] @ kernel - y[part]
        gradient = 2 * (error * weight[part]) @ x[part] / weight[part].sum()
        kernel = kernel - rate * (gradient + 2 * decay * np.append(kernel[:4], 0))
    return np.sum((x @ kernel - y) ** 2 * weight) / weight.sum() + decay * np.sum(kernel[:4] ** 2)


WARNING = "a warning: "  # and the run goes on
LOSS, DATA = "        error = ", "    return make_batches("
WHOLE = "        return {"
MODEL = "    return keras.Sequential("
RATE = "    return optim.make_schedule(cfg, total_steps)"
HALF = np.where(np.arange(40) % 2, 1.0, 0.5)

# {name: (what is replaced, by what, a part of the line)}; a number is the loss of a run that is right, None any line.
AT_ONCE = {
    "an import that is not there": ("import numpy as np\n", "import numpy as np\nimport nowhere\n", "nowhere"),
    "a name that is not there": (MODEL, "    undefined_name\n" + MODEL, "NameError: name 'undefined_name'"),
    "an exit in the file": ("import numpy as np\n", "import numpy as np\nraise SystemExit(0)\n", "sys.exit: status 0"),
    "an exit in a function": (MODEL, "    raise SystemExit\n" + MODEL, "sys.exit"),
    "an exception of one's own": (MODEL, "    raise type('Own', (BaseException,), {})('x')\n" + MODEL, "Own: x."),
    "a function that calls itself": (MODEL, "    return make_model(cfg)\n" + MODEL, "A function calls itself"),
    "memory that is not there": (MODEL, "    np.ones(10**14)\n" + MODEL, "MemoryError: Unable to allocate"),
    "a key of the batch": ('batch["y"]', 'batch["z"]', "there is no 'z' in a batch, which has"),
    "no return of the loss": (WHOLE, "        {", "the loss returned None"),
    "a mean": (WHOLE, "        return total / weight, {}\n" + WHOLE, "the loss returned"),
    "no outputs": (WHOLE, '        return {"mse": losses.Term(total, weight)}\n' + WHOLE, "the loss returned"),
    "a loss as a generator": (WHOLE, "        yield {", "the loss returned"),
    "an if on a tensor": (LOSS, '        if batch["y"][0] > 0:\n            pass\n' + LOSS, "Write tf.where"),
    "a while on a tensor": (LOSS, '        while batch["y"][0] > 0:\n            pass\n' + LOSS, "tf.while_loop"),
    "a loop over a tensor": (LOSS, '        for y in batch["y"]:\n            pass\n' + LOSS, "tf.unstack"),
    "float of a tensor": (LOSS, '        float(batch["y"][0])\n' + LOSS, "A tensor has no value"),
    "NumPy of a tensor": (LOSS, '        np.mean(batch["y"])\n' + LOSS, "A tensor has no value"),
    "an integer sum": ("Term(total,", "Term(tf.cast(total, tf.int32),", "mse"),
    "a term of a vector": ("Term(total,", "Term(error,", "mse"),
    "float64 labels": ("return x, x @", "return x, x.astype(np.float64) @", "float64"),
    "fields of unequal length": ('"y": y}', '"y": y[:39]}', "39"),
    "no field": ('{"x": x, "y": y}', "{}", None),
    "no examples": ('{"x": x, "y": y}', '{"x": x[:0], "y": y[:0]}', None),
    "a data set": ('Source(fields, "made up")', "tf.data.Dataset.from_tensor_slices(fields)", None),
    "a ragged array": ('"y": y}', '"y": tf.ragged.constant([[1.0]] * 40)}', None),
    "arrays instead of a source": ('Source(fields, "made up")', "fields", None),
    "a list as a field": ('"y": y}', '"y": [1, 2]}', None),
    "a transform that returns nothing": ('split == "train")', 'split == "train", transform=lambda b: None)', None),
    "a transform that raises": ('split == "train")', 'split == "train", transform=lambda b: b["z"])', "'z'"),
    "a transform that drops the weight": (
        'split == "train")',
        'split == "train", transform=lambda b: {"x": b["x"], "y": b["y"]})',
        "weight",
    ),
    "a rate as text": (RATE, "    return lambda update: 'fast'", None),
    "a rate that is NaN": (RATE, "    return lambda update: float('nan')", None),
    "a schedule of two arguments": (RATE, "    return lambda update, total: 0.1", "make_schedule returned"),
    "a schedule that divides by zero": (RATE, "    return lambda update: 1 / 0", "ZeroDivisionError"),
    "a schedule with an if": (RATE, "    return lambda update: 0.1 if update < 3 else 0.01", "Write tf.where"),
    "a layer of Keras 3": ("keras.layers.Dense(1", "__import__('keras').layers.Dense(1", "tf_keras as keras"),
    "nothing to train": (MODEL, "    return keras.Sequential([keras.layers.Flatten()])\n" + MODEL, "is trained"),
    "a variable of the loss": (
        "    def loss(",
        "    scale = tf.Variable(1.0)\n\n    def loss(",
        reference(),  # which nothing reads
    ),
    "a variable that the loss reads": ("error**2 *", "tf.Variable(2.0) * error**2 *", None),
    "a metric of Keras": (RATE, RATE + "\n\n\ndef make_metrics(cfg):\n    return {'m': keras.metrics.Mean()}", "Mean"),
    "a metric without values": (
        RATE,
        RATE + "\nfrom framework import metrics\n\n\ndef make_metrics(cfg):\n    return {'m': metrics.Mean()}",
        "Mean must define values",
    ),
    "a metric that is called loss": (
        RATE,
        RATE
        + "\nfrom framework import metrics\n\n\nclass Error(metrics.Mean):\n    def values(self, outputs, batch):\n"
        + "        return outputs['error'], batch['weight']\n\n\ndef make_metrics(cfg):\n    return {'loss': Error()}",
        "'loss'",
    ),
    "a state that is no module": (RATE, RATE + "\n\n\ndef make_state(cfg, model):\n    return []", "tf.Module"),
    "a step that returns nothing": (
        RATE,
        RATE + "\n\n\ndef make_step(cfg, tools):\n    return lambda state, batch: None",
        None,
    ),
    "an optimizer by name": (RATE, RATE + "\n\n\ndef make_optimizer(cfg, learning_rate):\n    return 'sgd'", "'sgd'"),
    "a rate of its own": (
        RATE,
        RATE + "\n\n\ndef make_optimizer(cfg, learning_rate):\n    return keras.optimizers.SGD(0.1)",
        "a learning rate of its own",
    ),
}
LATER = {
    "the right numbers": ("", "", reference()),
    "a weight of its own": (
        '"y": y}',
        '"y": y, "weight": np.where(np.arange(40) % 2, 1.0, 0.5).astype(np.float32)}',
        reference(HALF),
    ),
    "a weight that is negative": ('"y": y}', '"y": y, "weight": -np.ones(40, np.float32)}', None),
    "a weight that is infinite": ('"y": y}', '"y": y, "weight": np.full(40, np.inf, np.float32)}', None),
    "a label that is NaN": ("+ 1\n", "+ np.where(np.arange(40) == 9, np.nan, 1).astype(np.float32)\n", "step 2"),
    "a rate that is a number": (RATE, "    return lambda update: 0.025", reference(rate=0.025)),
    "a penalty of the weights": (
        'kernel_initializer="zeros"',
        'kernel_initializer="zeros", kernel_regularizer=keras.regularizers.L2(0.1)',
        reference(decay=0.1),
    ),
    "a mean of weight 1": ("Term(total, weight)", "Term(total / weight, 1.0)", None),
    "a [batch, 1] beside a [batch]": ("[:, 0] - batch", " - batch", WARNING + "term 'mse' of the loss is"),
    "an assertion that fails": (LOSS, "        tf.debugging.assert_less(batch['y'], -1e9)\n" + LOSS, None),
    "an index that is out of range": (
        LOSS,
        "        tf.gather(batch['y'], 99 + tf.cast(batch['y'] * 0, tf.int32))\n" + LOSS,
        None,
    ),
    "an index that is out of range and read": (
        "error**2 *",
        "(error + 0 * tf.gather(batch['y'], 99 + tf.cast(batch['y'] * 0, tf.int32)))**2 *",
        None,
    ),
    "Python code that raises while it runs": (
        "error**2 *",
        "(error + 0 * tf.ensure_shape(tf.numpy_function(lambda y: 1 // 0, [batch['y']], tf.float32), [8]))**2 *",
        "ZeroDivisionError",
    ),
    "an optimizer that raises": (
        RATE,
        RATE
        + "\n\n\nclass Own(keras.optimizers.SGD):\n    def update_step(self, gradient, variable):\n"
        + "        raise ValueError('its own')\n\n\ndef make_optimizer(cfg, learning_rate):\n"
        + "    return Own(learning_rate)",
        "ValueError: its own",
    ),
    "a source that raises": (
        DATA,
        "    Source = type('Own', (globals()['Source'],), {'take': lambda self, indices: 1 // 0})\n"
        "    cfg = cfg.copy_and_resolve_references().unlock()\n"
        "    cfg.data.placement = 'stream'\n" + DATA,
        "ZeroDivisionError",
    ),
}
# Enough of each kind for every run of the tests.
FIRST = (
    "an import that is not there",
    "an exit in a function",
    "a function that calls itself",
    "a key of the batch",
    "a mean",
    "an if on a tensor",
    "a data set",
    "a transform that raises",
    "a schedule that divides by zero",
    "a layer of Keras 3",
    "a metric without values",
    "a state that is no module",
)


def holds(tmp_path, capsys, caplog, old, new, right):
    """Launches the experiment with a slip, and asserts that it is told of in a line or that the numbers are right."""
    assert old in SOURCE
    file, workdir = tmp_path / "slip.py", tmp_path / "run"
    file.write_text(SOURCE.replace(old, new, 1) if old else SOURCE)
    status = launch.main(["launch.py", f"--config={file}", f"--workdir={workdir}"])
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    if status == 0:
        if isinstance(right, str) and right.startswith(WARNING):
            assert any(message.startswith(right.removeprefix(WARNING)) for message in caplog.messages)
            return
        found = json.loads((workdir / "result.json").read_text())["final"]["test/loss"]
        assert isinstance(right, float), f"silent: {found}"
        assert found == pytest.approx(right, rel=1e-5)
        return
    line = err.splitlines()[-1]
    assert status in (1, 2) and line.startswith("error: "), err
    assert not isinstance(right, float), line
    assert (right or "") in line
    assert len(line) < 800


@pytest.mark.parametrize("name", FIRST)
def test_a_slip_is_one_line(tmp_path, capsys, caplog, name):
    holds(tmp_path, capsys, caplog, *AT_ONCE[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in {**AT_ONCE, **LATER} if name not in FIRST])
def test_a_slip_is_one_line_or_right(tmp_path, capsys, caplog, name):
    holds(tmp_path, capsys, caplog, *{**AT_ONCE, **LATER}[name])
