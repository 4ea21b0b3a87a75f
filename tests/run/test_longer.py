"""Training longer in the same folder, and a config.json in which a digit was changed."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

import launch
from framework import losses, optim
from framework.checkpoint.checkpoints import digest
from framework.config import UserError
from framework.run import build as run
from framework.run import evaluation, loop, stored_config
from framework.run.longer import first_difference
from tests import small

TINY = "tests/tiny.py"
SHORT = {"train.compile": "graph", "schedule.name": "constant", "schedule.warmup": "2 steps", "log.every": "2 steps"}
SHORT |= {"eval.every": "4 steps", "checkpoint.every": "4 steps", "log.histograms_every": "", "model.hidden": 8}
SHORT |= {"train.duration": "8 steps"}


def build(workdir, **overrides):
    return run.build(TINY, {**SHORT, **overrides}, workdir)


def refusal(workdir, **overrides):
    with pytest.raises(UserError) as caught:
        loop.train(build(workdir, **overrides))
    return str(caught.value)


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "examples_per_second"} for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run of 8 steps that is trained to step 12, and one of 12 steps from the start."""
    folder = tmp_path_factory.mktemp("longer")
    assert loop.train(build(folder / "run"))["status"] == "finished"
    short = {path.name: path.read_bytes() for path in (folder / "run").iterdir() if path.is_file()}
    longer, whole = (build(folder / name, **{"train.duration": "12 steps"}) for name in ("run", "whole"))
    return folder, short, loop.train(longer), digest(longer.state), loop.train(whole), digest(whole.state)


def test_a_longer_run_has_the_bits_of_one_that_was_so_long_from_the_start(finished):
    folder, _, longer, state, whole, expected = finished
    assert state == expected
    assert (longer["status"], longer["step"], longer["final"]) == ("finished", 12, whole["final"])
    assert rows(folder / "run") == rows(folder / "whole")
    assert json.loads((folder / "run" / "result.json").read_text())["step"] == 12


def test_the_history_says_what_was_changed_when(finished):
    folder, short, *_ = finished
    stored = json.loads((folder / "run" / "config.json").read_text())
    change = {"step": 8, "key": "train.duration", "old": "8 steps", "new": "12 steps"}
    assert stored.pop("history") == [change]
    assert stored == json.loads((folder / "whole" / "config.json").read_text())
    assert "history" not in json.loads(short["config.json"])
    assert loop.train(build(folder / "run", **{"train.duration": "12 steps"})) == finished[2]  # and once more: as it is


@pytest.mark.parametrize("step", [pytest.param(4, marks=pytest.mark.slow), 8, pytest.param(12, marks=pytest.mark.slow)])
def test_checkpoints_of_before_and_after_are_looked_at(finished, step):
    folder = finished[0]
    logged = next(row for row in rows(folder / "whole") if row["step"] == step and "eval/test/loss" in row)
    again = run.build(TINY, {}, folder / "run", from_workdir=True, restore=False)
    assert evaluation.evaluate(again, checkpoint=step)["test/loss"] == logged["eval/test/loss"]
    arguments = [f"--config={TINY}", f"--workdir={folder / 'run'}", "--mode=replay", f"--step={step - 1 or 1}"]
    assert launch.main(["launch.py", *arguments]) == 0


def test_a_shorter_run_is_refused(finished):
    folder = finished[0]
    assert refusal(folder / "run", **{"train.duration": "11 steps"}) == (
        f"train.duration='11 steps' instead of '12 steps' ends at step 11, but {folder / 'run'} is at step 12 already."
    )


