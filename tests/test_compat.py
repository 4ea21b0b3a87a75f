"""framework/compat.py: the private names of TensorFlow and tf_keras still do what the framework uses them for."""

import ast
import importlib
import inspect
import re
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import compat, layers

ROOT = Path(__file__).resolve().parents[1]
OTHER_FILES = [path for path in sorted((ROOT / "framework").rglob("*.py")) if path.name != "compat.py"]
LIBRARIES = ("tensorflow", "tf_keras", "keras")
OF_PYTHON = {"_getframe", "_exit", "_replace", "_asdict", "_fields"}


@pytest.fixture(autouse=True)
def named(request):
    """Says which name an upgrade moved, in one line."""
    try:
        yield
    finally:
        function = request.node.name.removeprefix("test_").partition("[")[0]
        if getattr(compat, function, None) is not None:
            print(f"TensorFlow {tf.__version__}, tf_keras {keras.__version__}: mend {function} in framework/compat.py")


def traced(fn, *args):
    return tf.function(fn, autograph=False).get_concrete_function(*args).graph


def test_is_deterministic():
    tf.config.experimental.enable_op_determinism()
    assert compat.is_deterministic() is True


def test_handle_shape():
    variable = tf.Variable(tf.zeros([3, 4]))
    graph = traced(lambda: variable + 1.0)
    assert compat.handle_shape(graph.captures[0][1]) == [3, 4]
    assert compat.handle_shape(traced(lambda x: x, tf.TensorSpec([], tf.resource)).inputs[0]).rank is None


def test_function_graph():
    inner = tf.function(lambda x: tf.sin(x))
    graph = traced(lambda x: inner(x) + 1.0, tf.TensorSpec([]))
    call = next(operation for operation in graph.get_operations() if "PartitionedCall" in operation.type)
    function = compat.function_graph(graph, call.get_attr("f").name)
    assert "Sin" in [operation.type for operation in function.get_operations()]
    assert compat.function_graph(graph, "no_such_function") is None


def test_function_graphs():
    inner = tf.function(lambda x: tf.sin(x))
    graphs = compat.function_graphs(traced(lambda x: inner(x) + 1.0, tf.TensorSpec([])))
    assert ["Sin" in [operation.type for operation in graph.get_operations()] for graph in graphs] == [True]


def test_user_frames():
    def sine(x):
        return tf.sin(x)

    graph = traced(sine, tf.TensorSpec([]))
    operation = next(operation for operation in graph.get_operations() if operation.type == "Sin")
    frames = [(frame.filename, frame.name) for frame in compat.user_frames(operation)]
    assert (__file__, "sine") in frames and frames.index((__file__, "traced")) < frames.index((__file__, "sine"))
    assert compat.user_frames(types.SimpleNamespace(traceback=None)) == []


def test_is_scratch():
    seen = []

    class Looking(keras.layers.Layer):
        def call(self, inputs):
            seen.append(not tf.executing_eagerly() and compat.is_scratch(tf.compat.v1.get_default_graph()))
            return inputs

    layer = Looking()
    layer.compute_output_shape([2, 3])
    layer(tf.zeros([2, 3]))
    traced(layer, tf.TensorSpec([2, 3]))
    assert seen == [True, False, False]


def tables(tmp_path):
    file = tmp_path / "words.txt"
    file.write_text("a\nb\n")
    initializer = tf.lookup.TextFileInitializer(
        str(file), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE, tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER
    )
    read = tf.lookup.StaticHashTable(initializer, -1, name="words")
    given = tf.lookup.KeyValueTensorInitializer(tf.constant(["a"]), tf.constant([0], tf.int64))
    return (
        read,
        tf.lookup.StaticVocabularyTable(given, 1, name="oov"),
        tf.lookup.experimental.MutableHashTable(tf.string, tf.int64, -1, name="mutable"),
    )


def test_StaticTable(tmp_path):
    read, vocabulary, mutable = tables(tmp_path)
    lookup = keras.layers.StringLookup(vocabulary=["a"]).lookup_table
    assert [isinstance(table, compat.LookupTable) for table in (read, vocabulary, mutable, lookup)] == [True] * 4
    static = [isinstance(table, compat.StaticTable) for table in (read, vocabulary._table, mutable, lookup)]
    assert static == [True, True, False, True]


def test_table_handle(tmp_path):
    read, _, mutable = tables(tmp_path)
    for table in (read, mutable):
        assert table.resource_handle is compat.table_handle(table)


def test_table_name(tmp_path):
    assert compat.table_name(tables(tmp_path)[0]).startswith("words")


