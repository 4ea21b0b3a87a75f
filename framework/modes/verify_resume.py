"""--mode=verify_resume --kills=K: proof that an experiment, killed at any moment, ends in the bits of one that was not.

    python launch.py --config=experiments/mnist_mlp.py --mode=verify_resume --kills=5 --config.train.duration='1 epoch'

Trains once uninterrupted, then once more with K times `kill -9` at random moments: of start-up, of training, of a save.
Each start is a process of launch.py. A run that ends before all kills are used is compared as well, and the rest is
used on another. Compared are the SHA-256 of all state and the rows of metrics.jsonl but for the speed in them.
"""

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

from framework import paths
from framework.checkpoint import digest
from framework.config import UserError
from framework.folder import TUNING
from framework.run import Run

_LAUNCH = Path(__file__).resolve().parents[2] / "launch.py"
# Of five kills: most where something can be lost.
_MOMENTS = ("training", "a save", "start-up", "a save", "training")
_SAVES = 100  # in a run
_POLL_SECONDS = 0.002
_SAVE_SECONDS = 0.05  # a kill in a save comes at most so long after its begin


def main(run: Run, overrides: Sequence[str], kills: int = 5) -> int:
    """Prints every kill and the digests; 1 if a killed run ended in other bits, and both are left in the run folder."""
    is_new = not run.workdir.exists()
    run.workdir.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="verify_resume-", dir=run.workdir))
    keeps = True
    try:
        with _terminated_as_interrupted():
            problem = _verify(run, _command(run, overrides), folder, kills)
        keeps = bool(problem)
    except KeyboardInterrupt:
        keeps = False
        raise
    finally:
        if not keeps:
            shutil.rmtree(folder)
            if is_new:
                run.workdir.rmdir()
    print(f"NOT the same bits: {problem}. See {folder}." if problem else f"the same bits after {kills} kills")
    return 1 if problem else 0


@dataclasses.dataclass(frozen=True)
class _Ended:
    """What a run that ended has left: {path: value} of its state, and the rows of its metrics.jsonl."""

    state: dict[str, np.ndarray]
    rows: list[dict[str, Any]]


