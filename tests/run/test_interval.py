"""Means over a logging interval: against sums in plain Python, and the same bits however a run was cut."""

import json
import math

import numpy as np
import pytest

from framework import losses, metrics
from framework.run import build, loop
from framework.run.interval import Interval
from framework.run.replay import replay_step
from framework.step.block import Block
from framework.step.metric_row import MetricRow
from tests import small


class Peak:
    """A metric whose states are not added: the largest value so far, and how many steps there were."""

    mode = "max"

    def empty(self):
        return np.array([-np.inf, 0.0])

    def merge(self, total, state):
        return np.array([max(total[0], state[0]), total[1] + 1])

    def result(self, state):
        return float(state[0] + 100 * state[1])


class Shares(metrics.Sums):
    """The mean softmax of each class, by keys: a state that is summed on the device."""

    logged = "interval"

    def empty(self):
        return np.zeros(4)

    def update(self, outputs, batch):
        logits = outputs["logits"]
        weight = small.tf.cast(batch["weight"], logits.dtype)
        shares = small.tf.reduce_sum(small.tf.nn.softmax(logits) * weight[:, np.newaxis], axis=0)
        return small.tf.concat([shares, [small.tf.reduce_sum(weight)]], axis=0)

    def result(self, state):
        return {"first": float(state[0] / state[3]), "last": float(state[2] / state[3])}


LAYOUT = MetricRow(
    ("loss", "learning_rate", "gradient_norm", "skipped"),
    ("ce", "l2"),
    {"accuracy": metrics.Accuracy(), "peak": Peak()},
)


def made(count, seed=0, bad=()):
    rows = np.random.default_rng(seed).uniform(0.1, 1.0, [count, LAYOUT.width])
    for place, column in bad:
        rows[place, column] = math.nan
    return rows


def taken(rows, cuts=(), note=None):
    interval = Interval(LAYOUT, note or {})
    for part in np.split(rows, cuts):
        interval.add(Block(0, part, LAYOUT))
    return interval


def expected(rows):
    """By the formula, one step after the other."""
    sums, peak = [0.0] * 6, 0.0
    for row in rows:
        row = [float(value) for value in row]
        sums = [total + value for total, value in zip(sums, row[4:10], strict=True)]
        peak = max(peak, row[10])
    ce, l2 = sums[0] / sums[1], sums[2] / sums[3]
    means = {"loss": ce + l2, "loss/ce": ce, "loss/l2": l2, "accuracy": sums[4] / sums[5]}
    return {f"mean/{name}": value for name, value in means.items()} | {"mean/peak": peak + 100 * len(rows)}


def test_terms_go_by_their_weights_and_metrics_are_merged():
    rows = made(37)
    assert taken(rows).means() == expected(rows)


def test_steps_that_are_not_finite_are_left_out():
    rows = made(9, bad=[(2, 0), (5, 2)])
    assert taken(rows).means() == expected(np.delete(rows, [2, 5], axis=0))
    none = taken(made(2, bad=[(0, 0), (1, 2)])).means()
    assert list(none) == list(expected(rows)) and all(math.isnan(value) for value in none.values())


@pytest.mark.parametrize("cuts", [(1,), (5, 6, 20), tuple(range(1, 40))])
def test_the_same_bits_however_steps_are_grouped_and_across_a_checkpoint(cuts):
    rows = made(40)
    whole = taken(rows)
    assert taken(rows, cuts).note() == whole.note() and taken(rows, cuts).means() == whole.means()
    # Sums by pairs would be others, so the order is what is tested.
    assert np.add.reduce(rows[:, 4].astype(np.float64)) != whole.note()["interval"]["totals"]["loss/ce"][0]
    note = json.loads(json.dumps(taken(rows[: cuts[0]]).note()))
    assert taken(rows[cuts[0] :], note=note).means() == whole.means()


def test_sums_of_other_terms_are_dropped():
    other = MetricRow(LAYOUT.scalars, ("ce",), LAYOUT.metrics)
    interval = Interval(other, taken(made(5)).note())
    assert interval.note()["interval"] == Interval(other, {}).note()["interval"]


