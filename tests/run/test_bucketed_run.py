"""Runs in batches of several shapes: against NumPy, resumed, on replicas, evaluated, logged and undone."""

import math
import types

import numpy as np
import pytest
import tensorflow as tf

from framework import testing
from framework.config import UserError
from framework.data.bucketed import members_of
from framework.run import built_in, loop
from framework.run.evaluation import evaluate
from framework.run.exporting import held_out
from framework.run.replay import replay_step
from framework.step import compile_choice
from tests import bucketed
from tests.shuffled import walked


def build(workdir=None, **overrides):
    return testing.build(bucketed, overrides, workdir)


def walk(run, steps):
    """Returns (bucket, examples, weights) of each step, by NumPy."""
    return walked(bucketed.buckets_of("train", run.config), run.config.seed, steps)


def fields_of(rows, split="train"):
    arrays = bucketed.examples(split)
    return {field: arrays[field][rows] for field in bucketed.FIELDS}


@pytest.mark.parametrize(
    ("placement", "mode", "micro_batches", "group"),
    [
        ("resident", "graph", 1, 1),
        pytest.param("resident", "xla", 2, 3, marks=pytest.mark.slow),
        ("stream", "graph", 4, 2),
    ],
)
def test_steps_are_those_of_numpy(placement, mode, micro_batches, group):
    run = build(
        **{
            "data.placement": placement,
            "train.compile": mode,
            "train.micro_batches": micro_batches,
            "model.group": group,
        }
    )
    model = bucketed.Model(run.model)
    steps = run.total_steps
    assert steps == 2 * run.data.steps_per_epoch
    block = run.train_block(steps)
    for step, (_, rows, weight) in enumerate(walk(run, steps)):
        # The whole padded arrays: what is cut off a batch is padding alone.
        wanted = model.step(fields_of(rows), weight)
        assert block.row(step)["loss"] == pytest.approx(wanted, rel=1e-12), step
    table, kernel, bias = run.model.get_weights()
    for found, wanted in ((table, model.table), (kernel[:, 0], model.kernel), (bias[0], model.bias)):
        assert np.allclose(found, wanted, rtol=1e-12, atol=1e-14)
    assert run.train_block.compiled.traces == len(run.data.members) == 3
    assert block.traced[0] >= 3 and block.traced[1] > 0


@pytest.mark.slow
def test_auto_times_the_busiest_bucket_and_traces_each_once(tmp_path, monkeypatch):
    run = build(tmp_path / "run", **{"train.compile": "auto", "train.duration": "3 epochs"})
    places = [row["batches"] * row["size"] * (row["source"] + row["target"]) for row in run.data.origin["buckets"]]
    timed, choose = [], compile_choice.choose
    monkeypatch.setattr(compile_choice, "choose", lambda block, *args: (timed.append(block), choose(block, *args))[1])
    result = loop.train(run)
    assert timed[0]._next(0, 5) == timed[0]._next(1, 5) == (int(np.argmax(places)), 5)
    assert result["status"] == "finished"
    assert result["traces"] == 3
    assert result["tuning"]["mode"] == result["compile"]


@pytest.mark.parametrize("placement", [pytest.param("resident", marks=pytest.mark.slow), "stream"])
def test_a_run_goes_on_at_any_step_with_the_same_bits(tmp_path, placement):
    settings = {"model.dropout": 0.3, "data.placement": placement, "optimizer.name": "adam", "log.every": "5 steps"}
    whole = build(tmp_path / "whole", **settings, **{"checkpoint.every": "3 steps", "checkpoint.keep": 100})
    loop.train(whole)
    wanted = testing.bits(whole.state)
    assert whole.total_steps == 16
    for step in (3, 15):
        assert whole.checkpoints.restore(whole.state, until=step) is not None
        assert int(whole.state.step) == step
        whole.train_block(whole.total_steps - step)
        assert testing.differing(wanted, testing.bits(whole.state)) == set()


def test_two_replicas_take_the_steps_of_one():
    overrides = {"model.dropout": 0.3, "train.micro_batches": 2, "model.buckets": 2}
    testing.check_replicas("tests/bucketed.py", overrides, replicas=2, steps=5)


@pytest.mark.slow
def test_two_replicas_that_read_a_stream_take_the_steps_of_one():
    overrides = {"model.dropout": 0.3, "data.placement": "stream"}
    testing.check_replicas("tests/bucketed.py", overrides, replicas=2, steps=16)


