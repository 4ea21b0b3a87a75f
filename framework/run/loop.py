"""Train, evaluate, export: short functions over a Run; nothing to subclass.

    run = framework.build('experiments/mnist_mlp.py')
    result = train(run)           # {'status': 'finished', 'final': {'test/accuracy': 0.98, …}, …}
    evaluate(run)                 # {'test/loss': 0.07, 'test/accuracy': 0.98}
    reports = export_run(run)

What happens beside the step is a list of hooks in `_hooks`: add yours there.
"""

import contextlib
import dataclasses
import enum
import errno
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework import paths
from framework.errors import DataError, RunError
from framework.files import read_json, write_json
from framework.folder import CURVES, METRICS, RESULT, TUNING
from framework.run import longer
from framework.run.build import Run
from framework.run.evaluation import evaluate
from framework.run.hooks import Every, Hook
from framework.run.interrupt import Interrupt
from framework.run.interval import PREFIX as MEAN
from framework.run.interval import Interval
from framework.run.nonfinite import rewind_or_raise
from framework.run.preview import show_inputs, warn_unless_additive
from framework.run.progress import Progress
from framework.run.result import make_result, status, whole_result
from framework.step import tune
from framework.step.block import Block
from framework.step.penalties import shown
from framework.writers import AsyncWriter, Console, Jsonl, MultiWriter, TensorBoard

_BLOCK_SECONDS = 2.0
# A disk that is full, read-only or broken: not a slip in the code.
_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO)


def train(run: Run, overrides: Iterable[str] = ()) -> dict[str, Any]:
    """Trains from the newest checkpoint of the run folder, or from scratch, to the end.

    SIGTERM or Ctrl-C finishes the block, saves and returns; a second one ends the process at once.

    Args:
      run: as built.
      overrides: what was typed, for overrides.txt.

    Returns:
      What result.json holds; its `status` is 'finished', 'stopped early' or 'interrupted'. A run that is at its end
      already is left as it is.

    Raises:
      NonFiniteError: a loss or gradient is NaN or infinite, and `train.on_nonfinite` or the loss scale gives up.
      RunError: the disk is full or fails, and `checkpoint.on_error` is 'stop' or it is the end that cannot be written.
      DataError: a streamed source could not be read; what was trained until then is saved, unless an evaluation failed.
    """
    try:
        with run.lock() if run.replicas.is_chief else contextlib.nullcontext():
            return _train(run, overrides)
    except OSError as error:
        if error.errno not in _DISK_ERRORS and run.workdir not in Path(str(error.filename)).parents:
            raise
        where = "" if error.filename else f"{run.workdir}: "  # of a full disk, Python does not say which file
        raise RunError(f"{where}{error}. Mend that and type the same command again.") from error


def _train(run: Run, overrides: Iterable[str]) -> dict[str, Any]:
    run.replicas.chief_first(run.open)
    longer.check(run)
    start = int(run.state.step)
    ended = run.workdir / RESULT
    if status(run) != "interrupted":
        result = read_json(ended, whole_result, None, "it is written anew")
        if result and (result["status"], result["step"]) == (status(run), start):  # or of an earlier interruption
            return result
    if run.replicas.is_chief:
        run.write_header(overrides)
    run.started = run.started or time.monotonic()
    progress = Progress(run.data.batch_size, run.started, run.note, _modes(run))
    progress.passed("building")
    if run.config.train.compile == "auto":
        progress.passed("tuning", compiling=_choose(run))
    with Interrupt() as interrupt, run.checkpoints:
        while _part(run, start, progress, interrupt) is Ended.TO_REWIND:
            start = int(run.state.step)
    result = make_result(run, progress)
    if run.replicas.is_chief:
        write_json(ended, result)
    run.started = None  # a next call counts from its own start
    return result


def _choose(run: Run) -> float:
    """Settles how the blocks are compiled: as the run has done so far, or by trial.

    Returns:
      seconds that compiling the chosen took, if it is compiled already.
    """
    everywhere, left = run.replicas.all_workers, run.total_steps - int(run.state.step)
    run.recall()
    if everywhere(int(run.choice is not None), most=False) or left < 1:
        what = "as before" if run.choice else "at its end already"
        logging.info("train.compile=auto: %s, %s", run.train_block.compiled.mode, what)
        return 0.0
    modes = tune.candidates(run.resolved, run.probe, run.replicas)
    block, choice = tune.tune(run.train_block, modes, run.replicas, left)
    run.compile_by(choice, block)
    table = ", ".join(f"{mode} {'-' if ms is None else f'{ms:.3g}'}" for mode, ms in choice.milliseconds.items())
    logging.info("train.compile=auto: %s, %s (ms a step: %s)", choice.mode, choice.reason, table or "not timed")
    if run.replicas.is_chief:
        write_json(run.workdir / TUNING, dataclasses.asdict(choice))
    return choice.compiling


class Ended(enum.Enum):
    """How a part of a run ended."""

    AS_ASKED = "at the end of the run, by early stopping or by a signal"
    TO_REWIND = "before a step that was not finite; the state is that of a checkpoint"


