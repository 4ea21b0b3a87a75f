"""--mode=check rehearses what a run does beside its steps: told, judged, forecast and undone."""

import os
import re
import types

import numpy as np
import pytest

from framework import Hook, evaluators, files
from framework.checkpoint import storage
from framework.folder import LOCK
from framework.modes import check, rehearsal
from framework.run.loop import train
from tests import evaluated
from tests.small import HOT, build, differing, snapshot

SETTINGS = {"train.compile": "eager", "eval.every": "4 steps", "checkpoint.every": "4 steps", "log.every": "3 steps"}


def note(context):
    """Writes a file into the run folder, by what the evaluation found."""
    text = f"{context.step} {context.results['test/loss']:.6f}\n"
    with (context.run.workdir / "notes.txt").open("a") as file:
        file.write(text)


def spoil(context):
    context.run.state.updates.assign_add(5)


def burst(context):
    raise ValueError("too hot")


def seen(run):
    return evaluators.Report({"examples": 160.0}, texts={"said": "all"})


@pytest.fixture(autouse=True)
def briefly(monkeypatch):
    monkeypatch.setattr(rehearsal, "_SECONDS", 0.02)


def rehearse(capsys, tmp_path, functions=None, exported=0, heat=None, **settings):
    """(status, what is printed) of a rehearsal, of which nothing is left."""
    run = build(tmp_path / "runs" / "one", heat, functions, **{**SETTINGS, **settings})
    before = snapshot(run)
    status = rehearsal.main(run, exported)
    assert not differing(before, snapshot(run))
    assert [*tmp_path.iterdir()] == []
    return status, capsys.readouterr().out


def test_what_a_killed_check_left_goes_and_what_another_one_uses_stays(tmp_path):
    run = build(tmp_path / "runs" / "one", **SETTINGS)
    for name in ("killed", "at work", "no check"):
        (tmp_path / f".check-{name}" / "checkpoints").mkdir(parents=True)
    (tmp_path / ".check-killed" / LOCK).write_text("1 on nowhere\n")
    other = tmp_path / ".check-at work" / LOCK
    with files.held(other, str), rehearsal._rehearsing(run) as trial:
        names = {path.name for path in tmp_path.iterdir()}
        assert names == {".check-at work", ".check-no check", trial.run.workdir.name}
        assert files.holder(trial.run.workdir / LOCK).startswith(f"{os.getpid()} on ")
    assert {path.name for path in tmp_path.iterdir()} == {".check-at work", ".check-no check"}


def test_each_part_is_told_and_nothing_of_it_stays(capsys, tmp_path):
    hooks = [Hook("2 steps", note), Hook("", spoil)]
    functions = {**evaluated.made(seen=seen), "make_hooks": lambda cfg, run: hooks}
    status, out = rehearse(capsys, tmp_path, functions, exported=5_000_000)
    assert status == 0 and "FAILED" not in out
    # By the first word of their headings.
    parts = dict(re.findall(r"^(\w+)[^\n]*\n((?:  [^\n]*\n)+)", out, flags=re.M))
    assert re.fullmatch(r"  [\d,]+ kB, written in .*, read in .*: the same bits\n", parts["Checkpoint"])
    assert re.search(r"  \d+ steps, train.compile=eager: [\d.,e+]+ steps/s, .* each\n", parts["Steps"])
    assert re.match(r"  test                     10 batches in .*\n  seen +its evaluator", parts["Evaluation"])
    names = re.findall(r"^  (\w+) +[\d.]+ m?s$", parts["Hooks"], flags=re.M)
    assert names == ["log", "evaluate", "note", "spoil"]
    assert "    changes updates: a replayed step would not have what a hook changes\n" in out
    counts = {name: int(count) for name, count in re.findall(r"^  (\w+) +(\d+) x", parts["The"], re.M)}
    assert counts == {"steps": 10, "save": 3, "evaluate": 3, "log": 4, "note": 5, "spoil": 1}
    assert "  exports                  5.0 MB\n" in parts["Disk"]


def test_the_disk_that_is_forecast_is_what_a_tiny_run_uses(capsys, tmp_path):
    """But for checkpoints, of which other tests know the sizes, and exports, of which there is none here."""
    images = {"log.images": 4, "log.histograms_every": "5 steps"}
    status, out = rehearse(capsys, tmp_path, **images)
    said = sum(
        float(size)
        for size in re.findall(r"^  (?:rows, curves and others|config, code and report) +(\d+) kB$", out, re.M)
    )
    run = build(tmp_path / "run", **SETTINGS, **images)
    train(run, [])
    used = sum(path.stat().st_size for path in run.workdir.rglob("*") if path.is_file())
    used -= sum(path.stat().st_size for path in (run.workdir / "checkpoints").rglob("*") if path.is_file())
    assert status == 0 and used / 1.25 < 1000 * said < used * 1.25, (said, used)


@pytest.mark.slow
def test_under_auto_the_step_is_that_of_the_first_mode_and_batches_are_those_of_training(capsys, tmp_path):
    status, out = rehearse(capsys, tmp_path, **{"train.compile": "auto", "eval.every": ""})
    assert status == 0
    assert " steps, train.compile=graph: " in out and "  the first one, which compiles: " in out