def test_a_schedule_that_would_have_been_another_is_refused(tmp_path):
    """A cosine from its first update on; a constant rate behind a warm-up in %, unless the warm-up stays."""
    cosine = {"schedule.name": "cosine", "schedule.warmup": "", "schedule.learning_rate": 0.5}
    loop.train(build(tmp_path / "cosine", **cosine))
    before = (tmp_path / "cosine" / "config.json").read_bytes()
    message = refusal(tmp_path / "cosine", **cosine, **{"train.duration": "16 steps"})
    rates = [0.25 * (1 + np.cos(np.pi / steps)) for steps in (8, 16)]
    found = re.fullmatch(
        r"train.duration='16 steps' instead of '8 steps' changes the learning rate of update 1 from (.*) to (.*), and 8"
        r" updates are made\. Use another folder; there, --config\.resume_from=(.*) continues this run\.",
        message,
    )
    assert [float(found[1]), float(found[2])] == pytest.approx(rates, rel=1e-15)
    assert found[3] == str(tmp_path / "cosine")
    assert (tmp_path / "cosine" / "config.json").read_bytes() == before

    loop.train(build(tmp_path / "warm", **{"schedule.warmup": "25%"}))
    message = refusal(tmp_path / "warm", **{"schedule.warmup": "25%", "train.duration": "16 steps"})
    assert (
        " changes the learning rate of update 1 from 0.0025 to 0.00125, and 8 updates are made. If nothing" in message
    )
    assert "type --config.schedule.warmup='2 steps' too. Use another folder;" in message
    kept = {"schedule.warmup": "2 steps", "train.duration": "12 steps"}
    assert loop.train(build(tmp_path / "warm", **kept))["step"] == 12
    history = json.loads((tmp_path / "warm" / "config.json").read_text())["history"]
    assert [(change["key"], change["old"], change["new"]) for change in history] == [
        ("schedule.warmup", "25%", "2 steps"), ("train.duration", "8 steps", "12 steps")
    ]  # fmt: skip
    run.build(TINY, {}, tmp_path / "warm", from_workdir=True, restore=False).restore(4)


@pytest.mark.slow
def test_periods_in_percent_must_stay(tmp_path):
    percent = {"eval.every": "50%", "checkpoint.every": "50%"}
    loop.train(build(tmp_path / "run", **percent))
    assert refusal(tmp_path / "run", **percent, **{"train.duration": "16 steps"}) == (
        "train.duration='16 steps' instead of '8 steps' changes eval.every from 4 to 8 steps."
        " Type --config.eval.every='4 steps' too."
    )
    kept = {"checkpoint.every": "50%", "eval.every": "4 steps", "train.duration": "16 steps"}
    assert loop.train(build(tmp_path / "run", **kept))["step"] == 16


@pytest.mark.parametrize(
    ("settings", "steps", "expected"),
    [
        (
            {"lookahead.every": 2, "lookahead.power": 3.0},
            4,
            "changes how far Lookahead moved the slow weights so far: by a share of the whole duration to the power of"
            " lookahead.power=3.",
        ),
        (
            {"lookahead.every": 2},
            8,
            ": at step 8, the last of the shorter run, Lookahead replaced the weights by the slow ones.",
        ),
        ({"lookahead.every": 2}, 4, ""),
        (
            {
                "optimizer.groups": (".*bias: until=6steps",),
                "schedule.name": "piecewise",
                "schedule.warmup": "",
                "schedule.boundaries": ("5 steps",),
                "schedule.factors": (0.5,),
            },
            4,
            "changes the learning rate of update 3 of optimizer.groups '.*bias' from 0.005 to 0.0025, and 4 updates are"
            " made.",
        ),
    ],
    ids=["lookahead by a share", "lookahead at its end", "lookahead midway", "group with an end"],
)
def test_what_depends_on_the_duration_beside_the_schedule(tmp_path, settings, steps, expected):
    """A run of 8 steps, stopped after some of them, becomes one of 12."""
    short = build(tmp_path, **settings)
    short.open()
    short.write_header([])
    for _ in range(steps):
        short.train_block(1)
    with short.checkpoints:
        short.checkpoints.save(short.state, {}, short.facts())
    if not expected:
        longer, whole = (build(tmp_path / name, **settings, **{"train.duration": "12 steps"}) for name in ("", "whole"))
        assert loop.train(longer)["step"] == loop.train(whole)["step"] == 12
        assert digest(longer.state) == digest(whole.state)
        return
    where = "" if expected.startswith(":") else " "
    assert refusal(tmp_path, **settings, **{"train.duration": "12 steps"}) == (
        f"train.duration='12 steps' instead of '8 steps'{where}{expected} Use another folder; there,"
        f" --config.resume_from={tmp_path} continues this run."
    )


