"""framework/metrics.py against NumPy, and that parts merge to the whole."""

import numpy as np
import pytest
import tensorflow as tf

from framework.metrics import Accuracy, Mean

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}


def example(shape=(40,), classes=4, dtype=np.float32):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(*shape, classes)).astype(dtype)
    weight = rng.integers(0, 3, shape).astype(np.float32)
    return {"logits": logits}, {"label": rng.integers(0, classes, shape).astype(np.int32), "weight": weight}


def reference(outputs, batch):
    correct = outputs["logits"].argmax(-1) == batch["label"]
    return [(correct * batch["weight"]).sum(), batch["weight"].sum()]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(40,), (5, 8)], ids=["examples", "tokens"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accuracy_counts_weighted_hits(mode, shape, dtype):
    outputs, batch = example(shape, dtype=dtype)
    state = MODES[mode](lambda o, b: Accuracy().update(o, b))(
        {name: tf.constant(value) for name, value in outputs.items()},
        {name: tf.constant(value) for name, value in batch.items()},
    )
    assert state.dtype == dtype
    assert state.numpy().tolist() == reference(outputs, batch)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_logits_are_counted_in_float32(dtype):
    logits = tf.cast(tf.one_hot(tf.zeros(3001, tf.int32), 2), dtype)  # above 256 bfloat16 has no odd numbers
    state = Accuracy().update({"logits": logits}, {"label": tf.zeros(3001, tf.int64), "weight": tf.ones(3001)})
    assert state.dtype == tf.float32
    assert state.numpy().tolist() == [3001.0, 3001.0]


def test_padding_changes_nothing():
    outputs, batch = example()
    padded = {"logits": np.concatenate([outputs["logits"], outputs["logits"][:6]])}
    filler = {"label": outputs["logits"][:6].argmax(-1).astype(np.int32), "weight": np.zeros(6, np.float32)}
    longer = {name: np.concatenate([batch[name], filler[name]]) for name in batch}
    assert np.array_equal(Accuracy().update(padded, longer), Accuracy().update(outputs, batch))


def test_merged_parts_are_the_whole_in_any_order():
    metric = Accuracy()
    outputs, batch = example()
    states = []
    for part in (slice(0, 7), slice(7, 8), slice(8, 40)):
        of_part = [{name: value[part] for name, value in tensors.items()} for tensors in (outputs, batch)]
        states.append(metric.update(*of_part).numpy())
    for order in ((0, 1, 2), (2, 0, 1)):
        total = metric.empty()
        for i in order:
            total = metric.merge(total, states[i])
        assert total.dtype == np.float64
        assert total.tolist() == reference(outputs, batch)
        assert metric.result(total) == reference(outputs, batch)[0] / reference(outputs, batch)[1]


def test_merging_keeps_what_float32_would_lose():
    metric = Accuracy()
    total = metric.merge(np.array([2.0**24, 2.0**24]), np.array([1.0, 1.0], np.float32))
    assert total.tolist() == [2.0**24 + 1] * 2


def test_no_examples_have_no_accuracy():
    metric = Accuracy()
    assert metric.empty().tolist() == [0.0, 0.0]
    assert np.isnan(metric.result(metric.empty()))
    outputs, batch = example()
    batch["weight"] *= 0
    assert np.isnan(metric.result(metric.update(outputs, batch).numpy()))


def test_keys_may_be_others():
    outputs, batch = example()
    renamed = Accuracy(logits="digits", label="digit").update(
        {"digits": outputs["logits"]}, {"digit": batch["label"], "weight": batch["weight"]}
    )
    assert renamed.numpy().tolist() == reference(outputs, batch)
    assert Accuracy().mode == "max"


def test_a_mean_of_other_values_takes_one_method():
    class SquaredError(Mean):
        mode = "min"

        def values(self, outputs, batch):
            return (outputs["y"] - batch["target"]) ** 2, batch["weight"]

    batch = {"target": tf.constant([0.0, 0.0, 9.0]), "weight": tf.constant([1, 1, 0])}
    metric = SquaredError()
    state = metric.update({"y": tf.constant([1.0, 2.0, 3.0])}, batch)
    assert state.numpy().tolist() == [5.0, 2.0]
    assert metric.result(state.numpy()) == 2.5


def test_a_mean_without_values_says_so():
    class Nothing(Mean):
        pass

    with pytest.raises(TypeError) as error:
        Nothing().update({}, {})
    assert str(error.value) == "Nothing must define values(outputs, batch)"
