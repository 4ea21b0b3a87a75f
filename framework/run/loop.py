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
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework import paths, precision
from framework.compile import jit
from framework.config import AVERAGED, base_config, base_split, flatten
from framework.data.batches import epoch_steps
from framework.distribute.devices import Interrupt
from framework.errors import DataError, RunError, UserError
from framework.export.base import ExportReport
from framework.export.verify import export_all
from framework.files import read_json, write_json
from framework.folder import CURVES, EXPORTS, METRICS, RESULT, TUNING, starts
from framework.run import longer
from framework.run.build import Run
from framework.run.hooks import Every, Hook
from framework.run.interval import PREFIX as MEAN
from framework.run.interval import Interval
from framework.run.nonfinite import rewind_or_raise
from framework.run.progress import Progress
from framework.step import tune
from framework.step.additivity import check_additive
from framework.step.block import Block
from framework.step.gradients import forward
from framework.step.penalties import shown
from framework.writers.base import AsyncWriter, Console, Jsonl, MultiWriter
from framework.writers.tensorboard import TensorBoard

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
    if _status(run) != "interrupted":
        result = read_json(ended, _whole_result, None, "it is written anew")
        if result and (result["status"], result["step"]) == (_status(run), start):  # or of an earlier interruption
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
    result = _result(run, progress)
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
        while _status(run) == "interrupted" and not everywhere(int(interrupt.is_requested), most=True):
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
                _show_inputs(run, writer)
                _warn_unless_additive(run)
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


def evaluate(run: Run, checkpoint: str | int | None = None) -> dict[str, float]:
    """{'split/metric': value} over every evaluation split, each example once.

    'split@ema/metric' is that of the averaged weights. Nothing that the loss moves stays moved.

    Args:
      run: as built.
      checkpoint: 'last', 'best' or the number of a step: the run takes that state of its folder first, and keeps it.
        None evaluates the live state.

    Raises:
      UserError: there is no such checkpoint.
    """
    if checkpoint is not None:
        run.restore(checkpoint)
    results: dict[str, float] = {}
    for split, block in run.eval_blocks.items():
        with run.weights("ema" if split.endswith(AVERAGED) else "model"):
            found = block()
        if bad := [f"{name} is {value}" for name, value in found.items() if not math.isfinite(value)]:
            logging.warning(
                "evaluating '%s': %s: %s",
                split,
                ", ".join(bad),
                block.problem or "the sums are finite, such as those of no example",
            )
        results |= {f"{split}/{name}": value for name, value in found.items()}
    return results


@contextlib.contextmanager
def untouched(run: Run) -> Iterator[None]:
    """Puts back what the loss moves where it is not training, such as averages under training=True."""
    with contextlib.ExitStack() as stack:
        for block in run.eval_blocks.values():
            stack.enter_context(block.untouched())
        yield


def export_run(run: Run) -> list[ExportReport]:
    """Exports the live state through every hook of the experiment and verifies each on held-out examples.

    Raises:
      UserError: the state is untrained, but the run folder has a checkpoint.
    """
    if int(run.state.step) == 0 and run.checkpoints.steps():
        raise UserError(f"the model is untrained, but {run.workdir} has a checkpoint. Call run.restore() first.")
    run = run.on_one_device()
    folder, step = run.workdir / EXPORTS, int(run.state.step)
    with run.weights(run.resolved.export.weights), untouched(run):
        return export_all(run.exports, run.model, list(held_out(run)), run.metrics, folder, step, _own_outputs(run))


