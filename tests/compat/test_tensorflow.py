"""Private names of TensorFlow that framework/compat.py uses."""

import types

import tensorflow as tf
import tf_keras as keras

from framework import compat
from tests.compat.traced import traced


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
    tracer = (traced.__code__.co_filename, "traced")
    assert (__file__, "sine") in frames and frames.index(tracer) < frames.index((__file__, "sine"))
    assert compat.user_frames(types.SimpleNamespace(traceback=None)) == []


def test_gradient_of():
    def derivative():
        x = tf.constant(0.0)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = tf.sin(x)
        return tape.gradient(y, x)

    def doubled(gradient):
        return lambda op, upstream: 2 * gradient(op, upstream)

    with compat.gradient_of("Sin", doubled):
        assert float(derivative()) == float(tf.function(derivative)()) == 2
        with compat.gradient_of("Sin", doubled):
            assert float(derivative()) == 4
    assert float(derivative()) == float(tf.function(derivative)()) == 1


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


def test_mesh():
    grid = tf.experimental.dtensor.create_mesh([("batch", 1)], devices=["CPU:0"])
    assert compat.mesh(keras.optimizers.SGD()) is None
    optimizer = keras.optimizers.SGD(mesh=grid)
    assert compat.mesh(optimizer) is grid


def test_is_loop_body():
    bodies = []

    def body(i):
        bodies.append(compat.is_loop_body(tf.compat.v1.get_default_graph()))
        return i + 1

    graph = traced(lambda: tf.while_loop(lambda i: i < 3, body, (0,)))
    assert bodies == [True] and not compat.is_loop_body(graph)


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


def test_without_trace_warning(caplog):
    """Of a function that is traced for many buckets, TensorFlow would name code that is not the user's."""
    for is_warned, function in (
        (False, compat.without_trace_warning(tf.function(lambda x: x))),
        (True, tf.function(lambda x: -x)),
    ):
        caplog.clear()
        assert [abs(int(function(number))) for number in range(8)] == list(range(8))  # each number is traced
        assert ("retracing" in caplog.text) == is_warned
