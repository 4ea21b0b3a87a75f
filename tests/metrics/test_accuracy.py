"""framework/metrics against NumPy, and that parts merge to the whole."""

import numpy as np
import pytest
import tensorflow as tf

from framework.errors import UserError
from framework.metrics import Accuracy, Mean
from tests.compile_modes import FAST_MODES, MODES


def example(shape=(40,), classes=4, dtype=np.float32):
    rng = np.random.default_rng(5)
    logits = rng.normal(size=(*shape, classes)).astype(dtype)
    weight = rng.integers(0, 3, shape).astype(np.float32)
    return {"logits": logits}, {"label": rng.integers(0, classes, shape).astype(np.int32), "weight": weight}


def reference(outputs, batch):
    correct = outputs["logits"].argmax(-1) == batch["label"]
    return [(correct * batch["weight"]).sum(), batch["weight"].sum()]


@pytest.mark.parametrize("mode", FAST_MODES)
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

    with pytest.raises(UserError) as error:
        Nothing().update({}, {})
    assert str(error.value) == "Nothing must define values(outputs, batch)."


class Seen(Mean):
    """The mean of what is given."""

    def values(self, outputs, batch):
        return outputs["seen"], batch["weight"]


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("values", [[3, 7, -2, 5], [True, False, True, True]], ids=["int32", "bool"])
def test_weights_of_whole_numbers_and_bools_stay_what_they_are(mode, values):
    weight = [0.5, 1.5, 0.25, 0.0]
    update = MODES[mode](lambda seen, weight: Seen().update({"seen": seen}, {"weight": weight}))
    state = update(tf.constant(values), tf.constant(weight))
    assert state.dtype == tf.float32
    assert state.numpy().tolist() == [np.dot(np.float64(values), weight), 2.25]


@pytest.mark.parametrize(("values", "weight"), [("float64", "float32"), ("float32", "float64"), ("int32", "float64")])
def test_the_wider_of_values_and_weights_decides(values, weight):
    state = Seen().update({"seen": tf.constant([1, 2], values)}, {"weight": tf.constant([0.1, 0.2], weight)})
    assert state.dtype == tf.float64


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_a_value_without_weight_may_be_anything(mode, bad):
    update = MODES[mode](lambda seen, weight: Seen().update({"seen": seen}, {"weight": weight}))
    assert update(tf.constant([2.0, bad]), tf.constant([1.5, 0.0])).numpy().tolist() == [3.0, 1.5]
    assert not np.isfinite(update(tf.constant([2.0, bad]), tf.constant([1.5, 1e-9])).numpy()[0])


def binary(shape, label_shape, label_dtype="int32"):
    """(outputs, batch, hits / weight in float64) of two classes."""
    rng = np.random.default_rng(8)
    logit, label = rng.normal(size=30), rng.integers(0, 2, 30)
    weight = rng.uniform(0, 2, 30).astype(np.float32)
    share = (((logit > 0) == label) * weight.astype(np.float64)).sum() / weight.astype(np.float64).sum()
    outputs = {"logits": tf.constant(logit.reshape(shape), tf.float32)}
    return outputs, {"label": tf.cast(label.reshape(label_shape), label_dtype), "weight": tf.constant(weight)}, share


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize("shape", [(30, 1), (30,)], ids=str)
@pytest.mark.parametrize("label_shape", [(30, 1), (30,)], ids=str)
def test_one_logit_is_of_two_classes(mode, shape, label_shape):
    outputs, batch, share = binary(shape, label_shape)
    metric = Accuracy()
    state = MODES[mode](metric.update)(outputs, batch).numpy()
    assert metric.result(state) == pytest.approx(share, rel=1e-6)
    assert 0.3 < share < 0.7  # neither all nor none


@pytest.mark.parametrize("dtype", ["bool", "int64", "uint8", "float32", "float64"])
def test_labels_of_two_classes_may_be_of_any_type_of_number(dtype):
    outputs, batch, share = binary((30, 1), (30,), dtype)
    assert Accuracy().result(Accuracy().update(outputs, batch).numpy()) == pytest.approx(share, rel=1e-6)


def test_a_single_logit_of_each_token():
    logits, label = np.array([[[1.0], [-1.0]], [[0.0], [2.0]]]), np.array([[1, 1], [0, 0]])
    state = Accuracy().update({"logits": logits}, {"label": label, "weight": np.array([[1.0, 2.0], [4.0, 8.0]])})
    assert state.numpy().tolist() == [1.0 + 4.0, 15.0]  # 0 is not above 0


@pytest.mark.parametrize("mode", FAST_MODES)
@pytest.mark.parametrize(
    ("logits", "label"),
    [
        ([[3.0], [-3.0]], [2, 0]),  # three classes, one logit
        ([[3.0], [-3.0]], [-1, 0]),
        ([[3.0], [-3.0]], [0.9, 0.0]),  # smoothed
        ([[3.0], [-3.0]], [2**32 + 1, 0]),  # 1, once cut to 32 bits
        ([[1.0, 2.0], [0.0, 1.0]], [2, 0]),
        ([[1.0, 2.0], [0.0, 1.0]], [0.5, 0.0]),
        ([[float("nan"), 2.0], [0.0, 1.0]], [1, 0]),
        ([[float("nan")], [0.0]], [0, 0]),
    ],
)
def test_what_is_no_class_makes_the_accuracy_nan_unless_it_has_no_weight(mode, logits, label):
    logits, label = tf.constant(logits), tf.constant(np.array(label))
    update = MODES[mode](lambda weight: Accuracy().update({"logits": logits}, {"label": label, "weight": weight}))
    assert np.isnan(update(tf.constant([1.0, 1.0])).numpy()[0])
    assert np.isfinite(update(tf.constant([0.0, 1.0])).numpy()).all()


@pytest.mark.parametrize(
    ("logits", "label"),
    [((4, 4), (4, 4)), ((4, 3), (4, 3)), ((4, 3), (4, 1)), ((4, 1), (4, 4)), ((4,), (4, 4)), ((4, 3), (3,))],
    ids=str,
)
def test_labels_that_are_not_one_for_each_row_are_refused(logits, label):
    """Of [4, 4] beside [4], `==` would make 16 comparisons."""
    with pytest.raises(UserError) as error:
        Accuracy().update({"logits": np.ones(logits)}, {"label": np.ones(label, np.int32), "weight": np.ones(4)})
    assert str(error.value) == (
        f"Accuracy: logits 'logits' have shape {logits} and labels 'label' {label}, but each row of logits has one"
        " label, the number of its class. Write e.g. tf.argmax(labels, -1) of one-hot labels, labels[:, 0] of a column."
    )


def test_labels_that_are_texts_are_refused():
    with pytest.raises(UserError, match=r"^Accuracy: labels 'label' are of dtype string, but labels are class numbers"):
        Accuracy().update({"logits": np.ones((2, 2))}, {"label": np.array(["a", "b"]), "weight": np.ones(2)})