def test_another_key_is_another_run(finished):
    folder = finished[0]
    with pytest.raises(
        UserError, match=r"another config \(seed: 0 there, 1 now; train\.duration: '12 steps' there, '16"
    ):
        build(folder / "run", **{"train.duration": "16 steps", "seed": 1})


@pytest.mark.slow
def test_a_run_that_stopped_early_is_not_longer(tmp_path):
    settings = {"early_stopping.metric": "test/loss", "early_stopping.patience": 1, "schedule.learning_rate": 0.0}
    settings |= {"eval.every": "2 steps"}
    assert loop.train(build(tmp_path / "run", **settings))["status"] == "stopped early"
    assert refusal(tmp_path / "run", **settings, **{"train.duration": "12 steps"}).startswith(
        "train.duration='12 steps' instead of '8 steps' trains nothing: the run stopped early at step 4"
    )


def test_a_rate_that_follows_evaluations_is_not_longer(tmp_path):
    def build(duration):
        def make_schedule(cfg, total_steps):
            return optim.ReduceOnPlateau(lambda update: 0.01, "test/loss")

        settings = {"train.duration": duration, "eval.every": "2 steps", "schedule.warmup": ""}
        return small.build(tmp_path, None, {"make_schedule": make_schedule}, **settings)

    loop.train(build("2 steps"))
    with pytest.raises(UserError) as error:
        loop.train(build("4 steps"))
    assert str(error.value) == (
        "train.duration='4 steps' instead of '2 steps': the learning rate follows evaluations (make_schedule returned a"
        " schedule with variables), and a longer run need not have one at step 2. Use another folder; there,"
        f" --config.resume_from={tmp_path} continues this run."
    )


@pytest.mark.slow
def test_an_experiment_that_reads_its_duration_elsewhere_is_refused(tmp_path):
    file = tmp_path / "annealed.py"
    file.write_text(
        "from tests import tiny\n"
        "from tests.tiny import get_config, make_data, make_metrics, make_model, make_schedule\n\n\n"
        "def make_loss(cfg):\n    total = cfg.train.duration\n    return tiny.make_loss(cfg) if total else None\n"
    )
    loop.train(run.build(str(file), SHORT, tmp_path / "run"))
    with pytest.raises(
        UserError, match=r"make_loss of .*annealed\.py reads cfg\.train\.duration, so the steps so far may have been"
    ):
        loop.train(run.build(str(file), {**SHORT, "train.duration": "12 steps"}, tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"train.compile": "xla"}, {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}]
)
def test_longer_in_other_ways_to_compute(tmp_path, settings):
    loop.train(build(tmp_path / "run", **settings))
    longer = build(tmp_path / "run", **settings, **{"train.duration": "12 steps"})
    whole = build(tmp_path / "whole", **settings, **{"train.duration": "12 steps"})
    assert loop.train(longer)["step"] == loop.train(whole)["step"] == 12
    assert digest(longer.state) == digest(whole.state) and rows(tmp_path / "run") == rows(tmp_path / "whole")