def _part(run: Run, start: int, progress: Progress, interrupt: Interrupt) -> Ended:
    """Trains from `start` on, as long as nothing makes the run go back."""
    interval = Interval(run.train_block.layout, run.note)
    with _writers(run, start) as writer:
        hooks = _hooks(run, writer, progress, interval, start)
        step, is_warned, is_shown = start, False, start > 0
        if run.resolved.train.on_nonfinite == "rewind" and not run.checkpoints.steps():
            _save(run, writer, progress, interval)
        # All workers do the same: they stop if one was asked to, and take blocks as short as the slowest wants.
        everywhere = run.replicas.all_workers
        while status(run) == "interrupted" and not everywhere(int(interrupt.is_requested), most=True):
            length = everywhere(_block_length(run, hooks, step, progress), most=False)
            try:
                block = progress.timed(run.train_block, length)
            except DataError as error:  # of a block that was not begun: the state is that after the last one
                _save(run, writer, progress, interval)
                raise DataError(f"{error} Step {step} is saved; the same command goes on from there.") from error
            if block.is_halted:
                rewind_or_raise(run, block)
                return Ended.TO_REWIND
            step += len(block.rows)
            interval.add(block)
            if not is_shown:  # not before: nobody waits for pictures, but for the first step
                is_shown = True
                show_inputs(run, writer)
                warn_unless_additive(run)
            if not is_warned and run.train_block.compiled.has_recompiled:
                is_warned = True
                logging.warning("the training step was compiled again: compare with --config.train.compile=graph")
            for hook in hooks:
                hook(step, block)
            if run.train_block.compiled.keeps_compiling:
                _save(run, writer, progress, interval)
                raise _recompiles(run)
        _save(run, writer, progress, interval)
    return Ended.AS_ASKED


def _recompiles(run: Run) -> RunError:
    """The error of a run whose step is compiled again and again."""
    compiled = run.train_block.compiled
    return RunError(
        f"the training step keeps being compiled: {compiled.traces} traces and {compiled.compilations} compilations in"
        f" {compiled.calls} calls (train.compile='{compiled.mode}'). In a compiled step x[i], with i read from a"
        " variable, compiles anew for every i: write tf.gather(x, i). What cannot be changed, such as an LSTM on a CPU,"
        f" needs --config.train.compile=graph, in another folder. Step {int(run.state.step)} is saved."
    )


def _hooks(run: Run, writer: MultiWriter, progress: Progress, interval: Interval, start: int) -> list[Hook]:
    """What happens beside the step, in this order where two are due at once."""
    cfg = run.resolved

    def log(step: int, block: Block) -> None:
        own, means = block.row(len(block.rows) - 1), interval.means()
        writer.scalars(step, {**own, **means, "examples_per_second": progress.lap()})
        progress.logged(step, {name.removeprefix(MEAN): value for name, value in means.items()})
        interval.begin()

    def histograms(step: int, block: Block) -> None:
        # The gradients are those of the step to come, at the weights shown.
        weights = {f"weights/{path}": value.numpy() for path, value in paths.trainable(run.model).items()}
        mode = "xla_gradients" if "graph" in tune.slow_convolutions(run.probe.graph, run.replicas) else "graph"
        gradients = {f"gradients/{path}": value for path, value in run.train_block.inspect(mode).items()}
        writer.histograms(step, weights | gradients)

    def evaluation(step: int, block: Block) -> None:
        results = evaluate(run)
        progress.observe(step, results)
        writer.scalars(step, {f"eval/{name}": value for name, value in results.items()})
        stopping, best = cfg.early_stopping, cfg.checkpoint.best_metric
        if stopping.metric:
            run.state.early.observe(results[stopping.metric], step, stopping.mode, stopping.min_delta)
        if best and run.state.best.observe(results[best], step, cfg.checkpoint.best_mode):
            _save(run, writer, progress, interval)

    def save(step: int, block: Block) -> None:
        _save(run, writer, progress, interval)

    total = run.total_steps
    return [
        Hook("log", Every(cfg.log.every), log, start, total),
        Hook("histograms", Every(cfg.log.histograms_every, at_end=False), histograms, start, total),
        Hook("evaluate", Every(cfg.eval.every), evaluation, start, total),
        Hook("save", Every(cfg.checkpoint.every), save, start, total),
    ]


def _block_length(run: Run, hooks: Sequence[Hook], step: int, progress: Progress) -> int:
    """Steps until the next thing is due, as many as one call takes, and as take about two seconds.

    The first block is one step: it compiles. A signal waits for the end of a block, and must not wait for long.
    """
    due = min(hook.next_step for hook in hooks) - step
    quick = int(_BLOCK_SECONDS / progress.step_seconds) if progress.step_seconds else 1
    return max(1, min(run.train_block.block_steps, run.total_steps - step, due, quick))


def _save(run: Run, writer: MultiWriter, progress: Progress, interval: Interval) -> None:
    if not run.replicas.is_chief:
        return
    writer.flush()  # a row is on disk before the checkpoint that would not write it again
    tuning = {} if run.choice is None else {"tuning": dataclasses.asdict(run.choice)}
    run.checkpoints.save(run.state, progress.note() | interval.note() | tuning, run.facts())


def _modes(run: Run) -> dict[str, str]:
    """Which values of each evaluated metric are better; losses are better when small."""
    modes = {"loss": "min"} | {f"loss/{term}": "min" for term in shown(run.probe.terms)}
    modes |= {name: metric.mode for name, metric in run.metrics.items()}
    return {f"{split}/{name}": mode for split in run.eval_blocks for name, mode in modes.items()}


def _writers(run: Run, start: int) -> MultiWriter:
    """Those of the chief; other workers write nothing."""
    if not run.replicas.is_chief:
        return MultiWriter([])
    return MultiWriter(
        [
            Jsonl(run.workdir / METRICS, start),
            Console(run.total_steps, start, steps_per_epoch=run.data.steps_per_epoch),
            # Last, or its thread would hold the interpreter while the others need it.
            AsyncWriter(TensorBoard(run.workdir / CURVES, start)),
        ],
        run.resolved.checkpoint.on_error,
    )
