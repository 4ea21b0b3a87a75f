"""tests/benchmarks/work.py: the formulas, beside what TensorFlow's graph of forward and backward pass holds."""

import math

import pytest
import tensorflow as tf
import tf_keras as keras

from tests.benchmarks import work
from tests.benchmarks.workloads import arrays, models

PRODUCTS = ("MatMul", "BatchMatMulV2", "Einsum", "Conv2D", "Conv2DBackpropInput", "Conv2DBackpropFilter")
SIZES = {"float32": 4, "bfloat16": 2}


def graph_of(workload):
    """Of loss and gradients of a whole batch, and its trained weights: (graph, {table or other: elements})."""
    model = models.make(workload, keras.layers.Dropout)
    size = arrays.BATCH[workload]
    specs = {
        name: tf.TensorSpec([size, *array.shape[1:]], array.dtype) for name, array in arrays.arrays(workload).items()
    }

    @tf.function(autograph=False)
    def gradients(batch):
        with tf.GradientTape() as tape:
            loss = models.loss(workload, model(models.inputs(workload, batch), training=True), batch)
        return tape.gradient(loss, model.trainable_variables)

    elements = {"table": 0, "other": 0}
    for variable in model.trainable_variables:
        elements["table" if "embedding" in variable.name else "other"] += variable.shape.num_elements()
    return gradients.get_concrete_function(specs).graph, elements


def counted(op):
    """(operations, elements that are read and written) of a product."""
    left, right, out = (tensor.shape.as_list() for tensor in (*op.inputs[-2:], *op.outputs))
    if op.type.startswith("Conv2D"):
        # The gradients' operands are a kernel or an input, and a gradient; the other input is the shape of the result.
        kernel = out if op.type == "Conv2DBackpropFilter" else left if op.type == "Conv2DBackpropInput" else right
        if op.type == "Conv2DBackpropFilter":
            left = op.inputs[0].shape.as_list()
        places = out if op.type == "Conv2D" else right
        flops = 2 * math.prod(places) * math.prod(kernel[:3])
    elif op.type == "Einsum":
        labels = op.get_attr("equation").decode().partition("->")[0].replace(",", "")
        flops = 2 * math.prod(dict(zip(labels, left + right, strict=True)).values())
    else:
        is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        flops = 2 * math.prod(out) * left[-2 if is_transposed else -1]
    return flops, sum(map(math.prod, (left, right, out)))


@pytest.mark.parametrize("workload", ["mlp", "cnn", "transformer"])
def test_products_are_those_of_the_graph(workload):
    graph, elements = graph_of(workload)
    # TensorFlow adds the gradient of the data to that of a convolution, and leaves it out when it runs.
    used = [op for op in graph.get_operations() if op.outputs and op.outputs[0].consumers()]
    ops = [counted(op) for op in used if op.type in PRODUCTS]
    products = work.products(workload)
    assert len(ops) == sum(product.passes for product in products)
    for precision, size in SIZES.items():
        found = work.work(workload, precision)
        update, slots = (4, 1) if workload == "cnn" else (12, 2)
        weights = elements["table"] + elements["other"]
        assert found.flops == sum(flops for flops, _ in ops) + update * weights
        looked_up = 2 * 64 * 32 * 128 if workload == "transformer" else 0
        moved = size * (sum(elements for _, elements in ops) + 4 * looked_up)
        assert found.moved == moved + 4 * (2 * (1 + slots) * weights + elements["other"])


def test_two_tower_moves_its_tables_and_the_rows_of_a_batch():
    """By hand: 9,994 rows of 64 with two slots each, in and out; 2 x 1,024 rows and their gradients, in and out."""
    found = work.work("two_tower")
    tables, rows = 9_994 * 64 * 4, 2 * 1_024 * 64 * 4
    assert found.moved == 6 * tables + 4 * rows + 3 * (rows + 4 * 1_024)
    assert found.flops == 12 * 9_994 * 64 + 3 * 2 * 64 * 1_024
    assert found.kept == 3 * tables + rows // 2


def test_half_precision_moves_half_of_what_products_move():
    full, half = work.work("cnn"), work.work("cnn", "bfloat16")
    update = 5 * 4 * 269_722  # gradient, weight and momentum in, the latter two out
    assert half.flops == full.flops
    assert 2 * (half.moved - update) == full.moved - update