def test_table_file(tmp_path):
    read, vocabulary, mutable = tables(tmp_path)
    assert tf.compat.as_str(tf.get_static_value(compat.table_file(read)) or compat.table_file(read)).endswith(
        "words.txt"
    )
    assert compat.table_file(vocabulary) is compat.table_file(mutable) is None


def test_untracked():
    module, variable = tf.Module(), tf.Variable(0.0)
    module.held = compat.untracked(module, {"a": variable})
    assert module.held["a"] is variable and not tf.train.TrackableView.children(module)
    module.held = {"a": variable}
    assert tf.train.TrackableView.children(module)


def test_given_names():
    keras.layers.Dense(1, name="given_by_this_test")
    made_up = keras.layers.Dense(1)
    assert "given_by_this_test" in compat.given_names() and made_up.name not in compat.given_names()


def test_wrap_set_name(monkeypatch):
    for kind in (keras.layers.Layer, compat.Functional):
        monkeypatch.setattr(kind, "_init_set_name", kind._init_set_name)  # is put back afterwards
    seen = []

    def wrap(set_name):
        def noting(layer, name, *args, **kwargs):
            set_name(layer, name, *args, **kwargs)
            seen.append((type(layer).__name__, layer.name))

        return noting

    compat.wrap_set_name(wrap)
    x = keras.Input([1], name="x")
    keras.Model(x, keras.layers.Dense(1, name="dense")(x), name="model")
    assert seen == [("InputLayer", "x"), ("Dense", "dense"), ("Functional", "model")]


def test_set_name():
    layer = keras.layers.Dense(1, name="before")
    compat.set_name(layer, "after")
    assert layer.name == "after"


def test_constructor_arguments():
    assert compat.constructor_arguments(keras.layers.Dense(3, name="own"))["name"] == "own"


def test_is_numbered():
    model = keras.Sequential([keras.layers.Dense(3), keras.layers.ReLU()])
    model.build([None, 2])
    names = [name for name in tf.train.TrackableView.children(model) if compat.is_numbered(name)]
    assert sorted(names) == ["layer-0", "layer-1", "layer_with_weights-0"]


def test_flatten_layers():
    inner = keras.Sequential([keras.layers.Dense(3, name="a"), keras.layers.ReLU(name="b")], name="inner")
    model = keras.Sequential([inner, keras.layers.Dense(1, name="c")], name="outer")
    assert [layer.name for layer in compat.flatten_layers(model)] == ["outer", "inner", "a", "b", "c"]


def test_set_dtype_policy():
    layer = keras.layers.Dense(2, dtype="mixed_bfloat16")
    layer.build([None, 3])
    assert layer(tf.zeros([1, 3])).dtype == tf.bfloat16
    compat.set_dtype_policy(layer, "float32")
    assert layer(tf.zeros([1, 3])).dtype == tf.float32


def test_copy_mask():
    ids = tf.constant([[1, 0]])
    embedded = keras.layers.Embedding(3, 2, mask_zero=True)(ids)
    tensor = compat.copy_mask(embedded, tf.identity(embedded))
    pooled = keras.layers.GlobalAveragePooling1D()  # averages the places whose mask is True
    np.testing.assert_array_equal(pooled(tensor), embedded[:, 0])
    assert compat.copy_mask(ids, tensor) is tensor


class Adding(keras.layers.Layer):
    """Adds the sum of its inputs to the loss."""

    def call(self, inputs):
        self.add_loss(tf.reduce_sum(inputs))
        return inputs


def test_call_losses():
    layer = Adding()
    layer(tf.ones([2, 3]))
    assert [float(loss) for loss in compat.call_losses(layer)] == [6.0]


def test_symbolic_losses():
    x = keras.Input([3])
    model = keras.Model(x, keras.layers.ReLU()(x))
    model.add_loss(tf.reduce_sum(model.output))
    held = [layer for layer in compat.flatten_layers(model) if compat.symbolic_losses(layer)]
    assert len(held) == 1


def test_callable_losses():
    layer = keras.layers.Dense(
        1, use_bias=False, kernel_initializer="ones", kernel_regularizer=keras.regularizers.L2(0.5)
    )
    layer.build([None, 3])
    assert [float(loss()) for loss in compat.callable_losses(layer)] == [1.5]  # 0.5 * (1 + 1 + 1)
    mark = lambda: tf.constant(7.0)  # noqa: E731
    compat.callable_losses(layer).append(mark)
    assert [float(loss) for loss in layer.losses] == [1.5, 7.0]


