"""Trains a run: blocks of steps, hooks after each block, checkpoints, and going back before a non-finite step.

    run = framework.build('experiments/mnist_mlp.py')
    result = train(run)           # {'status': 'finished', 'final': {'test/accuracy': 0.98, …}, …}

Hooks do everything beside the steps: `built_in.py` has those of each run, `make_hooks` adds those of an experiment.
"""

import contextlib
import dataclasses
import enum
import errno
import functools
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from absl import logging

from framework import optim
from framework.data.bucketed import busiest, mean_size
from framework.errors import DataError, MachineError
from framework.files import read_json, write_json
from framework.folder import RESULT, TUNING
from framework.pages import report
from framework.run import longer
from framework.run.built_in import built_in_hooks
from framework.run.guards import Guards
from framework.run.guards.retracing import keeps_compiling
from framework.run.hooks import Context, Hooks
from framework.run.interrupt import Interrupt
from framework.run.interval import Interval
from framework.run.nonfinite import rewind_or_raise
from framework.run.outputs import writers_of
from framework.run.own_hooks import OwnHooks, own_hooks
from framework.run.preview import show_inputs, warn_of_padding, warn_of_same_data
from framework.run.profiling import Profiler
from framework.run.progress import Progress
from framework.run.result import make_result, status, whole_result
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.examples_apart import refuse_together
from framework.writers import MultiWriter

