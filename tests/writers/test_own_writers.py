"""Writers of an experiment: beside the built-in ones, told where a run goes on, and named in what they raise."""

import dataclasses
import json
import re
import time

import numpy as np
import pytest
import tensorflow as tf

from framework import Hook, writers
from framework.errors import RunError, UserError
from framework.run import loop
from framework.run.outputs import writers_of
from framework.writers.base import OwnWriter
from tests import small

SETTINGS = {"train.duration": "6 steps", "checkpoint.every": "3 steps", "eval.every": "3 steps"}


class Losses(writers.Writer):
    """The example at the top of framework/writers/base.py."""

    def open(self, folder, step):
        self._path = folder / "losses.csv"
        lines = self._path.read_text().splitlines(keepends=True) if self._path.exists() else []
        self._path.write_text("".join(line for line in lines if int(line.partition(",")[0]) <= step))

    def scalars(self, step, values):
        if "loss" in values:
            with self._path.open("a") as file:
                file.write(f"{step},{values['loss']!r}\n")


class Calls(writers.Writer):
    """Keeps the names of the calls; raises at a step, or in a method."""

    def __init__(self, kept, wrong=None, at=""):
        self.kept, self.wrong, self.at = kept, wrong, at

    def _take(self, method, *arguments):
        self.kept.append((method, *arguments))
        if method == self.at:
            raise self.wrong

    def open(self, folder, step):
        self._take("open", folder, step)

    def scalars(self, step, values):
        self._take("scalars", step, *values)

    def images(self, step, images):
        self._take("images", step, *images)

    def texts(self, step, texts):
        self._take("texts", step, *texts)

    def flush(self):
        self._take("flush")

    def close(self):
        self._take("close")


def build(workdir, *made, hooks=(), **overrides):
    functions = {"make_writers": lambda cfg: [make() for make in made], "make_hooks": lambda cfg, run: list(hooks)}
    return small.build(workdir, None, functions, **{**SETTINGS, **overrides})


@pytest.fixture(scope="module")
def idle(tmp_path_factory):
    return small.build(tmp_path_factory.mktemp("idle"))