class Pass:
    """A pass of 50 batches that takes a second, and two a batch, and a hundred more to compile a bucket."""

    def __init__(self):
        self.steps, self.now, self.longest = 50, 0.0, 0
        self.compiled = types.SimpleNamespace(traces=0)

    def __call__(self, most):
        is_new = (self.longest == 0) + (self.longest < 4 <= most)  # the fourth batch is of another bucket
        self.compiled.traces += is_new
        self.longest = max(self.longest, most)
        self.now += 1 + 2 * most + 100 * is_new
        return {"loss": float(most)}


def test_the_time_of_a_pass_is_that_of_its_first_batches_without_what_they_compile(monkeypatch):
    block = Pass()
    monkeypatch.setattr(rehearsal.time, "monotonic", lambda: block.now)
    monkeypatch.setattr(rehearsal, "_SECONDS", 20.0)
    assert rehearsal._pass(block) == ({"loss": 6.0}, 6, 1 + 2 * 50)


# What fails


def flipped(patch):
    read = rehearsal.read_arrays

    def one_bit(path):
        arrays = read(path)
        arrays["model/first/bias"].view(np.uint8)[0] ^= 1
        return arrays

    patch.setattr(rehearsal, "read_arrays", one_bit)
    return "other bits were read than were written: the disk or the memory of this machine is broken."


def full(patch):
    patch.setattr(storage, "_ARRAYS", "/dev/full")
    return "the checkpoint of step 0 could not be saved: [Errno 28] No space left on device"


def crowded(patch):
    patch.setattr(rehearsal.shutil, "disk_usage", lambda path: types.SimpleNamespace(free=2000))
    return r"the run would need \d+ kB more, and 2 kB are free where .*/runs/one is. Make room, or type a --workdir on"


@pytest.mark.parametrize("fault", [flipped, full, crowded])
def test_a_disk_that_is_full_or_broken(capsys, tmp_path, monkeypatch, fault):
    wanted = fault(monkeypatch)
    status, out = rehearse(capsys, tmp_path)
    assert status == 1
    (line,) = [line for line in out.splitlines() if line.startswith("  FAILED: ")]
    assert re.search(wanted, line) or wanted in line


def test_a_step_after_the_first_that_is_not_finite(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(rehearsal, "_SECONDS", 60.0)
    status, out = rehearse(capsys, tmp_path, heat={(2, place): HOT for place in range(16)})
    assert status == 1
    assert "  FAILED: training would end at step 3: the loss or a weight is not finite there (loss=inf)." in out


def test_a_hook_and_an_evaluator_that_raise_are_named_and_the_others_act(capsys, tmp_path):
    hooks = [Hook(5, burst), Hook(5, spoil)]
    functions = {**evaluated.made(bad=lambda run: 3, seen=seen), "make_hooks": lambda cfg, run: hooks}
    status, out = rehearse(capsys, tmp_path, functions)
    assert status == 1
    failed = [line for line in out.splitlines() if line.startswith("  FAILED: ")]
    assert failed[0].startswith("  FAILED: evaluator 'bad' returned 3. It must return evaluators.Report(")
    assert re.fullmatch(r"  FAILED: hook 'burst': .*test_rehearsal.py:\d+: burst: ValueError: too hot\.", failed[1])
    assert len(failed) == 2 and "\n  spoil " in out


@pytest.mark.parametrize(
    ("spare", "status", "said"),
    [
        (-1, 1, "  FAILED: the run needs at least 0.0 MiB more. Use a smaller --config.data.batch_size or model"),
        (0, 0, "  perhaps too little: a step may need 0.0 MiB more."),
        (2**40, 0, ""),
        (None, 0, ""),
    ],
)
def test_memory_that_does_not_suffice(capsys, monkeypatch, spare, status, said):
    """What is free is so much more than the copy of the state and the gradients, beside which activations are large."""
    run = build(**SETTINGS)
    weights = sum(len(value) for value in snapshot(run).values())
    gradients = sum(4 * v.shape.num_elements() for v in run.model.trainable_variables)
    free = None if spare is None else weights + gradients + spare
    monkeypatch.setattr(check, "free_memory", lambda: free)
    assert check._memory(run) == status
    out = capsys.readouterr().out
    assert said in out and ("little" in out or "FAILED" in out) == bool(said)
    assert ("free now" in out) == (free is not None)


# The forecast, by numbers of one's own


def test_the_forecast_is_the_sum_over_all_that_a_run_does(capsys, tmp_path):
    """Against a walk through the run by the loop's own table of hooks."""
    took = {"log": 0.25, "evaluate": 3.0, "save": 2.0, "note": 0.5}
    hooks = [Hook(every, print, name) for name, every in {"log": 3, "evaluate": 4, "save": 6, "note": 0}.items()]
    settings = types.SimpleNamespace(best_metric="test/loss", keep=2, keep_hours=0.0)
    run = types.SimpleNamespace(total_steps=50, resolved=types.SimpleNamespace(checkpoint=settings))
    trial = types.SimpleNamespace(run=run, seconds=took, progress=types.SimpleNamespace(step_seconds=0.125))
    wall, saves = 50 * 0.125, 0
    for step in range(1, 51):
        due = {hook.name for hook in hooks if hook.next_step(step - 1, 50) == step}
        saves += bool(due & {"evaluate", "save"})
        wall += sum(took[name] for name in due - {"save"}) + took["save"] * bool(due & {"evaluate", "save"})
    times = rehearsal._times(run, hooks)
    assert (times["save"], rehearsal._forecast(trial, times)) == (saves, wall)
    assert (
        f"The whole run, at these times: 50 steps in {rehearsal.duration(wall)}, without its start\n"
        in capsys.readouterr().out
    )