_BLOCK_SECONDS = 2.0
# Errors of a disk that is full, read-only or broken; other errors are faults of the code.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def train(run: Run, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Trains from the newest checkpoint of the run folder, or from scratch, to the end.

    SIGTERM or Ctrl-C finishes the block, saves and returns; a second one ends the process at once.

    Args:
      run: as built.
      overrides: what was typed, for overrides.txt.

    Returns:
      The content of result.json; its `status` is 'finished', 'stopped early' or 'interrupted'. A run that has ended
      already is left as it is.

    Raises:
      NonFiniteError: a loss or gradient is NaN or infinite, and `train.on_nonfinite` or the loss scale gives up.
      MachineError: the disk is full or fails, and `checkpoint.on_error` is 'stop' or the end of the run cannot be
        written.
      RunError: not all of the run folder could be copied to its address.
      DataError: a streamed source cannot be read; the steps before are saved, unless it was read for an evaluation.
      UserError: a hook, a writer or a schedule of the experiment is refused or raises; the line names it.
    """
    try:
        with run.copying():
            with contextlib.closing(run), run.lock() if run.replicas.is_chief else contextlib.nullcontext():
                if (ended := _ended(run)) is not None:
                    return ended
                result = _train(run, overrides)
            if run.replicas.is_chief:  # after the lock, by which the page tells that a run is under way
                report.refresh(run.workdir)
        return result
    except OSError as error:
        if error.errno not in _DISK_ERRORS and run.workdir not in Path(str(error.filename)).parents:
            raise
        where = "" if error.filename else f"{run.workdir}: "  # if the disk is full, Python does not name the file
        raise MachineError(f"{where}{error}. Mend that and type the same command again.") from error


def _ended(run: Run) -> dict[str, Any] | None:
    """Opens the run folder; returns the result of a run that has ended already."""
    run.replicas.chief_first(run.open)
    longer.check(run)
    if status(run) == "interrupted":
        return None
    result = read_json(run.workdir / RESULT, whole_result, None, "it is written again")
    known = (status(run), int(run.state.step))  # unlike those of an earlier interruption
    return result if result and (result["status"], result["step"]) == known else None


def _train(run: Run, overrides: Iterable[str]) -> dict[str, Any]:
    if run.replicas.is_chief:
        run.write_header(overrides)
    run.started = run.started or time.monotonic()
    progress = Progress(mean_size(run.data), run.started, run.note, run.modes)
    progress.passed("building")
    # Before the step is compiled, so that a mistake in the experiment is reported at once.
    optim.prepare_schedules(run.state.schedule, run.modes)
    if run.replicas.count > 1:
        refuse_together(run.data)
    own, guards, profiler = own_hooks(run), Guards(run, progress), Profiler(run)
    if run.config.train.compile == "auto":
        progress.passed("tuning", compiling=_choose(run))
    with Interrupt() as interrupt, run.checkpoints, profiler:
        while _segment(run, progress, own, guards, profiler, interrupt) is Ended.TO_REWIND:
            progress.go_back(run.note)
            own = own_hooks(run)  # new ones, as if the run were resumed here
        with progress.spending("save"):
            run.checkpoints.close()
    result = make_result(run, progress)
    if run.replicas.is_chief:
        write_json(run.workdir / RESULT, result)
    run.started = None  # a next call counts from its own start
    return result


def _choose(run: Run) -> float:
    """Chooses how blocks are compiled: as before in this run, or by trial; returns the seconds that compiling took."""
    everywhere, left = run.replicas.all_workers, run.total_steps - int(run.state.step)
    run.recall()
    if everywhere(int(run.choice is not None), most=False) or left < 1:
        what = "as before" if run.choice else "at its end already"
        logging.info("train.compile=auto: %s, %s", run.train_block.compiled.mode, what)
        return 0.0
    modes = compile_choice.candidates(run.resolved, run.probe, run.replicas)
    bucket = busiest(run.data)
    block = run.train_block if bucket is None else run.train_block.in_bucket(bucket)
    block, choice = compile_choice.choose(block, modes, run.replicas, left)
    run.compile_by(choice, block if bucket is None else block.in_bucket(None))
    table = ", ".join(f"{mode} {'-' if ms is None else f'{ms:.3g}'}" for mode, ms in choice.milliseconds.items())
    logging.info("train.compile=auto: %s, %s (ms a step: %s)", choice.mode, choice.reason, table or "not timed")
    if run.replicas.is_chief:
        write_json(run.workdir / TUNING, dataclasses.asdict(choice))
    return choice.compiling


class Noted(Protocol):
    """An object whose state is kept in the note of a checkpoint, not in `run.state`."""

    def note(self) -> dict[str, Any]: ...


class Ended(enum.Enum):
    """How a segment of a run ended."""

    AS_ASKED = "at the end of the run, by early stopping or by a signal"
    TO_REWIND = "before a step that was not finite; the state is the one of a checkpoint"


def _segment(
    run: Run, progress: Progress, own: OwnHooks, guards: Guards, profiler: Profiler, interrupt: Interrupt
) -> Ended:
    """Trains from the current state to the end, or until the run goes back to a checkpoint."""
    step = int(run.state.step)
    is_shown = step > 0
    interval = Interval(run.train_block.layout, run.note)
    hooks = Hooks([*built_in_hooks(run, interval), *own.hooks], step, run.total_steps)
    guards.begin()
    profiler.begin(step)
    with writers_of(run, step) as writer:
        writer.open(run.workdir, step)
        save = functools.partial(_save, run, writer, progress, (progress, interval, own))
        if run.resolved.train.on_nonfinite == "rewind" and not run.checkpoints.steps():
            save()
        # All workers do the same: they stop if one was asked to stop, and take blocks as short as the slowest needs.
        everywhere = run.replicas.all_workers
        while status(run) == "interrupted" and not everywhere(int(interrupt.is_requested), most=True):
            length = min(_block_length(run, hooks, step, progress), profiler.next_step(step) - step)
            length = everywhere(length, most=False)
            try:
                with profiler.around(step, length):
                    block = progress.timed(lambda k: run.train_block(k, interval.sums), length)
            except DataError as error:  # the block has not begun: the state is the one after the last block
                save()
                raise DataError(f"{error} Step {step} is saved; the same command goes on from there.") from error
            if block.is_halted:
                rewind_or_raise(run, block)
                return Ended.TO_REWIND
            step += len(block.rows)
            interval.add(block)
            if not is_shown:  # not before the first step, because users wait for it
                is_shown = True
                show_inputs(run, writer)
                warn_of_padding(run)
                warn_of_same_data(run)
            guards.look(block)
            context = Context(step, block, run, writer, progress)
            hooks.act(context)
            if context.is_save_due:
                save()
            if run.train_block.compiled.keeps_compiling:
                save()
                raise keeps_compiling(run)
        save()
    return Ended.AS_ASKED


def _block_length(run: Run, hooks: Hooks, step: int, progress: Progress) -> int:
    """Returns the length of the next block: up to the next due hook, at most one call, and about two seconds.

    The first block compiles and is one step. A signal takes effect at the end of a block, so blocks must be short.
    """
    due = hooks.next_step - step
    quick = int(_BLOCK_SECONDS / progress.step_seconds) if progress.step_seconds else 1
    return max(1, min(run.train_block.block_steps, run.total_steps - step, due, quick))


def _save(run: Run, writer: MultiWriter, progress: Progress, noted: Sequence[Noted]) -> None:
    """Saves a checkpoint, with the note of each object that has a state beside `run.state`; only the chief does."""
    if not run.replicas.is_chief:
        return
    with progress.spending("save"):
        writer.flush()  # rows must be on disk first: a run resumed from this checkpoint does not write them again
        note = {} if run.choice is None else {"tuning": dataclasses.asdict(run.choice)}
        for one in noted:
            note |= one.note()
        run.checkpoints.save(run.state, note, run.facts())