def _own_outputs(run: Run) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """batch -> the outputs that evaluation gives to metrics."""

    def outputs_of(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with precision.scope(run.resolved.train.precision):
            return dict(forward(run.loss, run.model, tensors, training=False)[1])

    is_slow = "eager" in tune.slow_convolutions(run.probe.graph, run.replicas)
    compiled = jit(outputs_of) if is_slow else outputs_of

    def call(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A hook may have layers compute in float32, which is not slow, and which what is compiled would not know of.
        function = compiled if precision.halved(run.model) else outputs_of
        found = function({name: tf.constant(array) for name, array in batch.items()})
        return {name: np.asarray(output) for name, output in found.items()}

    return call


def held_out(run: Run) -> Iterator[dict[str, np.ndarray]]:
    """Batches of the first evaluation split until there are `export.examples` examples, in whole batches."""
    batches = run.eval_data[base_split(run.resolved.eval.splits[0])]
    wanted = -(-run.resolved.export.examples // batches.batch_size)
    for step in range(min(wanted, epoch_steps(batches))):
        yield {name: tensor.numpy() for name, tensor in batches.at(step).items()}


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


def _status(run: Run) -> str:
    settings = run.resolved.early_stopping
    if settings.metric and int(run.state.early.waited) >= settings.patience:
        return "stopped early"
    return "finished" if int(run.state.step) >= run.total_steps else "interrupted"


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


def _show_inputs(run: Run, writer: MultiWriter) -> None:
    """Once a run: the config, the graph of the forward pass, and real input pictures."""
    writer.text(0, "config", f"```\n{run.config}\n```")
    writer.graph(run.probe.graph)
    for name, tensor in run.data.at(0).items():
        is_picture = tensor.shape.rank == 3 or (tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4))
        if run.resolved.log.images and is_picture and min(tensor.shape[1:3]) >= 8:
            writer.images(0, f"inputs/{name}", tensor[: run.resolved.log.images].numpy())


def _warn_unless_additive(run: Run) -> None:
    """Once a run: says so if a term of the loss is no weighted sum over examples."""
    if run.replicas.is_local and "eager" not in tune.slow_convolutions(run.probe.graph, run.replicas):
        with untouched(run):
            found = check_additive(run.loss, run.model, run.data.at(0), run.resolved)
        for sentence in found or ():
            logging.warning("%s", sentence)


def _result(run: Run, progress: Progress) -> dict[str, Any]:
    compiled = run.train_block.compiled
    rate = progress.examples_per_second()
    start = ([{}, *starts(run.workdir)])[-1]  # what trained, whatever became of the checkouts meanwhile
    return {
        "status": _status(run),
        "step": int(run.state.step),
        "updates": int(run.state.updates),
        "skipped": int(run.state.skipped),
        "empty_terms": int(run.state.empty_terms),
        "epochs": int(run.state.step) / run.data.steps_per_epoch,
        "train": {name: _or_none(value) for name, value in progress.trained.items()},
        "train_step": progress.trained_step,
        "final": {name: _or_none(value) for name, value in progress.evaluations.items()},
        "final_step": progress.evaluated_step,
        "best": {name: _or_none(value) for name, value in progress.best.items()},
        "best_steps": progress.best_steps,
        "seed": run.config.seed,
        "hyperparameters": _unlike(run.config, base_config()),
        "overridden": _unlike(run.config, run.experiment.get_config()),
        "commit": {"framework": start.get("git"), "experiment": start.get("experiment_git")},
        "data": {"train": run.data.origin, **{split: data.origin for split, data in run.eval_data.items()}},
        "parameters": sum(variable.shape.num_elements() for variable in paths.trainable(run.model).values()),
        "wall_seconds": progress.wall_seconds(),
        "time_to_first_step_seconds": progress.time_to_first_step,
        "examples_per_second": _or_none(rate),
        "replicas": run.replicas.count,
        "compile": compiled.mode,
        "tuning": None if run.choice is None else dataclasses.asdict(run.choice),
        "traces": compiled.traces,
        "compilations": compiled.compilations,
    }


def _whole_result(value: Any) -> dict[str, Any]:
    """A result that has its counters, and numbers for what is printed of it; a KeyError names what is missing."""
    for name in ("final", "best"):
        if any(number is not None and not isinstance(number, (int, float)) for number in value[name].values()):
            raise ValueError(f"'{name}' holds what is no number")
    counters = {name: int(value[name]) for name in ("step", "updates", "skipped", "empty_terms")}
    return {**value, **counters, "status": str(value["status"])}


def _unlike(config: ConfigDict, other: ConfigDict) -> dict[str, Any]:
    """{key: value} of a config, where another one has another value or no such key; tuples are lists, as in JSON."""
    theirs = flatten(other)
    unlike = {key: value for key, value in flatten(config).items() if key not in theirs or theirs[key] != value}
    return {key: list(value) if isinstance(value, tuple) else value for key, value in unlike.items()}


def _or_none(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None