@pytest.mark.slow
def test_replicas_are_not_compared_beyond_the_end_of_a_run():
    with pytest.raises(UserError, match=r"^check_replicas: steps=17, but train.duration has 16 steps\."):
        testing.check_replicas("tests/bucketed.py", {}, replicas=2, steps=17)


def test_sizes_that_replicas_cannot_share_are_refused():
    with pytest.raises(UserError) as error:
        build(**{"train.micro_batches": 8, "model.tokens": 48})
    size = next(row for row in build(**{"model.tokens": 48}).data.origin["buckets"] if row["size"] % 8)["size"]
    assert str(error.value) == (
        f"a bucket has batches of {size} examples, which 1 replicas of 8 micro-batches cannot share. Write"
        " Buckets.by_tokens(…, multiple=8)."
    )


@pytest.mark.parametrize(
    ("placement", "replicas"), [pytest.param("resident", 1, marks=pytest.mark.slow), ("stream", 1), ("resident", 2)]
)
def test_an_evaluation_has_every_example_once(placement, replicas):
    many = {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas}
    run = build(**{"data.placement": placement}, **(many if replicas > 1 else {}))
    model = bucketed.Model(run.model)
    ones = np.ones(bucketed.EXAMPLES["test"])
    wanted = sum(model.loss(ids, ones) for ids in bucketed.examples("test").values() if ids.ndim == 2)
    assert evaluate(run)["test/loss"] == pytest.approx(wanted, rel=1e-12)
    block = run.eval_blocks["test"]
    assert block.compiled.traces == len(members_of(run.eval_data["test"]))
    scores = np.full(bucketed.EXAMPLES["test"], math.nan)
    for step in range(block.steps):
        _, outputs = block.outputs(step)
        scores[run.eval_data["test"].indices(step)["index"][: len(outputs["score"])]] = outputs["score"]
    ids = fields_of(slice(None), "test")
    wanted = sum(((model.table[i] @ model.kernel + model.bias) * (i > 0)).sum(1) for i in ids.values())
    assert np.allclose(scores, wanted, rtol=1e-12)


@pytest.mark.parametrize("examples", [6, 25, 1000])
def test_exports_are_verified_on_each_bucket_alike(examples):
    run = build(**{"export.examples": examples})
    rows, lengths = run.eval_data["test"].origin["buckets"], bucketed.lengths("test")
    holds = [np.all([lengths[field] <= row[field] for field in bucketed.FIELDS], axis=0) for row in rows]
    bucket = np.argmax(holds, axis=0)
    batches = list(held_out(run))
    ours = np.concatenate([batch["number"] for batch in batches])
    assert len(ours) == len({*ours}) == min(examples, bucketed.EXAMPLES["test"])
    for batch in batches:
        assert {rows[of]["source"] for of in bucket[batch["number"]]} == {batch["source"].shape[1]}
    for row, count in zip(rows, np.bincount(bucket[ours], minlength=3), strict=True):
        assert count == row["examples"] or count >= examples // 3
    busiest = max(rows, key=lambda row: row["batches"] * row["size"] * (row["source"] + row["target"]))
    assert batches[0]["source"].shape[1] == busiest["source"]


def test_rows_have_padding_and_what_is_really_seen(tmp_path):
    run = build(
        tmp_path / "run",
        **{"log.every": "4 steps", "model.tokens": 44, "train.duration": "1.5 epochs", "train.compile": "eager"},
    )
    loop.train(run)
    lengths, buckets = sum(bucketed.lengths("train").values()), bucketed.buckets_of("train", run.config)
    steps = walk(run, run.total_steps)
    rows = [row for row in testing.rows(run) if "loss" in row]
    assert [row["step"] for row in rows] == [*range(4, run.total_steps, 4), run.total_steps]
    for first, row in zip(range(0, run.total_steps, 4), rows, strict=True):
        chosen = steps[first : row["step"]]
        tokens = sum((lengths[rows] * weight).sum() for _, rows, weight in chosen)
        places = sum(buckets.sizes[b] * sum(buckets.shapes[b].values()) for b, _, _ in chosen)
        seen = sum(weight.sum() for _, _, weight in chosen)
        assert row["padding"] == pytest.approx(1 - tokens / places, rel=1e-12)
        if row["examples_per_second"] is not None:
            assert row["tokens_per_second"] / row["examples_per_second"] == pytest.approx(tokens / seen, rel=1e-9)
    assert rows[-1]["tokens_per_second"] > 0


