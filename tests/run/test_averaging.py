"""`checkpoint.average`: the weights that evaluate, export and the end of training take."""

import json

import numpy as np
import pytest
import tensorflow as tf

import framework
import launch
from framework import paths
from framework.checkpoint import read_arrays
from framework.errors import UserError
from framework.run import averaging

COMMAND = ["launch.py", "--config=tests/tiny.py", "--config.train.compile=graph"]
KEPT = [2, 4, 6, 8]
SETTINGS = [
    "--config.train.duration=8 steps",
    "--config.checkpoint.every=2 steps",
    "--config.eval.every=2 steps",
    "--config.checkpoint.keep=4",
    "--config.checkpoint.average=2",
    "--config.checkpoint.best_metric=test/loss",
    "--config.schedule.name=piecewise",
    "--config.schedule.boundaries=('6 steps',)",
    "--config.schedule.factors=(1000.0,)",
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run whose test loss is worst at the end, by a learning rate that ruins it."""
    workdir = tmp_path_factory.mktemp("averaging") / "run"
    assert launch.main([*COMMAND, f"--workdir={workdir}", *SETTINGS]) == 0
    return workdir


def weights(workdir, steps):
    """Returns {path: mean} of the model's weights, by NumPy in float64."""
    arrays = [read_arrays(workdir / "checkpoints" / f"step-{step:08d}") for step in steps]
    paths = [path for path in arrays[0] if path.startswith("model/")]
    return {path: np.mean([of_one[path].astype(np.float64) for of_one in arrays], axis=0) for path in paths}


def losses(workdir):
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["eval/test/loss"] for row in rows if "eval/test/loss" in row}


@pytest.mark.parametrize(("which", "count"), [("last", 3), ("best", 3), (6, 2), ("best", 1)])
def test_an_evaluation_takes_the_mean_of_the_checkpoints(trained, which, count):
    best = sorted(sorted(KEPT, key=losses(trained).__getitem__)[:count])
    steps = {"last": KEPT[-count:], "best": best, 6: [4, 6]}[which]
    assert best != KEPT[-count:]
    run = framework.build("tests/tiny.py", {"checkpoint.average": count}, trained, from_workdir=True, restore=False)
    result = framework.evaluate(run, which)
    assert run.averaged == (() if count == 1 else tuple(steps))
    assert int(run.state.step) == steps[-1]
    for path, expected in weights(trained, steps).items():
        np.testing.assert_array_equal(paths.variables(run.state)[path].numpy(), expected.astype(np.float32))
    if count == 1:
        assert result["test/loss"] == pytest.approx(min(losses(trained).values()), rel=1e-5)


def test_training_exports_the_mean_at_its_end_once(trained, capsys):
    loaded = tf.saved_model.load(str(trained / "exports/saved_model/1"))
    exported = sorted(float(tf.reduce_sum(tf.cast(variable, tf.float64))) for variable in loaded.objects.values())
    expected = sorted(value.astype(np.float32).sum(dtype=np.float64) for value in weights(trained, [6, 8]).values())
    np.testing.assert_allclose(exported, expected, rtol=1e-12)
    report = json.loads((trained / "exports/report.json").read_text())
    assert [(of_hook["step"], of_hook["averaged"]) for of_hook in report] == [(8, [6, 8])] * 2
    command = [*COMMAND, f"--workdir={trained}", *SETTINGS]
    assert launch.main(command) == 0
    assert not (trained / "exports/saved_model/2").exists()
    command[command.index("--config.checkpoint.average=2")] = "--config.checkpoint.average=3"
    assert launch.main(command) == 0
    assert "  mean of the checkpoints of steps 4, 6, 8\n" in capsys.readouterr().out
    assert (trained / "exports/saved_model/2").exists()


def test_modes_say_that_the_weights_are_a_mean(trained, capsys):
    arguments = [f"--workdir={trained}", "--config.checkpoint.average=3"]
    assert launch.main([*COMMAND, *arguments, "--mode=evaluate"]) == 0
    assert "  mean of the checkpoints of steps 4, 6, 8\n" in capsys.readouterr().out
    assert launch.main([*COMMAND, *arguments, "--mode=export", "--checkpoint=best"]) == 0
    assert "  mean of the checkpoints of steps 2, 4, 6\n" in capsys.readouterr().out


def test_fewer_checkpoints_are_refused(trained, capsys):
    assert launch.main([*COMMAND, f"--workdir={trained}", "--mode=evaluate", "--config.checkpoint.average=5"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: checkpoint.average=5, but {trained}/checkpoints has 4 checkpoints: 2, 4, 6, 8."
        " Type --config.checkpoint.average=4, or train with --config.checkpoint.keep=5."
    )
    run = framework.build("tests/tiny.py", {}, trained, from_workdir=True, restore=False)
    with pytest.raises(UserError, match=r"has 2 checkpoints up to 4: 2, 4. Type --config.checkpoint.average=2, or"):
        run.restore(4, average=3)
    with pytest.raises(UserError, match=r"has 0 checkpoints up to 5: none. Type --config.checkpoint.average=1, or"):
        run.restore(5, average=2)
    with pytest.raises(UserError, match=r"4 checkpoints that were evaluated by checkpoint.best_metric: 2, 4, 6, 8."):
        run.restore("best", average=5)


def test_contradictions_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"checkpoint.average=5 is more than checkpoint.keep=3. Type --config.checkp"):
        framework.build("tests/tiny.py", {"checkpoint.average": 5}, tmp_path / "run")
    with pytest.raises(UserError, match=r"needs checkpoint.best_metric, and the run was trained without. Use --checkp"):
        averaging.ranking(tmp_path, "", "min")


def test_the_best_of_a_metric_that_grows_are_the_largest(tmp_path):
    rows = [{"step": 1, "eval/test/accuracy": 0.5}, {"step": 2, "loss": 1.0}, {"step": 3, "eval/test/accuracy": None}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert averaging.ranking(tmp_path, "test/accuracy", "max") == {1: -0.5}
    assert averaging.ranking(tmp_path, "test/accuracy", "min") == {1: 0.5}