def _command(run: Run, overrides: Sequence[str]) -> list[str]:
    name = f"{run.experiment.path}:{run.experiment.preset}" if run.experiment.preset else str(run.experiment.path)
    command = [sys.executable, str(_LAUNCH), f"--config={name}", *overrides]
    if not any(text.startswith(("--config.checkpoint.every", "-config.checkpoint.every")) for text in overrides):
        every = max(1, run.total_steps // _SAVES)
        print(f"checkpoint.every='{every} steps' instead of '{run.config.checkpoint.every}', for many saves")
        command.append(f"--config.checkpoint.every={every} steps")
    return command


def _verify(run: Run, command: Sequence[str], folder: Path, kills: int) -> str:
    """What is not the same; '' if nothing."""
    whole, start_up, training = _uninterrupted(run, command, folder / "uninterrupted")
    draws = np.random.default_rng(run.config.seed)
    moments = [_MOMENTS[number % len(_MOMENTS)] for number in range(kills)]
    draws.shuffle(moments)
    done, runs, window = 0, 0, 2 * training / kills
    while done < kills:
        runs += 1
        workdir = folder / f"killed-{runs}"
        _as_tuned(folder / "uninterrupted", workdir)
        while done < kills and not _has_ended(workdir):
            moment = moments[done]
            if _killed(command, workdir, moment, draws.uniform(0, start_up), draws.uniform(0, window), draws):
                done += 1
                print(f"kill {done} of {kills}, in {moment}: {_goes_on(run, workdir)}", flush=True)
            elif not _has_ended(workdir):
                return f"after kill {done} the run fails: {_last_line(workdir)}"
            else:
                window /= 2  # the run was faster than the kill
        if not _has_ended(workdir):
            with _process(command, workdir) as process:
                process.wait()
        if not _has_ended(workdir):
            return f"after kill {done} the run fails: {_last_line(workdir)}"
        ended = _read(run, workdir)
        print(f"run {runs} with kills ended at step {int(ended.state['step'])}: {digest(ended.state)}", flush=True)
        if problem := _difference(whole, ended):
            return problem
    return ""


def _as_tuned(whole: Path, workdir: Path) -> None:
    """A run that is to have the bits of another is compiled as that one was (train.compile=auto)."""
    workdir.mkdir()
    if (whole / TUNING).exists():
        shutil.copyfile(whole / TUNING, workdir / TUNING)


def _uninterrupted(run: Run, command: Sequence[str], workdir: Path) -> tuple[_Ended, float, float]:
    """Trains once; returns what that left, the seconds until the first save, and those of the training after it."""
    begin = time.monotonic()
    with _process(command, workdir) as process:
        _is_saving(process, workdir)
        start_up = time.monotonic() - begin
        process.wait()
    if not _has_ended(workdir):
        raise UserError(f"the run fails without a kill: {_last_line(workdir)} See {workdir.with_suffix('.log')}.")
    result = json.loads((workdir / "result.json").read_text())
    ended = _read(run, workdir)
    print(f"uninterrupted, {result['status']} at step {result['step']}: {digest(ended.state)}", flush=True)
    return ended, start_up, result["wall_seconds"] - (result["time_to_first_step_seconds"] or 0.0)


def _killed(
    command: Sequence[str], workdir: Path, moment: str, start_up: float, training: float, draws: np.random.Generator
) -> bool:
    """Starts the run and kills it at a moment; False if it ended before.

    Args:
      moment: one of _MOMENTS.
      start_up, training: seconds to wait after the start, or after the first save.
    """
    with _process(command, workdir) as process:
        if moment == "start-up":
            _is_running_after(process, start_up)
        elif _is_saving(process, workdir) and _is_running_after(process, training) and moment == "a save":
            _ = _is_saving(process, workdir) and _is_running_after(process, draws.uniform(0, _SAVE_SECONDS))
        process.kill()
        return process.wait() == -signal.SIGKILL


@contextlib.contextmanager
def _process(command: Sequence[str], workdir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """launch.py in a process that does not outlive the context; all that it says is added to a file beside the run."""
    with workdir.with_suffix(".log").open("ab") as log:
        process = subprocess.Popen(
            [*command, f"--workdir={workdir}"], stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def _is_saving(process: subprocess.Popen[bytes], workdir: Path) -> bool:
    """Waits until something changes among the checkpoints; False if the process ended before."""
    before = _checkpoint_files(workdir)
    while process.poll() is None:
        if _checkpoint_files(workdir) != before:
            return True
        time.sleep(_POLL_SECONDS)
    return False


def _checkpoint_files(workdir: Path) -> set[str]:
    try:
        return set(os.listdir(workdir / "checkpoints"))
    except FileNotFoundError:
        return set()


def _is_running_after(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def _has_ended(workdir: Path) -> bool:
    """Whether the run came to its end; that of a process may also be an error, or an export that failed."""
    result = workdir / "result.json"
    return result.exists() and json.loads(result.read_text())["status"] != "interrupted"


def _goes_on(run: Run, workdir: Path) -> str:
    steps = dataclasses.replace(run, workdir=workdir).checkpoints.steps()
    return f"goes on at step {steps[-1]}" if steps else "starts from scratch"


def _last_line(workdir: Path) -> str:
    lines = workdir.with_suffix(".log").read_text(errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _read(run: Run, workdir: Path) -> _Ended:
    dataclasses.replace(run, workdir=workdir).restore()
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return _Ended(
        {path: np.asarray(variable.numpy()) for path, variable in paths.variables(run.state).items()},
        [{name: value for name, value in row.items() if name != "examples_per_second"} for row in rows],
    )


def _difference(whole: _Ended, ended: _Ended) -> str:
    """The first variables that differ, or the first row; '' if nothing does."""
    differing = [path for path, value in whole.state.items() if value.tobytes() != ended.state[path].tobytes()]
    if differing:
        shown = ", ".join(f"{path} ({_extent(whole.state[path], ended.state[path])})" for path in differing[:5])
        return f"{len(differing)} of {len(whole.state)} variables differ, first {shown}"
    for row, other in zip(whole.rows, ended.rows, strict=False):
        if row != other:
            return f"metrics.jsonl has {json.dumps(row)} uninterrupted, {json.dumps(other)} after kills"
    if len(whole.rows) != len(ended.rows):
        return f"metrics.jsonl has {len(whole.rows)} rows uninterrupted, {len(ended.rows)} after kills"
    return ""


def _extent(left: np.ndarray, right: np.ndarray) -> str:
    one, other = (
        np.ascontiguousarray(array).reshape(-1).view(np.uint8).reshape(array.size, -1) for array in (left, right)
    )
    gap = np.nan_to_num(np.abs(left.astype(np.float64) - right.astype(np.float64)), nan=0.0)
    return f"{np.count_nonzero((one != other).any(axis=1))} of {left.size} elements, by {np.max(gap):.3g} at most"


@contextlib.contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """SIGTERM ends this process as Ctrl-C does, so that it takes the one that trains with it."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
