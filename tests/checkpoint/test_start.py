"""framework/checkpoint/start.py: what a run starts from, by the bits of its state."""

import json
import shutil

import pytest

import launch
from framework import testing
from framework.checkpoint import start, storage
from framework.run import loop
from tests import small
from tests.checkpoint.started import LAST, SETTINGS, VARIABLES, averages, build, opened, refusal, weights, with_head
from tests.small import differing, snapshot


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A whole run of 10 steps, with checkpoints of steps 4, 8, 10 and the best of them."""
    workdir = tmp_path_factory.mktemp("origin") / "source"
    built = build(workdir)
    loop.train(built)
    assert {4, 8, 10} <= set(built.checkpoints.steps())
    assert int(built.state.best.step) < 8
    return built


def test_scratch(tmp_path, caplog):
    built = build(tmp_path / "run")
    before = snapshot(built)
    assert opened(built, caplog) == [
        f"{tmp_path / 'run'}: starting from scratch: no checkpoint, and neither resume_from nor init_from is set"
    ]
    assert snapshot(built) == before


def test_resume_from_takes_the_whole_state_and_makes_it_its_own(tmp_path, source, caplog):
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    built = build(tmp_path / "run", resume_from=str(moved), **{"train.duration": "20 steps"})
    newest = moved / "checkpoints" / "step-00000010"
    assert opened(built, caplog) == [
        f"{tmp_path / 'run'}: going on at step 10 from {newest} (resume_from; no checkpoint of its own)"
    ]
    assert snapshot(built) == snapshot(source)
    best = int(source.state.best.step)
    assert set(built.checkpoints.steps()) == {best, 10}
    shutil.rmtree(moved)
    again = build(tmp_path / "run", resume_from=str(moved), **{"train.duration": "20 steps"})
    assert opened(again, caplog) == [
        f"{tmp_path / 'run'}: resuming at step 10, its own newest checkpoint; resume_from={moved} is not read"
    ]
    assert snapshot(again) == snapshot(source)
    assert again.restore("best") == best


@pytest.mark.parametrize("step", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_resume_from_in_a_new_folder_ends_in_the_same_bits(tmp_path, source, step):
    built = build(tmp_path / "run", resume_from=str(source.workdir / "checkpoints" / f"step-{step:08d}"))
    result = loop.train(built)
    assert snapshot(built) == snapshot(source)
    whole = json.loads((source.workdir / "result.json").read_text())
    assert {key: result[key] for key in ("status", "step", "final", "best", "final_step")} == {
        key: whole[key] for key in ("status", "step", "final", "best", "final_step")
    }
    later = [row for row in rows(source.workdir) if row["step"] > step]
    assert rows(tmp_path / "run") == later
    assert built.checkpoints.pointed("best") == int(source.state.best.step)
    for step in built.checkpoints.steps():  # also of the best, which another run has saved
        assert built.checkpoints.facts(step) == built.facts() and built.facts()["data"]["train"]


def rows(workdir):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "examples_per_second"} for line in lines]


def test_resume_from_with_another_schedule_batch_size_and_duration(tmp_path, source):
    other = {"train.duration": "12 steps", "data.batch_size": 32, "schedule.name": "cosine"}
    built = build(tmp_path / "run", resume_from=str(source.workdir), **other)
    result = loop.train(built)
    assert (result["status"], result["step"]) == ("finished", 12)
    assert [row["step"] for row in rows(tmp_path / "run") if "loss" in row] == [11, 12]


def test_another_goal_forgets_the_best_value_of_the_one_before(tmp_path, source, caplog):
    other = {"train.duration": "12 steps", "checkpoint.best_metric": "test@ema/loss", "eval.splits": ("test@ema",)}
    built = build(tmp_path / "run", resume_from=str(source.workdir), **other)
    assert opened(built, caplog)[0].endswith(
        "; checkpoint.best_metric has changed, so the best value so far is forgotten"
    )
    assert int(built.state.best.step) == -1
    assert differing(snapshot(built), snapshot(source)) == {"best/value", "best/step", "best/waited"}
    assert built.checkpoints.steps() == [10]


@pytest.mark.parametrize(
    ("theirs", "is_kept"),
    [
        ({"checkpoint": ["test/loss", "min"], "early_stopping": ["", "min"]}, True),  # no metric, but a mode
        ({"checkpoint": ["test/loss", "max"], "early_stopping": ["", "min"]}, False),
        *(
            pytest.param({"checkpoint": goal, "early_stopping": ["", "min"]}, False, marks=pytest.mark.slow)
            for goal in (["test@ema/loss", "min"], ["", "max"])
        ),
    ],
)
def test_the_goals_of_an_older_run_are_compared_by_metric_and_mode(tmp_path, source, caplog, theirs, is_kept):
    """Older runs wrote the mode of each key into their checkpoints, of a key without a metric as well."""
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    for path in (moved / "checkpoints").glob("step-*"):
        manifest = storage.read_manifest(path)
        manifest["facts"]["goals"] = theirs
        storage.write_manifest(path, manifest)
    built = build(tmp_path / "run", **{"train.duration": "12 steps", "resume_from": str(moved)})
    assert any("is forgotten" in line for line in opened(built, caplog)) != is_kept
    assert int(built.state.best.step) == (int(source.state.best.step) if is_kept else -1)


def test_a_damaged_config_of_the_run_before_decides_nothing(tmp_path, source, caplog):
    """Its checkpoints say what they were the best by; where they do not, it is not known."""
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    (moved / "config.json").write_text('{"checkpoint": 5}')
    longer = {"train.duration": "12 steps", "resume_from": str(moved)}
    built = build(tmp_path / "run", **longer)
    assert not any("is forgotten" in line for line in opened(built, caplog))
    assert int(built.state.best.step) == int(source.state.best.step) > 0
    for path in (moved / "checkpoints").glob("step-*"):
        manifest = storage.read_manifest(path)
        del manifest["facts"]["goals"]
        storage.write_manifest(path, manifest)
    built = build(tmp_path / "other", **longer)
    opened(built, caplog)
    assert int(built.state.best.step) == -1


def test_a_kill_between_the_first_checkpoint_and_the_config_is_gone_on_from(tmp_path, source):
    """What resume_from takes is saved before config.json is written; without resume_from nobody knows what it is."""
    longer = {"train.duration": "12 steps", "resume_from": str(source.workdir)}
    assert build(tmp_path / "run", **longer).open() == 10
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["checkpoints"]
    assert build(tmp_path / "run", **longer).open() == 10
    said = refusal(build(tmp_path / "run", **{**longer, "resume_from": ""}).open)
    assert said.startswith(f"--workdir={tmp_path / 'run'} has checkpoints but no config.json")


@pytest.mark.parametrize("content", ["", "{", "5", '{"checkpoint": 5}', "[" * 10**5, "\ufeff{}"])
def test_a_damaged_config_of_the_run_before_is_said(tmp_path, caplog, content):
    (tmp_path / "config.json").write_text(content)
    same = {"checkpoint": ["test/loss", "min"], "early_stopping": ["", "min"]}
    checkpoint = tmp_path / "checkpoints" / "step-00000010"
    assert start._goals_beside(checkpoint, same) == {}
    assert caplog.messages[0].startswith(f"{tmp_path / 'config.json'} is damaged (")
    (tmp_path / "config.json").unlink()
    assert start._goals_beside(checkpoint, same) == same  # one that was copied away from its run


def test_resume_from_falls_back_past_a_damaged_checkpoint(tmp_path, source, caplog):
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    newest = moved / "checkpoints" / "step-00000010"
    lost = min(path for path in newest.iterdir() if path.name != "manifest.json")
    lost.unlink()
    built = build(tmp_path / "run", resume_from=str(moved))
    assert opened(built, caplog)[0].startswith(f"{tmp_path / 'run'}: going on at step 8 from ")
    assert f"checkpoint {newest} is damaged ({lost.name} is missing)" in caplog.text
    only = build(tmp_path / "other", resume_from=str(newest))
    assert refusal(only.open) == f"resume_from='{newest}': {newest} is damaged ({lost.name} is missing)."


def test_resume_from_another_model_lists_both_sides(tmp_path, source):
    newest = source.workdir / "checkpoints" / "step-00000010"
    built = small.build(
        tmp_path / "run", functions=with_head(5), **{**SETTINGS, "resume_from": str(newest), "eval.every": ""}
    )
    said = refusal(built.open)
    assert said.startswith(
        f"{newest} is of another model or optimizer: ema/averages/last/bias: float32[3] in the check"
    )
    assert "model/last/kernel: float32[8, 3] in the checkpoint, float32[8, 5] in the run; " in said
    assert said.endswith(
        f". To take what fits, with a fresh optimizer, type --config.resume_from= --config.init_from={newest}."
    )
    assert not (tmp_path / "run").exists()


def test_resume_from_the_end_has_nothing_to_train(tmp_path, source):
    built = build(tmp_path / "run", resume_from=str(source.workdir), **{"train.duration": "9 steps"})
    assert refusal(built.open) == (
        f"resume_from='{source.workdir}' is at step 10, and train.duration ends at step 9."
        " Type e.g. --config.train.duration='20 steps'."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", ["resume_from", "init_from"])
def test_what_is_no_checkpoint(tmp_path, key):
    built = build(tmp_path / "run", **{key: str(tmp_path)})
    assert refusal(built.open) == (
        f"{key}='{tmp_path}' is neither a checkpoint nor a run folder that has one."
        f" Type e.g. --config.{key}=runs/first or --config.{key}=runs/first/checkpoints/step-00000469."
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("which", ["model", "ema"])
def test_init_from_takes_weights_and_nothing_else(tmp_path, source, which, caplog):
    fresh = build(tmp_path / "run")
    built = build(tmp_path / "run", init_from=str(source.workdir), init_weights=which)
    opened(built, caplog)
    taken = weights(source) if which == "model" else averages(source)
    assert weights(source) != averages(source)
    assert weights(built) == averages(built) == taken
    names = {f"{kind}/{path}" for kind in ("model", "ema/averages") for path in taken}
    assert differing(snapshot(built), snapshot(fresh)) == names
    assert int(built.state.step) == int(built.state.updates) == 0


def test_slow_weights_start_from_the_weights_that_are_taken(tmp_path, source):
    built = build(tmp_path / "run", init_from=str(source.workdir), **{"lookahead.every": 5})
    built.open()
    slow = {path.removeprefix("slow/"): value for path, value in testing.bits(built.state.lookahead).items()}
    assert slow == weights(built) == weights(source)


def test_init_from_with_another_head(tmp_path, source, caplog):
    name, functions = source.workdir / "checkpoints" / "step-00000010", with_head(5, "head")
    fresh = small.build(tmp_path / "run", functions=functions, **SETTINGS)
    built = small.build(tmp_path / "run", functions=functions, **{**SETTINGS, "init_from": str(name)})
    assert opened(built, caplog) == [
        f"{tmp_path / 'run'}: starting at step 0 from {name} (init_from; no checkpoint of its own): 6 of {VARIABLES}"
        " variables taken; with their initial values: head/kernel, head/bias; not taken: last/kernel, last/bias"
    ]
    assert {path for path in weights(built) if path.startswith("head/")} == {"head/kernel", "head/bias"}
    for path, value in weights(built).items():
        assert value == (weights(fresh)[path] if path.startswith("head/") else weights(source)[path]), path
    body = ["first/kernel", "first/bias", "norm/gamma", "norm/beta", "norm/moving_mean", "norm/moving_variance"]
    assert json.loads((tmp_path / "run" / "init.json").read_text()) == {
        "from": str(name),
        "weights": "model",
        "taken": {path: path for path in body},
        "left": ["last/kernel", "last/bias"],
        "initial": ["head/kernel", "head/bias"],
    }


def test_init_from_with_a_map(tmp_path, source):
    functions = with_head(3, "head")
    rules = ("last/bias -> ", r"last/(.*) -> head/\1")
    settings = {**SETTINGS, "init_from": str(source.workdir), "init_map": rules}
    fresh = small.build(tmp_path / "run", functions=functions, **settings)
    built = small.build(tmp_path / "run", functions=functions, **settings)
    built.open()
    assert weights(built)["head/kernel"] == weights(source)["last/kernel"] != weights(fresh)["head/kernel"]
    assert weights(built)["head/bias"] == weights(fresh)["head/bias"] != weights(source)["last/bias"]


def test_a_run_of_its_own_checkpoint_does_not_read_init_from(tmp_path, source, caplog):
    moved = tmp_path / "source"
    shutil.copytree(source.workdir, moved)
    first = build(tmp_path / "run", init_from=str(moved))
    loop.train(first)
    shutil.rmtree(moved)
    again = build(tmp_path / "run", init_from=str(moved))
    assert opened(again, caplog) == [
        f"{tmp_path / 'run'}: resuming at step 10, its own newest checkpoint; init_from={moved} is not read"
    ]
    assert snapshot(again) == snapshot(first)
    assert differing(snapshot(again), snapshot(source)) >= {f"model/{path}" for path in LAST}


def test_bad_input_is_status_2_before_training(tmp_path, capsys):
    arguments = ["launch.py", "--config=tests/tiny.py", "--config.train.compile=graph", f"--workdir={tmp_path / 'run'}"]

    def call(*more):
        assert launch.main([*arguments, *more]) == 2
        return capsys.readouterr().err.splitlines()[-1]

    gone = tmp_path / "gone"
    assert call(f"--config.init_from={gone}") == (
        f"error: init_from='{gone}' is neither a checkpoint nor a run folder that has one. Type e.g."
        " --config.init_from=runs/first or --config.init_from=runs/first/checkpoints/step-00000469."
    )
    assert call("--config.init_from=a", "--config.init_map=('x',)").startswith(
        "error: init_map: 'x' is not a regex, '->'"
    )
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