def losses(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def in_csv(workdir):
    pairs = [line.split(",") for line in (workdir / "losses.csv").read_text().splitlines()]
    return [(int(step), float(loss)) for step, loss in pairs]


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda writer: writer, id="as it is", marks=pytest.mark.slow),
        pytest.param(writers.AsyncWriter, id="asynchronous"),
    ],
)
def test_a_csv_writer_has_each_row_once_wherever_the_run_is_killed(tmp_path, wrap):
    died = []

    def die(context):
        if context.step in (2, 5) and context.step not in died:
            died.append(context.step)
            raise MemoryError("killed")

    for _ in range(2):
        with pytest.raises(UserError, match="killed"):
            loop.train(build(tmp_path, lambda: wrap(Losses()), hooks=[Hook(1, die)]))
    loop.train(build(tmp_path, lambda: wrap(Losses()), hooks=[Hook(1, die)]))
    assert in_csv(tmp_path) == losses(tmp_path)
    assert [step for step, _ in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_a_writer_is_told_where_the_run_goes_on_and_gets_what_hooks_write(tmp_path):
    def show(context):
        context.writer.images(context.step, {"map": np.zeros([1, 8, 8])})
        context.writer.texts(context.step, {"words": "**one**"})

    kept = []
    loop.train(build(tmp_path, lambda: Calls(kept), hooks=[Hook(6, show)], **{"log.every": "6 steps"}))
    assert [call if call[0] != "scalars" else call[:2] for call in kept] == [
        ("open", tmp_path, 0),
        ("texts", 0, "config"),
        ("scalars", 3),
        ("flush",),
        ("scalars", 6),
        ("scalars", 6),
        ("images", 6, "map"),
        ("texts", 6, "words"),
        ("flush",),
        ("flush",),
        ("close",),
    ]
    (event,) = (tmp_path / "tensorboard" / "train").iterdir()
    shown = [tf.compat.v1.Event.FromString(r.numpy()) for r in tf.data.TFRecordDataset(str(event))]
    tags = [(record.step, value.tag) for record in shown for value in record.summary.value]
    assert {(6, "map"), (6, "words")} < set(tags)


def test_going_back_makes_the_writers_anew(tmp_path):
    kept = []
    functions = {"make_writers": lambda cfg: [Calls(kept), Losses()]}
    settings = {**SETTINGS, "train.on_nonfinite": "rewind"}
    loop.train(small.build(tmp_path, {(4, 0): small.HOT}, functions, **settings))
    assert [call for call in kept if call[0] in ("open", "close")] == [
        ("open", tmp_path, 0),
        ("close",),
        ("open", tmp_path, 3),
        ("close",),
    ]
    assert [step for step, _ in in_csv(tmp_path)] == [1, 2, 3, 4, 5, 6]


OWN = r"writer 'Calls': tests/writers/test_own_writers.py:\d+: _take: ValueError: no such board."


@pytest.mark.parametrize("at", ["open", "scalars", "flush", "close"])
@pytest.mark.parametrize("wrap", [lambda writer: writer, writers.AsyncWriter], ids=["as it is", "asynchronous"])
def test_a_writer_that_raises_is_a_line_with_its_name(tmp_path, wrap, at):
    (tmp_path / "config.json").write_text("{}")  # a run folder
    with pytest.raises(UserError) as error, of(tmp_path, wrap(Calls([], ValueError("no such board"), at))) as writer:
        writer.open(tmp_path, 0)
        writer.scalars(1, {})
        writer.flush()
    path = tmp_path / "failure" / "traceback.txt"
    assert re.fullmatch(rf"{OWN} The traceback is in {re.escape(str(path))}\.", str(error.value))
    assert "ValueError: no such board" in path.read_text()


def of(folder, *own, on_error="stop"):
    return writers.MultiWriter([OwnWriter(writer, folder) for writer in own], on_error)


def test_a_writer_without_room_does_what_the_config_says(tmp_path, caplog):
    full = OSError(28, "No space left on device")
    said = "Calls cannot write: [Errno 28] No space left on device."
    with of(tmp_path, Calls([], full, "scalars"), on_error="continue") as writer:
        writer.scalars(1, {})
        writer.scalars(2, {})
    assert [record.getMessage() for record in caplog.records] == [said] * 2
    with pytest.raises(RunError) as error, of(tmp_path, Calls([], full, "scalars")) as writer:
        writer.scalars(1, {})
    assert str(error.value) == f"{said} Mend that and type the same command again."


def test_the_first_error_is_told_and_the_second_is_logged(tmp_path, caplog):
    """And the writers after one that cannot be closed are closed."""
    kept = []
    with pytest.raises(ArithmeticError), of(tmp_path, Calls([], ValueError("no such board"), "close"), Calls(kept)):
        raise ArithmeticError
    assert [bool(re.match(OWN, record.getMessage())) for record in caplog.records] == [True]
    assert kept == [("close",)]


def test_a_writer_that_raises_ends_a_run(tmp_path):
    with pytest.raises(UserError, match=f"^{OWN} The traceback is in"):
        loop.train(build(tmp_path, lambda: Calls([], ValueError("no such board"), "scalars"), Losses))
    assert (tmp_path / "failure" / "traceback.txt").exists()


def test_training_does_not_wait_for_an_asynchronous_writer(tmp_path):
    class Slow(writers.Writer):
        def scalars(self, step, values):
            time.sleep(0.1)

    def took(wrap):
        begin = time.monotonic()
        with writers.MultiWriter([wrap(Slow())]) as writer:
            for step in range(5):
                writer.scalars(step, {})
            return time.monotonic() - begin

    assert took(lambda writer: writer) >= 0.5
    assert took(writers.AsyncWriter) < 0.3


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "make_writers returned None. It must return a list of writers."),
        (
            [Losses],
            "make_writers returned a list with a value of type type. A writer is an object of a class that derives from"
            " framework.writers.Writer.",
        ),
    ],
)
def test_what_is_no_list_of_writers_is_refused_in_a_line(idle, monkeypatch, returned, message):
    functions = {**idle.experiment.functions, "make_writers": lambda cfg: returned}
    monkeypatch.setattr(idle, "experiment", dataclasses.replace(idle.experiment, functions=functions))
    with pytest.raises(UserError) as error:
        writers_of(idle, 0)
    assert str(error.value) == message


def test_only_the_chief_makes_writers(idle, monkeypatch):
    functions = {**idle.experiment.functions, "make_writers": lambda cfg: 1 / 0}
    monkeypatch.setattr(idle, "experiment", dataclasses.replace(idle.experiment, functions=functions))
    monkeypatch.setattr(type(idle.replicas), "is_chief", False)
    writers_of(idle, 0).scalars(1, {"loss": 1.0})
    assert list(idle.workdir.iterdir()) == []


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda w: w.images(1, {"x": np.zeros([2, 3])}),
            "the pictures 'x' have shape [2, 3]: write [n, height, width]",
        ),
        (lambda w: w.images(1, {"x": np.zeros([1, 2, 3, 2])}), "the pictures 'x' have shape [1, 2, 3, 2]: write"),
        (lambda w: w.texts(1, {"x": b"bytes"}), "the text 'x' is of type bytes: write a str"),
        (lambda w: w.scalars(1, {"step": 2.0}), "a row has its 'step' already: give this number another name"),
        (lambda w: w.scalars(1, {"x": np.zeros(2)}), "the number 'x' is of type ndarray: write a float"),
        (lambda w: w.scalars(1, {"x": "3"}), "the number 'x' is of type str: write a float"),
    ],
)
def test_what_cannot_be_shown_is_refused_where_it_is_written(write, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        write(writers.MultiWriter([]))