def summed(steps, cuts=()):
    """An interval over blocks of `steps` states, which a train block adds one after the other to what it is given."""
    layout = MetricRow(LAYOUT.scalars, ("ce",), {"shares": Shares()})
    interval = Interval(layout, {})
    for part in np.split(steps, cuts):
        total = interval.sums["shares"]
        for state in part:
            total = total + state
        interval.add(Block(0, np.ones([len(part), layout.width]), layout, sums={"shares": total}))
    return layout, interval


def test_the_sums_of_the_device_continue_across_a_checkpoint_to_the_last_bit():
    steps = np.random.default_rng(1).uniform(0.1, 1.0, [40, 4])
    layout, whole = summed(steps)
    assert summed(steps, (3, 17))[1].note() == whole.note()
    note = json.loads(json.dumps(whole.note()))
    again = Interval(layout, note)
    assert again.sums["shares"].tobytes() == whole.sums["shares"].tobytes()
    assert again.means() == whole.means()
    total = np.add.accumulate(steps)[-1]
    assert whole.means()["mean/shares/last"] == total[2] / total[3]
    again.begin()
    assert not again.sums["shares"].any() and math.isnan(again.means()["mean/shares/first"])
    other = MetricRow(LAYOUT.scalars, ("ce",), {"shares": metrics.Accuracy()})
    assert Interval(other, note).note() == Interval(other, {}).note()


def test_a_note_keeps_a_large_state_in_few_bytes():
    class Large(Shares):
        def empty(self):
            return np.zeros(1000 * 1000)

    interval = Interval(MetricRow((), (), {"large": Large()}), {})
    interval.sums["large"][::1001] = np.arange(1000.0)
    assert len(json.dumps(interval.note())) < 100_000


# In runs