def test_replace_activity():
    layer, seen = keras.layers.Dense(2, activity_regularizer=keras.regularizers.L2(1.0)), []
    compat.replace_activity(layer, lambda layer, inputs, outputs: seen.append((layer, inputs.shape, outputs.shape)))
    layer(tf.ones([4, 3]))
    traced(layer, tf.TensorSpec([4, 3]))
    assert seen == [(layer, (4, 3), (4, 2))] * 2 and not layer.losses


def test_add_activity():
    layer = keras.layers.ReLU(activity_regularizer=keras.regularizers.L2(0.5))
    compat.replace_activity(layer, compat.add_activity)
    layer(tf.fill([4, 2], 3.0))
    assert [float(loss) for loss in layer.losses] == [9.0]  # 0.5 * 8 * 9 / 4, the mean over the batch


def test_MultiHeadAttention():
    calls = []

    class Noting(compat.MultiHeadAttention):
        def on_projections(self):
            calls.append([layer.name for layer in self.projections()])

        def make_dropout(self, rate):
            calls.append(rate)
            return layers.Dropout(rate)

        def attend(self, query, key, value, attention_mask=None, training=None):
            calls.append((query.shape, self.depth, training))
            return super().attend(query, key, value, attention_mask, training)

        def drop(self, probabilities, training):
            raise AssertionError("tf_keras calls its own")

    x = tf.random.normal([2, 5, 4])
    layer, plain = Noting(2, 3, dropout=0.25), keras.layers.MultiHeadAttention(2, 3)
    ours = layer(x, x, use_causal_mask=True)
    plain(x, x)
    plain.set_weights(layer.get_weights())
    np.testing.assert_array_equal(ours, plain(x, x, use_causal_mask=True))
    assert calls[:2] == [0.25, ["query", "key", "value", "attention_output"]]
    assert calls[2][:2] == ((2, 5, 2, 3), 3)
    scores = tf.random.normal([2, 2, 5, 5])
    masked = layer.masked_softmax(scores, tf.ones([2, 5, 5], tf.bool))
    np.testing.assert_allclose(masked, tf.nn.softmax(scores), rtol=1e-6)


def built(kind, *variables):
    optimizer = kind(learning_rate=0.5)
    optimizer.build(list(variables))
    return optimizer


def test_GROUP_METHODS():
    called = []

    def noting(name):
        def method(self, *args, **kwargs):
            called.append(name)
            return getattr(keras.optimizers.SGD, name)(self, *args, **kwargs)

        return method

    kind = type("Noting", (keras.optimizers.SGD,), {name: noting(name) for name in compat.GROUP_METHODS})
    variable = tf.Variable([1.0])
    built(kind, variable).apply_gradients([(tf.ones([1]), variable)], skip_gradients_aggregation=True)
    assert sorted(called) == sorted(compat.GROUP_METHODS)


def test_learning_rate_of():
    rate = keras.optimizers.schedules.CosineDecay(0.25, 10)
    assert compat.learning_rate_of(keras.optimizers.SGD(learning_rate=rate)) is rate
    assert compat.learning_rate_of(object()) is None


def test_set_learning_rate():
    class Own(keras.optimizers.Optimizer):
        def __init__(self):
            super().__init__(name="own")
            compat.set_learning_rate(self, 0.25)

    assert float(Own().learning_rate) == 0.25


def test_is_built():
    optimizer = keras.optimizers.Adam()
    assert not compat.is_built(optimizer)
    optimizer.build([tf.Variable([1.0])])
    assert compat.is_built(optimizer)


def test_set_built():
    optimizer = keras.optimizers.SGD(momentum=0.5)
    compat.set_built(optimizer)
    assert compat.is_built(optimizer)


def test_slot_index():
    first, second = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    optimizer = built(keras.optimizers.Adam, first, second)
    assert [compat.slot_index(optimizer, variable) for variable in (second, first)] == [1, 0]


def test_adam_slots():
    first, second = tf.Variable([1.0]), tf.Variable([1.0, 2.0])
    optimizer = built(keras.optimizers.Adam, first, second)
    optimizer.apply_gradients([(tf.constant([1.0]), first), (tf.constant([2.0, 3.0]), second)])
    mean, square = compat.adam_slots(optimizer, second)
    np.testing.assert_allclose(mean, [0.2, 0.3], rtol=1e-6)  # (1 - 0.9) g
    np.testing.assert_allclose(square, [0.004, 0.009], rtol=1e-5)  # (1 - 0.999) g^2


