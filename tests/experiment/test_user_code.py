"""framework/experiment/user_code.py: whose mistake an exception is, and the line that says so."""

import traceback
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework.config import RunError, UserError
from framework.experiment import user_code

IS_OWN = user_code.is_own
DEBUG = "--debug shows the traceback."


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Below it lies what is the experimenter's: neither this file nor what calls it."""
    is_own = user_code.is_own
    monkeypatch.setattr(user_code, "is_own", lambda file: file.startswith(str(tmp_path)) and is_own(file))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def own(source, name="x.py"):
    """The names that a file of the experimenter's defines."""
    path = Path(name).absolute()
    path.write_text(source)
    names = {"tf": tf, "np": np}
    exec(compile(source, str(path), "exec"), names)
    return names


def line(call, folder=None):
    with pytest.raises(UserError) as caught, user_code.explained(folder):
        call()
    return str(caught.value)


def test_the_innermost_line_of_the_experiment_counts():
    names = own("def inner():\n    return np.zeros(3).reshape([2])\n\ndef outer():\n    inner()\n")
    expected = f"x.py:2: inner: ValueError: cannot reshape array of size 3 into shape (2,). {DEBUG}"
    assert line(names["outer"]) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("def call():\n    return 1 // 0\n", "hook 'pause': x.py:2: call: ZeroDivisionError: integer division"),
        ("from json import loads\ndef make():\n    return loads\n", "hook 'pause': JSONDecodeError: Expecting value"),
    ],
    ids=["a function of the file", "a library's"],
)
def test_an_object_of_the_experiment_is_named(source, expected):
    names = own(source)
    call = names["call"] if "call" in names else lambda: names["make"]()("")

    def act():
        with user_code.named("hook 'pause'"):
            call()

    assert line(act).startswith(expected)


def test_a_file_of_a_compiled_package_is_not_the_experimenters(monkeypatch):
    # Cython gives a path that looks relative to the working folder.
    monkeypatch.setattr(user_code, "is_own", lambda file: file != __file__ and IS_OWN(file))
    names = own("def draw():\n    return np.random.default_rng(0).normal(size=-3)\n")
    assert line(names["draw"]).startswith("x.py:2: draw: ValueError: negative dimensions are not allowed.")


def test_what_the_framework_alone_raises_passes_through():
    with pytest.raises(ZeroDivisionError), user_code.explained():
        _ = 1 // 0


@pytest.mark.parametrize("error", [UserError, RunError, KeyboardInterrupt])
def test_what_says_enough_passes_through(error):
    def fail():
        raise error("as it is")

    with pytest.raises(error, match="as it is"), user_code.explained():
        own("def call(fail):\n    fail()\n")["call"](fail)


@pytest.mark.parametrize(
    ("source", "compiled", "message"),
    [
        ("tf.debugging.assert_less(x, 0.0)", None, "assertion failed: [Condition x < y did not hold"),
        (
            "return tf.reshape(x, [tf.cast(x[0], tf.int32)])",
            True,
            "a tensor with 2 values, but the requested shape has",
        ),
        ("return tf.reshape(x, tf.where(x > 0)[:, 0])", True, "must be a compile-time constant"),
        ("return tf.strings.as_string(x)", True, "XLA has no operation AsString. Use --config.train.compile=graph, or"),
    ],
)
def test_an_op_that_fails_while_it_runs(source, compiled, message):
    function = tf.function(own(f"def f(x):\n\n    {source}\n")["f"], autograph=False, jit_compile=compiled)
    found = line(lambda: function(tf.constant([7.0, 1.0])))
    assert found.startswith("x.py:3: f: InvalidArgumentError: ")
    assert message in found
    assert len(found) < 450


@pytest.mark.parametrize(
    ("layer", "compiled", "expected"),
    [
        (
            keras.layers.MaxPooling2D(2, name="pool"),
            True,
            "a step, at pool/MaxPool/MaxPoolGrad: UnimplementedError: XLA has no deterministic gradient of max pooling."
            " Use layers.MaxPooling2D of the framework, for windows that do not overlap, or"
            " --config.train.compile=graph, or --config.runtime.deterministic=False.",
        ),
        (
            keras.layers.UpSampling2D(2, name="up"),
            True,
            "a step, at up/resize/ResizeNearestNeighborGrad: InvalidArgumentError: XLA has no operation"
            " ResizeNearestNeighborGrad. Use --config.train.compile=graph, or write it with other functions of tf.",
        ),
        (
            keras.layers.Resizing(3, 3, "area", name="small"),
            None,
            "a step: LookupError: TensorFlow has no gradient of ResizeArea. Do it in the transform of the data, or"
            " write it with other functions of tf.",
        ),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_gradient_that_tensorflow_cannot_compute(layer, compiled, expected):
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.reduce_sum(layer(x) ** 2)
        return tape.gradient(y, x)

    tf.config.experimental.enable_op_determinism()  # as each run that is deterministic
    function = tf.function(gradient, autograph=False, jit_compile=compiled)
    assert line(lambda: function(tf.ones([2, 6, 6, 1]))) == f"{expected} {DEBUG}"


@pytest.mark.parametrize(
    "call",
    [
        pytest.param(lambda: np.ones(10**15), id="NumPy"),
        pytest.param(
            lambda: tf.random.stateless_uniform([10**7, 10**7], [0, 0]), id="TensorFlow", marks=pytest.mark.slow
        ),  # TensorFlow waits ten seconds for memory
    ],
)
def test_memory_that_is_not_there(call):
    found = line(call)
    assert found.startswith("a step: ")
    assert found.endswith(f"Use a smaller --config.data.batch_size, or train.micro_batches. {DEBUG}")


def test_a_function_that_autograph_converted():
    function = tf.function(own("def f(x):\n\n    raise ValueError('one two')\n")["f"])
    assert line(lambda: function(tf.constant(1.0))) == f"x.py:3: f: ValueError: one two. {DEBUG}"


def test_python_code_that_tensorflow_calls():
    source = "def call(x):\n    return 1 // 0\n\ndef f(x):\n    return tf.numpy_function(call, [x], tf.float32)\n"
    function = tf.function(own(source)["f"], autograph=False)
    expected = f"x.py:2: call: UnknownError: ZeroDivisionError: integer division or modulo by zero. {DEBUG}"
    assert line(lambda: function(tf.constant(1.0))) == expected


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        ("if x > 0: pass", "tf.where"),
        ("while x > 0: pass", "tf.while_loop"),
        ("x > 0 and x < 1", "tf.logical_and"),
        ("for y in tf.stack([x, x]): pass", "tf.unstack"),
        ("float(x)", "tf.cast"),
        ("int(x)", "tf.cast"),
        ("x.numpy()", "functions of tf"),
        ("np.mean(x)", "functions of tf"),
    ],
)
def test_what_asks_a_traced_tensor_for_its_value(source, advice):
    function = tf.function(own(f"def f(x):\n    {source}\n")["f"], autograph=False)
    found = line(lambda: function(tf.constant(1.0)))
    assert found.startswith("x.py:2: f: ")
    assert "A tensor has no value while the step is traced" in found
    assert advice in found


