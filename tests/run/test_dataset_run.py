"""Runs on a tf.data pipeline: the bits of arrays in the same order, over rewinds, failures, resumes and replays."""

import json
import logging
import re

import numpy as np
import pytest
import tensorflow as tf

from framework.config import DataError, UserError
from framework.data import Source, make_batches
from framework.run import loop
from framework.run.progress import TIMES
from framework.run.replay import replay_step
from tests import small

HOT = 6  # the step whose batch overflows, in the first pass alone
SETTINGS = {
    "train.duration": "24 steps",
    "train.block_steps": 4,
    "train.on_nonfinite": "rewind",
    "train.nonfinite_limit": 4,
    "log.every": "2 steps",
    "eval.every": "10 steps",
    "checkpoint.every": "4 steps",
    "checkpoint.keep": 10,
}


def arrays(split="train"):
    """The examples in file order."""
    fields = dict(small.examples({}).arrays)
    fields["heat"] = np.zeros(small.EXAMPLES, np.float32)
    fields["heat"][small.BATCH * HOT + 3] = small.HOT * (split == "train")
    return fields


def of_arrays(cfg, split):
    return make_batches(Source(arrays(split), "points"), cfg, training=split == "train")


def of_pipeline(errors=(), change=None):
    """make_data of the same examples, whose batches raise what is in `errors` = {number of the batch: errors}."""

    def raised(number):
        if errors and errors.get(int(number)):
            raise errors[int(number)].pop()
        return number

    def checked(number, batch):
        with tf.control_dependencies([tf.numpy_function(raised, [number], tf.int64)]):
            return tf.nest.map_structure(tf.identity, batch)

    def make_data(cfg, split):
        fields = arrays(split)
        if change is not None and split == "train":
            fields["x"][small.BATCH * change] += 1
        dataset = tf.data.Dataset.from_tensor_slices(fields).batch(small.BATCH, drop_remainder=True)
        dataset = dataset.enumerate().map(checked) if errors and split == "train" else dataset
        return make_batches(dataset, cfg, training=split == "train")

    return make_data


def build(workdir, make_data, **settings):
    return small.build(workdir, functions={"make_data": make_data}, **{**SETTINGS, **settings})


def rows(run):
    lines = [json.loads(line) for line in (run.workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    run = build(tmp_path_factory.mktemp("arrays") / "run", of_arrays, **{"data.shuffle": False})
    loop.train(run)
    return small.snapshot(run), rows(run)


def test_a_run_is_that_of_arrays_and_can_be_replayed(tmp_path, reference, caplog):
    run = build(tmp_path / "run", of_pipeline())
    with caplog.at_level(logging.INFO, "absl"):
        result = loop.train(run)
    assert "step 7 is not finite: going back to step 4" in caplog.text
    assert (small.snapshot(run), rows(run)) == reference
    assert (result["data"]["train"]["placement"], result["data"]["train"]["examples"]) == ("pipeline", small.EXAMPLES)
    shown = replay_step(run, 14)
    assert (shown.start, shown.differing, shown.indices["index"][0]) == (12, [], 13 * small.BATCH)


def test_a_run_that_fails_and_resumes_ends_in_the_same_bits(tmp_path, reference, caplog):
    errors = {9: [OSError("gone")]}
    broken = build(tmp_path / "run", of_pipeline(errors))
    with pytest.raises(DataError) as caught:
        loop.train(broken)
    assert re.match("batch 9 of the tf.data pipeline of 'train' could not be read: .*OSError: gone", str(caught.value))
    at = broken.checkpoints.steps()[-1]
    assert 4 < at <= 9
    other = build(tmp_path / "run", of_pipeline(change=at - 1))
    with pytest.raises(UserError) as refused:
        loop.train(other)
    assert str(refused.value).startswith(
        f"batch {at - 1} of the tf.data pipeline is not the one that step {at} of {tmp_path / 'run'} was trained on,"
    )
    again = build(tmp_path / "run", of_pipeline(errors))
    with caplog.at_level(logging.INFO, "absl"):
        loop.train(again)
    assert f"the tf.data pipeline of 'train': read from its start to batch {at - 1} in " in caplog.text
    assert (small.snapshot(again), rows(again)) == reference


def test_epochs_of_a_pipeline_without_end_are_refused(tmp_path):
    def make_data(cfg, split):
        dataset = tf.data.Dataset.from_tensor_slices(arrays()).batch(small.BATCH)
        training = split == "train"
        return make_batches(dataset.repeat() if training else dataset, cfg, training=training)

    with pytest.raises(UserError) as caught:
        build(tmp_path / "run", make_data, **{"eval.every": "2 epochs"})
    assert str(caught.value) == (
        "eval.every='2 epochs' counts epochs, but the length of the training data is not known. Type steps, such as"
        " --config.eval.every=…; or leave out repeat(), and write"
        " dataset.apply(tf.data.experimental.assert_cardinality(…))."
    )


@pytest.mark.slow
def test_two_replicas_share_the_batches(tmp_path):
    """The same bits as two replicas on arrays; the number of replicas may change on the way."""
    two = {"runtime.strategy": "mirrored", "runtime.devices": 2}
    runs = []
    for name, make_data, settings in (("arrays", of_arrays, {"data.shuffle": False}), ("stream", of_pipeline(), {})):
        run = build(tmp_path / name, make_data, **two, **settings)
        loop.train(run)
        runs.append((small.snapshot(run), rows(run)))
    assert runs[0] == runs[1]
    errors = {9: [OSError("gone")]}
    with pytest.raises(DataError):
        loop.train(build(tmp_path / "run", of_pipeline(errors)))
    changed = build(tmp_path / "run", of_pipeline(errors), **two)
    loop.train(changed)
    assert int(changed.state.step) == 24
    assert [row["step"] for row in rows(changed)] == [row["step"] for row in runs[1][1]]