def test_undecayed_names():
    optimizer, bias, kernel = (
        keras.optimizers.AdamW(),
        tf.Variable([1.0], name="bias"),
        tf.Variable([1.0], name="kernel"),
    )
    assert not compat.undecayed_names(optimizer)
    optimizer.exclude_from_weight_decay(var_names=["bias"])
    assert list(compat.undecayed_names(optimizer)) == ["bias"]
    assert [compat.is_decayed(optimizer, variable) for variable in (bias, kernel)] == [False, True]


def test_mesh():
    grid = tf.experimental.dtensor.create_mesh([("batch", 1)], devices=["CPU:0"])
    assert compat.mesh(keras.optimizers.SGD()) is None
    optimizer = keras.optimizers.SGD(mesh=grid)
    assert compat.mesh(optimizer) is grid


# No other file uses a private name.


def test_is_loop_body():
    bodies = []

    def body(i):
        bodies.append(compat.is_loop_body(tf.compat.v1.get_default_graph()))
        return i + 1

    graph = traced(lambda: tf.while_loop(lambda i: i < 3, body, (0,)))
    assert bodies == [True] and not compat.is_loop_body(graph)


def test_seeded_initializers():
    initial = lambda: keras.initializers.GlorotUniform()([3]).numpy()  # noqa: E731
    keras.utils.set_random_seed(1)
    undisturbed = [initial(), initial()]
    keras.utils.set_random_seed(1)
    first = initial()
    with compat.seeded_initializers(5):
        seeded = initial()
    assert np.array_equal([first, initial()], undisturbed)
    with compat.seeded_initializers(5):
        assert np.array_equal(initial(), seeded)
    with compat.seeded_initializers(6):
        assert not np.array_equal(initial(), seeded)


def test_generator_of():
    layer = keras.layers.Dropout(0.5, seed=3)
    assert isinstance(layer, compat.RandomLayer)
    assert isinstance(compat.generator_of(layer), compat.RandomGenerator)
    assert compat.generator_of(keras.layers.Dense(1)) is None
    assert compat.given_seed(layer) == 3 and compat.given_seed(keras.layers.LSTM(1)) is None


def test_set_generator():
    class Half(compat.RandomGenerator):
        def dropout(self, inputs, rate, noise_shape=None):
            return inputs / 2

    layer = keras.layers.Dropout(0.5)
    children = set(tf.train.TrackableView.children(layer))
    compat.set_generator(layer, Half())
    assert layer(tf.ones([1]), training=True).numpy().tolist() == [0.5]
    assert set(tf.train.TrackableView.children(layer)) == children


class Kept(list):
    """Masks of a cell that are all 2."""

    def clear(self):
        self.append("cleared")

    def setdefault(self, *, kwargs):
        return [tf.fill(tf.shape(kwargs["inputs"]), 2.0)] * kwargs["count"]


def test_brightness_factor_and_range():
    layer = keras.layers.RandomBrightness(0.25, value_range=(-1, 3))
    assert compat.brightness_factor(layer) == (-0.25, 0.25)
    assert compat.brightness_range(layer) == (-1, 3)


def test_wrap_masks():
    cells = keras.layers.LSTMCell(1, dropout=0.5), keras.layers.LSTMCell(1)
    state = [tf.zeros([1, 1])] * 2
    for cell in cells:
        cell.build([None, 1])
        cell.set_weights([np.ones([1, 4]), np.ones([1, 4]), np.zeros(4)])
    compat.wrap_masks(cells[0], lambda draw: Kept())
    compat.wrap_masks(keras.layers.Dense(1), lambda draw: Kept())
    doubled = cells[1](tf.fill([1, 1], 2.0), state)[0]
    np.testing.assert_allclose(cells[0](tf.ones([1, 1]), state, training=True)[0], doubled, rtol=1e-6)


def test_forget_masks():
    layer, made = keras.layers.SimpleRNN(1, dropout=0.5), []
    compat.wrap_masks(layer.cell, lambda draw: made.append(Kept()) or made[-1])
    compat.forget_masks(layer)
    assert made == [["cleared"], ["cleared"]]


def test_reshape_always():
    shapes = []

    class Looking(keras.layers.Layer):
        def call(self, inputs):
            shapes.append(inputs.shape.as_list())
            return inputs

    layer = keras.layers.TimeDistributed(Looking())
    compat.reshape_always(layer)
    layer(tf.zeros([2, 3, 4]))
    assert shapes == [[6, 4]]