def rows_of(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


def with_metric(**more):
    """Two terms, of which one has another weight in each batch, and a metric."""

    def make_loss(cfg):
        def loss(model, batch, training):
            terms, _ = small.make_loss(cfg)(model, batch, training)
            logits = model(batch["x"], training=False)
            kept = small.tf.cast(batch["label"] > 0, logits.dtype) * small.tf.cast(batch["weight"], logits.dtype)
            square = small.tf.reduce_sum(small.tf.square(logits), axis=-1)
            second = losses.Term(small.tf.reduce_sum(square * kept), small.tf.reduce_sum(kept))
            return {**terms, "square": second}, {"logits": logits}

        return loss

    made = {"accuracy": metrics.Accuracy(), "shares": Shares()}
    return {"make_loss": make_loss, "make_metrics": lambda cfg: made, **more}


def test_a_row_has_the_means_of_all_steps_since_the_last(tmp_path):
    settings = {"log.every": "4 steps", "train.duration": "10 steps"}
    built = small.build(tmp_path / "run", functions=with_metric(), **settings)
    loop.train(built)
    again = small.build(tmp_path / "other", functions=with_metric(), **settings)
    blocks = [again.train_block(1) for _ in range(10)]
    states = [block.layout.unpack(block.rows[0]) for block in blocks]
    for row, (first, last) in zip(rows_of(tmp_path / "run")[:3], ((0, 4), (4, 8), (8, 10)), strict=True):
        own = blocks[last - 1].row(0)
        assert {name: row[name] for name in own} == own
        total = {name: np.zeros(2) for name in ("loss/cross_entropy", "loss/square", "accuracy")}
        for state in states[first:last]:
            total = {name: value + state[name] for name, value in total.items()}
        means = {f"mean/{name}": value[0] / value[1] for name, value in total.items()}
        means["mean/loss"] = means["mean/loss/cross_entropy"] + means["mean/loss/square"]
        sums = sum(block.sums["shares"] for block in blocks[first:last])
        means |= {"mean/shares/first": sums[0] / sums[3], "mean/shares/last": sums[2] / sums[3]}
        assert {name: value for name, value in row.items() if name.startswith("mean/")} == means
    shown = replay_step(built, 8)
    assert shown.differing == [] and "loss" in shown.logged
    assert not any(name.startswith("mean/") for name in shown.logged)


@pytest.mark.parametrize(
    ("log", "save", "block", "mode"),
    [
        (5, 3, 4, "graph"),
        *(
            pytest.param(*ratio, marks=pytest.mark.slow)
            for ratio in ((3, 7, 10, "graph"), (7, 2, 3, "graph"), (4, 4, 5, "graph"), (5, 3, 4, "xla"))
        ),
    ],
)
def test_rows_after_a_kill_are_the_same_bits(tmp_path, monkeypatch, log, save, block, mode):
    settings = {"log.every": f"{log} steps", "checkpoint.every": f"{save} steps", "train.block_steps": block}
    settings |= {"train.duration": "20 steps", "train.compile": mode, "checkpoint.keep": 2}
    settings |= {"train.on_nonfinite": "skip", "data.batch_size": small.BATCH}
    heat = {(8, 3): small.HOT}
    loop.train(small.build(tmp_path / "whole", heat, with_metric(), **settings))
    whole = rows_of(tmp_path / "whole")
    assert [row["skipped"] for row in whole if "loss" in row][-1] == 2  # of two epochs
    assert all(row["mean/loss"] is not None for row in whole if "loss" in row)
    assert not any("shares/first" in row for row in whole)
    assert len({row["mean/shares/first"] for row in whole if "loss" in row}) > 2
    for kill in (8, 13):
        with monkeypatch.context() as patch:
            patch.setattr(loop, "_block_length", _dying_at(kill))
            with pytest.raises(MemoryError):
                loop.train(small.build(tmp_path / "run", heat, with_metric(), **settings))
    loop.train(small.build(tmp_path / "run", heat, with_metric(), **settings))
    assert rows_of(tmp_path / "run") == whole


def _dying_at(step_of_death, original=loop._block_length):
    def length(run_, hooks, step, progress):
        if step >= step_of_death:
            raise MemoryError
        return original(run_, hooks, step, progress)

    return length


def test_going_back_drops_the_sums_of_the_steps_that_are_taken_again(tmp_path):
    """Step 8 is bad; the checkpoint of step 5 has the sums of step 5 alone, of an interval that began at step 4."""
    settings = {"train.on_nonfinite": "rewind", "checkpoint.every": "5 steps", "log.every": "4 steps"}
    loop.train(small.build(tmp_path / "run", {(6, 3): small.HOT}, **settings))
    again = small.build(tmp_path / "other", {(6, 3): small.HOT}, **{**settings, "train.on_nonfinite": "skip"})
    states = [(block := again.train_block(1)).layout.unpack(block.rows[0])["loss/cross_entropy"] for _ in range(10)]
    total = states[4] + states[5] + states[7]  # steps 5, 6 and 8: step 7 is left out
    (row,) = [row for row in rows_of(tmp_path / "run") if row["step"] == 8]
    assert row["mean/loss"] == total[0] / total[1]


@pytest.mark.parametrize("name", ["mean/loss", "eval/accuracy"])
def test_a_metric_must_not_have_the_name_of_another_rows_number(tmp_path, name):
    with pytest.raises(build.UserError, match=r"but rows of metrics\.jsonl have names of their own below"):
        small.build(tmp_path / "run", functions=with_metric(make_metrics=lambda cfg: {name: metrics.Accuracy()}))


@pytest.mark.slow
def test_two_replicas_log_the_means_of_one_device(tmp_path):
    settings = {"log.every": "4 steps", "train.duration": "9 steps", "train.precision": "float64"}
    mirrored = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}
    quiet = {"make_model": _plain}
    loop.train(small.build(tmp_path / "one", functions=with_metric(**quiet), **settings))
    loop.train(small.build(tmp_path / "two", functions=with_metric(**quiet), **settings, **mirrored))
    for one, two in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        assert two == pytest.approx(one, rel=1e-12)


def _plain(cfg):
    return small.keras.Sequential([small.keras.layers.Dense(3, dtype="float64")])