def test_each_of_several_models_has_its_schedule_compared(tmp_path):
    """One rate is constant, the other one falls to the end of the run."""

    def make_model(cfg):
        return {name: keras.Sequential([keras.layers.Dense(2)]) for name in ("left", "right")}

    def make_schedule(cfg, total_steps):
        return {
            "left": lambda update: 0.1,
            "right": lambda update: 0.1 - 0.01 * tf.cast(update, tf.float64) / total_steps,
        }

    def make_loss(cfg):
        def loss(model, batch, training):
            outputs = [tf.reduce_sum(part(batch["x"], training=training), axis=-1) for part in model.values()]
            return {
                "sum": losses.Term(tf.reduce_sum(tf.add_n(outputs) * batch["weight"]), tf.reduce_sum(batch["weight"]))
            }, {}

        return loss

    def make_step(cfg, tools):
        def step(state, batch):
            def one_pass(part):
                return make_loss(cfg)(state.model, part, True)

            for name in ("left", "right"):
                found = tools.gradients(one_pass, batch, of=name)
                tools.apply(found.gradients, to=name)
            return found.terms, {}

        return step

    own = {"make_model": make_model, "make_schedule": make_schedule, "make_loss": make_loss, "make_step": make_step}
    loop.train(small.build(tmp_path / "run", functions=own))
    with pytest.raises(
        UserError, match=r"changes the learning rate of update 1 of right from 0\.099 to 0\.0995, and 10 up"
    ):
        loop.train(small.build(tmp_path / "run", functions=own, **{"train.duration": "20 steps"}))


def test_the_first_update_that_differs():
    def bent(at):
        return lambda update: tf.where(update < at, np.float64(0.1), np.nextafter(0.1, 1))

    assert first_difference(bent(7), bent(99), 8) == 7
    assert first_difference(bent(7), bent(99), 7) is None
    assert first_difference(lambda u: tf.constant(0.0), lambda u: tf.constant(-0.0), 3) == 0


# A digit that was changed


CHANGED = {"schedule.learning_rate": 0.015, "eval.batch_size": 129, "train.duration": "13 steps"}
FAST_CHANGES = {
    "evaluate": "schedule.learning_rate",
    "export": "eval.batch_size",
    "replay": "train.duration",
    "train": "schedule.learning_rate",
}


@pytest.mark.parametrize(
    ("mode", "key", "value"),
    [
        pytest.param(mode, key, value, marks=() if key == fast else pytest.mark.slow)
        for mode, fast in FAST_CHANGES.items()
        for key, value in CHANGED.items()
    ],
)
def test_a_changed_value_in_config_json_is_refused(finished, tmp_path, capsys, mode, key, value):
    workdir = tmp_path / "run"
    workdir.mkdir()
    for path in (finished[0] / "run").iterdir():
        (workdir / path.name).symlink_to(path)
    (workdir / "config.json").unlink()
    stored = json.loads((finished[0] / "run" / "config.json").read_text())
    section, _, name = key.partition(".")
    assert type(stored[section][name]) is type(value) and stored[section][name] != value
    stored[section][name] = value
    (workdir / "config.json").write_text(json.dumps(stored))
    arguments = [f"--config={TINY}", f"--workdir={workdir}", f"--mode={mode}"]
    arguments += ["--step=3"] if mode == "replay" else []
    if mode == "train":  # also typed as it stands there
        arguments += [f"--config.{k}={v}" for k, v in {**SHORT, "train.duration": "12 steps", key: value}.items()]
    assert launch.main(["launch.py", *arguments]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {workdir / 'config.json'} is not what the checkpoints of the run were trained with: a value in it was"
        " changed. Put the file back; overrides.txt has what was typed."
    )


def test_what_may_differ_and_checkpoints_that_do_not_say_pass(finished):
    values = stored_config.read(finished[0] / "run")
    facts = {"config": values.hashes()[0]}
    for section, key, value in (("checkpoint", "keep", 9), ("data", "dir", "/x"), ("runtime", "devices", 2)):
        stored = json.loads(json.dumps(values.values))
        stored[section][key] = value
        stored_config.refuse_altered(Path("r"), stored_config.StoredConfig(stored, values.history), facts)
    stored["seed"] = 5
    altered = stored_config.StoredConfig(stored, values.history)
    stored_config.refuse_altered(Path("r"), altered, {})
    with pytest.raises(UserError):
        stored_config.refuse_altered(Path("r"), altered, facts)