def private_uses(source: str, classes: dict[str, type] | None = None) -> list[str]:
    """Returns 'line N: name' of each private name of a library that a file uses.

    Args:
      source: its text.
      classes: those that it defines, by name; what a library's class has is private to it in a subclass too.
    """
    tree = ast.parse(source)
    own = _defined(tree)
    uses = list(_imports(tree))
    inherited = {name: _of_libraries(kind) for name, kind in (classes or {}).items()}
    for scope, node in _attributes(tree):
        is_of_itself = (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")) or _is_super(node.value)
        if (is_of_itself and node.attr in inherited.get(scope, ())) or (
            not is_of_itself and node.attr not in own | OF_PYTHON
        ):
            uses.append(f"line {node.lineno}: {node.attr}")
    for scope, node in _methods(tree):
        if node.name in inherited.get(scope, ()):
            uses.append(f"line {node.lineno}: {node.name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in _names_of_keras() - own:
            uses.append(f"line {node.lineno}: '{node.value}'")
    return uses


def _is_private(name: str) -> bool:
    return re.fullmatch(r"_[a-zA-Z]\w*", name) is not None


def _is_super(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"


def _defined(tree: ast.Module) -> set[str]:
    """Private names that a file itself defines or sets on `self`."""
    names = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    names |= {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
    }
    return set(filter(_is_private, names))


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        yield from (
            f"line {node.lineno}: {name}" for name in names if re.match(r"tensorflow\.python|(tf_)?keras\.src", name)
        )


def _attributes(tree: ast.Module) -> Iterator[tuple[str, ast.Attribute]]:
    """(class, node) of each private attribute that is read or set; '' outside of classes."""
    yield from (
        (scope, node) for scope, node in _scoped(tree) if isinstance(node, ast.Attribute) and _is_private(node.attr)
    )


def _methods(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    yield from (
        (scope, node) for scope, node in _scoped(tree) if isinstance(node, ast.FunctionDef) and _is_private(node.name)
    )


def _scoped(node: ast.AST, scope: str = "") -> Iterator[tuple[str, ast.AST]]:
    for child in ast.iter_child_nodes(node):
        yield scope, child
        yield from _scoped(child, child.name if isinstance(child, ast.ClassDef) else scope)


def _of_libraries(kind: type) -> set[str]:
    """Private names that the library classes below a class define or set."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in LIBRARIES:
            names |= {name for name in vars(base) if _is_private(name)}
            names |= set(re.findall(r"self\.(_[a-zA-Z]\w*) =", inspect.getsource(base)))
    return names


def _names_of_keras() -> set[str]:
    """Private names in the files of tf_keras that a string may name: for getattr, or a key of vars()."""
    if not _NAMES:
        folder = Path(keras.__file__).parent / "src"
        for file in (
            *folder.glob("engine/*.py"),
            *folder.glob("optimizers/*.py"),
            *folder.glob("layers/attention/*.py"),
        ):
            _NAMES.update(re.findall(r"(?:self\.|def )(_[a-zA-Z]\w*)", file.read_text()))
    return _NAMES


_NAMES: set[str] = set()


@pytest.mark.parametrize("path", OTHER_FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_other_file_uses_a_private_name(path):
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    module = importlib.import_module(name)
    classes = {
        kind: value for kind, value in vars(module).items() if inspect.isclass(value) and value.__module__ == name
    }
    assert private_uses(path.read_text(), classes) == []


@pytest.mark.parametrize(
    ("source", "uses"),
    [
        ("from tensorflow.python.ops import x", ["line 1: tensorflow.python.ops"]),
        ("import tf_keras.src.backend", ["line 1: tf_keras.src.backend"]),
        ("model._flatten_layers()", ["line 1: _flatten_layers"]),
        ("getattr(layer, '_callable_losses')", ["line 1: '_callable_losses'"]),
        ("class A:\n    def __init__(self):\n        self._x = 1\n\ny = a._x\nz = t._replace(a=1)", []),
        ("class D(keras.layers.Dense):\n    def call(self):\n        self._own = self._name", ["line 3: _name"]),
        ("class D(keras.layers.Dense):\n    def _set_dtype_policy(self): ...", ["line 2: _set_dtype_policy"]),
    ],
)
def test_a_planted_use_is_found(source, uses):
    assert private_uses(source, {"D": keras.layers.Dense}) == uses


def test_each_function_of_compat_has_a_test():
    public = {name for name, value in vars(compat).items() if getattr(value, "__module__", "") == compat.__name__}
    tested = Path(__file__).read_text()
    assert [name for name in sorted(public) if f"compat.{name}" not in tested] == []