def test_the_traceback_lies_in_a_run_folder(folder):
    fail = own("def f():\n    raise KeyError('key')\n")["f"]
    run = folder / "run"
    assert line(fail, run) == f"x.py:2: f: KeyError: 'key'. {DEBUG}"
    run.mkdir()
    assert line(fail, run) == f"x.py:2: f: KeyError: 'key'. {DEBUG}"
    assert list(run.iterdir()) == []
    (run / "config.json").write_text("{}")
    path = run / "failure" / "traceback.txt"
    assert line(fail, run) == f"x.py:2: f: KeyError: 'key'. The traceback is in {path}."
    assert [entry.name for entry in path.parent.iterdir()] == ["traceback.txt"]
    assert path.read_text().endswith("in f\n    raise KeyError('key')\nKeyError: 'key'\n")


def test_the_original_is_the_cause():
    with pytest.raises(UserError) as caught, user_code.explained():
        own("def f():\n    return {}['key']\n")["f"]()
    assert isinstance(caught.value.__cause__, KeyError)
    assert "{}['key']" in "".join(traceback.format_exception(caught.value))


def test_a_message_of_any_length_is_one_line():
    found = line(own("def f():\n    raise ValueError('ab\\n' * 5000)\n")["f"])
    assert "\n" not in found
    assert len(found) < 400
    assert user_code.one_line("a\x00b \x1b[1m\ud800 é") == "a\\x00b \\x1b[1m\\ud800 é"
    assert user_code.one_line("x" * 5000) == f"{'x' * 120}…{'x' * 40}"
    long = user_code.one_line("word " * 5000)
    assert len(long) == 800
    assert user_code.one_line("short  and\nplain") == "short and plain"


@pytest.mark.parametrize(
    ("file", "is_own"),
    [
        ("/home/me/x.py", True),
        ("x.py", True),
        (str(Path(user_code.__file__).with_name("load.py")), False),
        (str(Path(user_code.__file__).parents[2] / "launch.py"), False),
        (str(Path(user_code.__file__).parents[2] / "experiments" / "mnist_mlp.py"), True),
        (np.__file__, False),
        (traceback.__file__, False),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_whose_a_file_is(monkeypatch, file, is_own):
    monkeypatch.undo()
    assert user_code.is_own(file) == is_own


def test_a_tensor_of_keras_3_in_a_layer_of_tf_keras():
    source = "import keras, tf_keras\n\ndef f():\n    return tf_keras.layers.Dropout(0.1)(keras.Input([3]))\n"
    assert line(own(source)["f"]) == (
        "x.py:4: f: ValueError: a layer of tf_keras got a KerasTensor. It is of Keras 3, whose layers, models and"
        f" optimizers are others: write `import tf_keras as keras`. {DEBUG}"
    )


def test_a_change_of_the_working_folder(folder):
    """Relative paths, such as that of the run folder, would lead elsewhere from then on."""
    (folder / "other").mkdir()
    away = own(
        "import os\ndef away(): os.chdir('other')\ndef back(): os.chdir('other'); os.chdir('..')\n"
        "def breaks(): os.chdir('other'); 1 / 0\n"
    )
    expected = (
        f"hook 'own' changed the working folder from {folder} to {folder / 'other'}, but the run folder and other"
        " paths, as typed, are relative to the first. Open files by absolute paths, or go back with os.chdir before it"
        " returns."
    )
    with pytest.raises(UserError) as caught, user_code.named("hook 'own'"):
        away["away"]()
    assert str(caught.value) == expected
    assert Path.cwd() == folder
    with pytest.raises(ZeroDivisionError), user_code.named("hook 'own'"):
        away["breaks"]()
    assert Path.cwd() == folder  # where the traceback is written
    with user_code.named("hook 'own'"):
        away["back"]()
