"""framework/data/dataset.py: a tf.data pipeline is read forward, split over replicas, and read again to go back."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from framework import rng
from framework.config import DataError, UserError, base_config
from framework.data import Source, make_batches
from framework.data.batches import epoch_steps

X = np.random.default_rng(3).normal(size=[10, 2]).astype(np.float32)
LABEL = np.arange(10, dtype=np.int32)
FIELDS = {"x": X, "label": LABEL}


def config(**values):
    made = base_config()
    made.seed = 5
    made.data.batch_size = made.eval.batch_size = 4
    for key, value in values.items():
        section, _, name = key.partition("__")
        made[section][name] = value
    return made


def pipeline(fields=FIELDS, size=4):
    return tf.data.Dataset.from_tensor_slices(fields).batch(size)


def make(dataset, training=True, transform=None, **values):
    return make_batches(dataset, config(**values), training=training, transform=transform)


def line_of(fn, *args, error=UserError, **kwargs):
    with pytest.raises(error) as caught:
        fn(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def counting(calls, size=10):
    """A pipeline whose `calls` note every example that is read."""

    def examples():
        for index in range(size):
            calls.append(index)
            yield {"label": index}

    return tf.data.Dataset.from_generator(examples, output_signature={"label": tf.TensorSpec([], tf.int32)}).batch(4)


def noisy(batch):
    noise = tf.cast(rng.random_bits("noise", batch["x"].shape[0], 2), tf.float32)
    return {**batch, "x": batch["x"] + noise}


@pytest.mark.parametrize("transform", [None, noisy], ids=["plain", "transformed"])
def test_batches_are_those_of_arrays_in_file_order_bit_for_bit(transform):
    """The last batch of a pass is filled up with examples of weight 0, as by `data.remainder=pad`."""
    batches = make(pipeline(), transform=transform)
    expected = make(Source(FIELDS, "x"), transform=transform, data__shuffle=False, data__remainder="pad")
    assert batches.steps_per_epoch == expected.steps_per_epoch == 3
    steps = [0, 1, 2, 3, 4, 5, 8, 2, 0]  # forward, over the end, a jump, and back twice
    traced = tf.function(batches.at)
    for step in steps:
        reference = expected.at(step)
        for batch in (batches.at(step), traced(tf.constant(step, tf.int64))):
            assert batch.keys() == reference.keys()
            for name in reference:
                assert batch[name].shape == reference[name].shape
                assert batch[name].numpy().tobytes() == reference[name].numpy().tobytes(), (step, name)
        for name, value in expected.indices(step).items():
            ours = batches.indices(step)[name]
            assert ours.tolist() == (value + (name == "index") * (step // 3) * 12).tolist()  # counts on in the stream
    plan, reference = batches.plan(1, 3, 5), [expected.at(step) for step in (1, 2, 3, 3, 3)]
    for index, batch in enumerate(reference):
        taken = batches.take(plan, tf.constant(index))
        assert all((taken[name].numpy() == batch[name].numpy()).all() for name in batch)


@pytest.mark.parametrize("transform", [None, noisy], ids=["plain", "transformed"])
def test_shards_are_the_places_of_one_reading(transform):
    calls = []
    dataset = tf.data.Dataset.zip(
        ({"label": counting(calls).unbatch().map(lambda e: e["label"])}, pipeline().unbatch())
    )
    dataset = dataset.map(lambda one, both: {**both, **one}).batch(4)
    whole = make(pipeline(), transform=transform)
    both = make(dataset, transform=transform)
    shards = [both.shard(0, 3), both.shard(3, 1)]
    for first, count in ((0, 2), (2, 2), (4, 1)):
        plans = [shard.plan(first, count, 2) for shard in shards]
        for index in range(count):
            expected = whole.at(first + index)
            taken = [shard.take(plan, tf.constant(index)) for shard, plan in zip(shards, plans, strict=True)]
            for name in expected:
                joined = np.concatenate([batch[name].numpy() for batch in taken])
                assert joined.tobytes() == expected[name].numpy().tobytes()
    assert calls[:10] == list(range(10)) and calls.count(0) <= 1 + len(calls) // 10  # each pass reads an example once


def test_going_forward_reads_once_and_going_back_reads_again():
    calls = []
    batches = make(counting(calls, 400), data__prefetch_batches=1, train__block_steps=1)
    batches._reading._most = 2
    for step in range(5):
        assert batches.at(step)["label"].numpy().tolist() == list(range(4 * step, 4 * step + 4))
    assert batches.at(4)["label"][0] == 16 and batches.at(3)["label"][0] == 12  # kept
    assert calls == sorted(set(calls))
    assert batches.at(1)["label"][0] == 4
    assert calls.count(4) == 2


def shuffled(seed):
    return tf.data.Dataset.from_tensor_slices(FIELDS).shuffle(10, seed=seed).batch(4)


def test_a_seeded_pipeline_that_is_built_again_goes_back_to_the_same_order():
    """`shuffle` makes another order in each pass over one dataset object: the object itself cannot be read again."""
    build = functools.partial(shuffled, 7)
    batches = make(build())
    batches.check_repeatable("train", lambda: make(build()), True)
    expected = [row["label"] for row in build().repeat().take(9).as_numpy_iterator()]
    batches._reading._most = 1
    for step in [*range(9), 4, 0, 8]:
        label, weight = batches.at(step)["label"].numpy(), batches.at(step)["weight"].numpy()
        assert label[weight > 0].tolist() == expected[step].tolist()
    assert expected[0].tolist() != expected[3].tolist()  # another order in the second pass
    assert len(batches.origin["sample"]) == 64 and batches.origin["examples"] == 12


def test_a_pipeline_without_repeatable_order_is_refused_or_said(caplog):
    draws = np.random.default_rng()

    def build():
        x = draws.normal(size=10)
        return pipeline({"x": x})

    again = lambda: make(build())  # noqa: E731
    batches = make(build())
    line = "the tf.data pipeline of 'train' gives other batches when it is "
    assert line_of(batches.check_repeatable, "train", again, True).startswith(f"{line}built and read again, so no")
    assert batches.origin["sample"] is None
    batches.check_repeatable("train", again, False)
    assert [message.startswith(f"{line}read again: a resumed") for message in caplog.messages] == [True]
    assert batches.hash_at(0) is None
    same = shuffled(7)
    kept = make(same)
    assert "build the pipeline inside make_data" in line_of(kept.check_repeatable, "train", lambda: make(same), True)


def test_hashes_are_of_the_batch_whatever_the_replicas():
    batches = make(pipeline(), transform=noisy)
    batches.check_repeatable("train", lambda: make(pipeline()), True)
    other = make(pipeline({**FIELDS, "x": X + (np.arange(10) == 9)[:, np.newaxis]}))
    other.check_repeatable("train", lambda: other, True)
    hashes = [batches.hash_at(step) for step in range(4)]
    assert hashes[0] == hashes[3] == batches.origin["sample"] and len(set(hashes)) == 3
    assert [other.hash_at(step) == hashes[step] for step in range(3)] == [True, True, False]


def test_an_evaluation_split_is_one_pass_and_counts_what_it_does_not_know(caplog):
    caplog.set_level("INFO")
    dataset = pipeline().unbatch().filter(lambda example: example["label"] != 3).batch(4)
    batches = make(dataset, training=False)
    assert epoch_steps(batches) == 3
    assert "has 3 batches, counted in" in caplog.text and "assert_cardinality(3)" in caplog.text
    rows = [batches.at(step) for step in range(3)]
    assert np.concatenate([row["weight"] for row in rows]).tolist() == [1.0] * 9 + [0.0] * 3
    assert line_of(batches.at, 3, error=DataError) == "the tf.data pipeline ended before batch 3."
    assert line_of(lambda: make(pipeline().repeat(), training=False).steps_per_epoch) == (
        "the tf.data pipeline has no end, but is an evaluation split. Leave out repeat(), or add take(…)."
    )


@pytest.mark.parametrize("training", [True, False])
def test_a_length_that_is_not_known_is_infinite_in_training_alone(training):
    dataset = pipeline().unbatch().filter(lambda example: example["label"] < 8).batch(4)
    assert make(dataset, training).steps_per_epoch == (np.inf if training else 2)


def test_shapes_that_the_pipeline_does_not_know_are_those_of_the_first_batch():
    def widened(batch):
        return {**batch, "x": tf.numpy_function(lambda x: x[:, :1] * 2, [batch["x"]], tf.float32)}

    batches = make(pipeline().map(widened), transform=widened)
    assert batches.at(1)["x"].shape == [4, 1]
    assert batches.plan(1, 1, 1)["x"].numpy().tobytes() == (X[4:8, :1] * 4).tobytes()


def test_texts_and_weights_pass():
    fields = {"text": np.array([f"é{index}" for index in range(10)]), "weight": np.linspace(0, 1, 10)}
    batches = make(pipeline(fields))
    assert [text.decode() for text in batches.at(2)["text"].numpy()] == ["é8", "é9", "é9", "é9"]
    assert batches.at(2)["weight"].numpy().tolist() == [*np.float32(fields["weight"][8:]), 0, 0]
    negative = make(pipeline({**fields, "weight": np.where(np.arange(10) == 9, -1.0, 1.0)}))
    assert line_of(negative.at, 2).startswith("'the tf.data pipeline': the weight of example 9 is -1.0.")


# --- what is refused --------------------------------------------------------------------------------------------------

ONE = tf.data.Dataset.from_tensor_slices
REFUSED = {
    "tuples": (lambda: ONE((X, LABEL)).batch(4), "the elements of the tf.data.Dataset are (TensorSpec("),
    "no batch": (lambda: ONE({"label": LABEL}), "'label' of the tf.data.Dataset is int32 (), but its elements are"),
    "other batch": (lambda: pipeline().unbatch().batch(3, drop_remainder=True), "'x' of the tf.data.Dataset is float3"),
    "ragged": (
        lambda: ONE({"x": tf.ragged.constant([[1], [2, 3]])}).batch(4),
        "'x' of the tf.data.Dataset is a RaggedTensorSpec, not a dense tensor. Pad it to one shape:",
    ),
    "weights": (lambda: pipeline({"weight": X}), "'weight' of the tf.data.Dataset is float32 [examples, 2], but"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_elements_that_are_no_batches_are_refused(kind):
    build, line = REFUSED[kind]
    assert line_of(make, build()).startswith(line)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"runtime__strategy": "multi_worker"}, "runtime.strategy='multi_worker': a tf.data.Dataset is read by one"),
        ({"runtime__strategy": "parameter_server"}, "runtime.strategy='parameter_server': a tf.data.Dataset is read"),
        ({"data__shuffle": False}, "data.shuffle=False is not read with a tf.data.Dataset, which decides order and"),
        ({"data__remainder": "drop"}, "data.remainder='drop' is not read with a tf.data.Dataset"),
        ({"data__placement": "resident"}, "data.placement='resident' is not read with a tf.data.Dataset"),
    ],
)
def test_settings_that_a_pipeline_does_not_have_are_refused(values, line):
    assert line_of(make, pipeline(), **values).startswith(line)


def test_a_transform_that_needs_the_data_order_is_refused():
    class Alternating:
        needs = ("epoch",)

        def __call__(self, batch):
            return batch

    assert line_of(make, pipeline(), transform=Alternating()).startswith(
        "the transform needs the 'epoch' of each example, which a tf.data.Dataset does not tell. Read the examples by"
    )


def test_batches_of_another_size_are_refused_where_they_come():
    small = make(pipeline(size=3))
    assert line_of(small.check_repeatable, "train", lambda: small, True) == (
        "the first batch of the tf.data pipeline of 'train' has 3 examples, but data.batch_size=4; only the last one"
        " may have fewer. Type --config.data.batch_size=3, or write dataset.batch(4)."
    )
    assert line_of(make(pipeline(size=5), training=False).at, 0) == (
        "batch 0 of the tf.data pipeline has 5 examples, but eval.batch_size=4. Type --config.eval.batch_size=5, or"
        " write dataset.batch(4)."
    )
    lone = make(pipeline({"label": LABEL[:3]}))
    lone.check_repeatable("train", lambda: lone, True)
    assert lone.at(5)["weight"].numpy().tolist() == [1, 1, 1, 0]


def test_what_the_pipeline_raises_is_named_with_its_batch():
    def bad(batch):
        with tf.control_dependencies([tf.debugging.assert_less(batch["label"], 8, "a label is too large")]):
            return {name: tf.identity(value) for name, value in batch.items()}

    batches = make(pipeline().map(bad))
    assert batches.at(1)["label"].numpy().tolist() == [4, 5, 6, 7]
    line = line_of(batches.at, 2, error=DataError)
    assert line.startswith("batch 2 of the tf.data pipeline could not be read: ") and "a label is too large" in line
    assert batches.at(0)["label"].numpy().tolist() == [0, 1, 2, 3]


def test_a_pipeline_is_no_part_of_a_mixture():
    assert line_of(make, [(pipeline(), 1.0)]).startswith(
        "make_batches was given a list with a tf.data.Dataset, which cannot be read by index. make_batches takes one"
    )