@pytest.mark.parametrize("replicas", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_histograms_have_the_gradients_of_the_next_step(monkeypatch, replicas):
    make_loss, traces, kept = bucketed.make_loss, [], {}

    def make_counted(cfg):
        loss = make_loss(cfg)

        def counted(model, batch, training):
            traces.append(tf.inside_function())
            return loss(model, batch, training)

        return counted

    monkeypatch.setattr(bucketed, "make_loss", make_counted)
    run = build(**({"runtime.strategy": "mirrored", "runtime.virtual_devices": 2} if replicas == 2 else {}))
    writer = types.SimpleNamespace(histograms=lambda step, arrays: kept.update(arrays))
    model = bucketed.Model(run.model)
    traces.clear()
    steps = walk(run, 7)
    assert len({bucket for bucket, _, _ in steps}) == 3
    for step, (_, rows, weight) in enumerate(steps):
        before = model.table.copy()
        model.step(fields_of(rows), weight)
        built_in.write_histograms(types.SimpleNamespace(run=run, step=step, writer=writer))
        gradient = (before - model.table) / bucketed.RATE
        assert np.allclose(kept["weights/embedding/embeddings"], before, rtol=1e-12, atol=1e-14)
        assert np.allclose(kept["gradients/embedding/embeddings"], gradient, rtol=1e-11, atol=1e-13)
        run.train_block(1)
    if replicas == 1:  # no bucket is traced for its histogram
        assert sum(traces) == run.train_block.compiled.traces == 3


def test_durations_count_real_examples():
    run = build(**{"train.duration": "1.5 epochs", "schedule.warmup": "10 examples", "eval.every": "1 epoch"})
    seen = np.cumsum([weight.sum() for _, _, weight in walk(run, 3 * run.data.steps_per_epoch)])
    assert run.total_steps == 1 + np.argmax(seen >= 1.5 * 45)
    assert run.resolved.schedule.warmup == 1 + np.argmax(seen >= 10)
    assert run.resolved.eval.every == run.data.steps_per_epoch
    assert build(**{"train.duration": "100 examples"}).total_steps == 1 + np.argmax(seen >= 100)


def test_a_step_that_is_not_finite_is_left_out_and_replayed(tmp_path, monkeypatch):
    bad = 6
    rows = walk(build(), 9)[bad][1]
    monkeypatch.setattr(bucketed, "HEAT", {int(rows[0]): 1e4})
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": "4 steps", "train.duration": "9 steps"}
    settings["train.compile"] = "eager"
    run = build(tmp_path / "run", **settings)
    assert loop.train(run)["status"] == "finished"
    assert run.state.skip_list.numpy().max() == bad
    model = bucketed.Model(build().model)
    steps = walk(run, 9)
    for step, (_, numbers, weight) in enumerate(steps):
        if step != bad:
            model.step(fields_of(numbers), weight)
    assert np.allclose(run.model.get_weights()[0], model.table, rtol=1e-11, atol=1e-13)
    shown = replay_step(run, 9)
    assert np.array_equal(shown.indices["index"], steps[8][1])
    assert shown.differing == []


def test_other_buckets_are_other_data():
    samples = [build(**settings).data_facts()["data"] for settings in ({}, {"model.group": 2}, {"model.buckets": 2})]
    assert len({sample["train"] for sample in samples}) == 3
    assert build().data_facts()["data"] == samples[0]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("placement", ["resident", "stream"])
def test_ten_kills_change_no_bit(tmp_path, capsys, placement):
    import launch

    arguments = [f"--workdir={tmp_path / 'run'}", "--mode=verify_resume", "--kills=10"]
    keys = [f"--config.data.placement={placement}", "--config.model.dropout=0.3", "--config.train.duration=60 steps"]
    assert launch.main(["launch.py", "--config=tests/bucketed.py", *arguments, *keys]) == 0
    assert capsys.readouterr().out.count("kill ") >= 10


def test_a_run_shows_the_sizes_of_its_batches():
    run = build()
    sizes = [len(run.data.at(step)["weight"]) for step in range(int(run.data.steps_per_epoch))]
    assert min(sizes) < max(sizes) and f"made-up tokens, batches of {min(sizes)} to {max(sizes)}\n" in repr(run)
