"""framework/pages/stored.py: what a run folder says, whole or damaged."""

import fcntl
import json
import os

import pytest

from framework import files
from framework.pages import comparison, report, stored
from tests.pages.folders import RESULT, ROWS, evaluation, fail, make, start


def test_the_best_is_that_of_the_rows(tmp_path):
    run = stored.read(make(tmp_path / "a", result=None))
    assert run.results() == [
        stored.Result("test/loss", (400, 1.5), (200, 1.25)),
        stored.Result("test/accuracy", (400, 0.625), (200, 0.75)),
    ]
    assert run.main_result().name == "test/accuracy" and (run.step, run.total_steps) == (400, 400)


def test_runs_of_earlier_versions_have_the_best_of_their_result(tmp_path):
    old = {"time": "2026-11-29T04:00:00+00:00", "step": 0}
    run = stored.read(make(tmp_path / "a", starts=[old], rows=[]))
    assert run.results()[1] == stored.Result("test/accuracy", (400, 0.625), (200, 0.75))
    assert run.total_steps == 400
    result = RESULT | {"epochs": 2.0, "status": "interrupted"}
    epochs = make(tmp_path / "b", starts=[old], config={"train": {"duration": "8 epochs"}}, result=result)
    assert stored.read(epochs).total_steps == 1600


def test_states(tmp_path):
    assert stored.read(make(tmp_path / "ended")).state == "finished"
    early = stored.read(
        make(tmp_path / "early", result=RESULT | {"status": "stopped early"}, starts=[start(total=900)])
    )
    assert early.state == "stopped early"
    stopped = stored.read(make(tmp_path / "stopped", result=RESULT | {"status": "interrupted"}, saved=[200, 300]))
    assert (stopped.state, stopped.stopped_at) == ("stopped", 300)
    killed = stored.read(make(tmp_path / "killed", result=None, saved=[]))
    assert (killed.state, killed.stopped_at) == ("stopped", 0)
    failed = make(tmp_path / "failed", result=None)
    fail(failed)
    assert (stored.read(failed).state, stored.read(failed).failure) == ("failed", "ValueError: a shape")
    broken = make(tmp_path / "broken", result=None)
    (broken / "failure" / "step-00000123").mkdir(parents=True)  # the step of the state before
    for name in ("environment.json", "metrics.jsonl"):
        os.utime(broken / name, (1e9, 1e9))
    assert stored.read(broken).failure == "step 124 was not finite"


def test_a_result_of_before_a_longer_run_does_not_count(tmp_path):
    longer = [start(), start(400, 800)]
    assert stored.read(make(tmp_path / "a", starts=longer)).state == "stopped"
    further = stored.read(make(tmp_path / "b", rows=[*ROWS, evaluation(500, 1.0, 0.5)], starts=longer))
    assert further.result == {} and further.step == 500
    assert further.results()[0] == stored.Result("test/loss", (500, 1.0), (500, 1.0))


def test_a_failure_of_before_the_newest_start_does_not_count(tmp_path):
    folder = make(tmp_path / "a", result=None)
    fail(folder)
    os.utime(folder / "environment.json")
    os.utime(folder / "failure" / "traceback.txt", (1e9, 1e9))
    assert stored.read(folder).state == "stopped"


def test_a_run_is_running_while_its_lock_is_held(tmp_path):
    folder = make(tmp_path / "a")
    with files.held(folder / ".lock", str):
        run = stored.read(folder)
        assert run.state == "running" and run.holder.startswith(f"{os.getpid()} on ")
    assert stored.read(folder).state == "finished"


def test_a_look_at_the_lock_does_not_refuse_a_start(tmp_path, monkeypatch):
    lock = tmp_path / ".lock"
    lock.write_text("")
    with lock.open() as look:
        fcntl.flock(look, fcntl.LOCK_SH)
        monkeypatch.setattr(files.time, "sleep", lambda seconds: fcntl.flock(look, fcntl.LOCK_UN))
        with files.held(lock, lambda holder: f"in use by {holder}"):
            pass


FILES = ["config.json", "environment.json", "result.json", "metrics.jsonl", "exports/report.json", "checkpoints"]
MANIFEST = "checkpoints/step-00000400/manifest.json"
WRONG = [
    "", "null", "[]", "3", '"x"', "{", "{}", 9000 * "[", "\ufffd", '{"step": "x"}', '{"step": 400, "status": 3}',
    "[[]]", '[{"hook": "x"}]', '{"starts": [3]}', '{"starts": [{"step": 1, "time": "yesterday"}]}',
    '{"note": 3, "variables": {}}', '{"note": {}, "variables": {}, "facts": {"code": 3}}',
    '{"note": {}, "variables": {}, "facts": {"code": {"a": 3}}}', '{"note": {}, "variables": {}, "facts": null}',
    '{"step": 400, "status": "finished", "best": {"x": "y"}}', '{"step": 400, "status": "finished", "final": [1]}',
    '{"note": {}, "variables": {"model/a": {"shape": ["x"]}}}', '{"step": 400, "status": "finished", "seconds": 3}',
    '{"checkpoint": {"best_metric": ["test/loss"]}}',
    '{"step": 400, "status": "finished", "wall_seconds": 1%s}' % (400 * "0"),
    '{"note": {"seconds": {"steps": 1%s}}, "variables": {}}' % (400 * "0"),
]  # fmt: skip


@pytest.mark.parametrize("name", [*FILES, MANIFEST])
def test_damaged_files_are_named(tmp_path, name):
    """Whatever stands there, a page is made; what cannot be read is named."""
    folder = make(tmp_path / "a")
    path = folder / name
    if name == "checkpoints":
        path.rename(folder / "elsewhere")
    for number, text in enumerate(WRONG):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        run = stored.read(folder)
        report.page(run)
        groups = comparison.grouped([run, run])
        comparison.page(groups), comparison.csv_text(groups), comparison.summary(groups, 80)
        stored.read(folder, is_short=True).main_result()
        if number < 6 and name not in ("checkpoints", "metrics.jsonl", "exports/report.json"):
            assert [damage for damage in run.damages if damage.startswith(f"{name}: ")], text
    path.unlink()
    path.mkdir()
    assert name == "checkpoints" or f"{name}: it is not a file" in stored.read(folder).damages
    path.rmdir()
    os.mkfifo(path)
    report.page(stored.read(folder))


@pytest.mark.parametrize("key", ["modes", "overridden", "total_steps", "time", "packages", "git", "devices", "command"])
def test_odd_values_of_a_start_do_no_harm(tmp_path, key):
    for number, value in enumerate([None, 3, "x", [1], {"test/loss": 3}, True]):
        run = stored.read(make(tmp_path / str(number), starts=[start(**{key: value})]))
        report.page(run)
        assert run.main_result() is not None


def test_which_folders_are_runs():
    assert stored.is_run({".lock"}) and stored.is_run({"config.json", "checkpoints"})
    assert not stored.is_run({"config.json", "model.safetensors"}) and not stored.is_run(set())


def test_the_config_has_the_keys_of_today(tmp_path):
    folder = make(tmp_path / "a", config={"data": {"remainder": "carry"}, "history": [{"step": 3}]})
    run = stored.read(folder)
    assert run.config["data.remainder"] == "wrap" and not [key for key in run.config if "history" in key]
    assert json.loads((folder / "config.json").read_text())["data"]["remainder"] == "carry"
