"""The part of `--mode=check` that finds at the start what would fail after hours: each thing is done once, and undone.

A checkpoint is written and read back, steps are timed, each split and each evaluator is evaluated, and each hook acts.
This happens on a copy of the run, whose folder is a temporary one beside the run folder. By the times and sizes the
whole run is forecast, and compared with the free disk. Writers of `make_writers` are left out: they begin with a run.

    status = main(run, exported)
"""

import contextlib
import dataclasses
import functools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from framework import files
from framework.checkpoint.checkpoints import digest, read_arrays
from framework.checkpoint.storage import CorruptError
from framework.config import AVERAGED
from framework.data.bucketed import mean_size
from framework.distribute import lifeline
from framework.distribute.memory import host_memory, peak_memory
from framework.errors import RunError, UserError
from framework.evaluators import Report
from framework.folder import CHECKPOINTS, CURVES, LOCK, METRICS
from framework.pages import report
from framework.pages.report import duration
from framework.run import forecast
from framework.run.built_in import built_in_hooks, take_evaluation
from framework.run.hooks import BUILT_IN, Context, Hook
from framework.run.interval import Interval
from framework.run.own_hooks import OwnHooks, own_hooks
from framework.run.preview import show_inputs
from framework.run.progress import Progress
from framework.run.reports import report_of
from framework.run.run import Run
from framework.run.snapshot import Snapshot
from framework.step import compile_choice
from framework.step.block import Block
from framework.step.compile_choice import CompileChoice
from framework.step.evaluation import EvalBlock
from framework.writers import Jsonl, MultiWriter, TensorBoard

_SECONDS = 0.5  # of steps, and of the batches of a split, that are timed
_QUICK = 1.0  # seconds; a hook that takes longer is not called again, to be timed without what its first call compiled
_PREFIX = ".check-"  # of the temporary folder
_ROUNDS = 5  # calls of the block; those of a new bucket compile and are not timed
_EVALUATE, _SAVE = BUILT_IN[2:]


@dataclasses.dataclass
class Rehearsal:
    """What the rehearsal of a run has found so far.

    Attributes:
      run: a copy of the run, whose folder is a temporary one.
      restore: puts the state back.
      progress: the time of steps.
      interval: the sums of the steps.
      block: the newest steps; None if none could be taken.
      report: of the evaluation; None if a part of it failed.
      seconds: {hook: seconds of one time}; sizes: {hook: bytes that one time adds to the run folder}.
      once: bytes of what a run writes once, such as its config, the copies of its code, the graph, and report.html.
      problems: how many parts failed.
    """

    run: Run
    restore: Callable[[], None]
    progress: Progress
    interval: Interval
    block: Block | None = None
    report: Report | None = None
    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    once: int = 0
    problems: int = 0

    def fail(self, problem: object) -> None:
        """Prints what failed, and counts it."""
        self.problems += 1
        print(f"  FAILED: {str(problem).removesuffix(' --debug shows the traceback.')}")

    def took(self, hook: str, seconds: float, size: int = 0) -> None:
        """Adds to what one time of a hook takes."""
        self.seconds[hook] = self.seconds.get(hook, 0.0) + seconds
        self.sizes[hook] = self.sizes.get(hook, 0) + size


def main(run: Run, exported: int) -> int:
    """Prints the rehearsal; returns 1 if a part of it failed.

    Args:
      run: as built; its state is the same afterwards.
      exported: bytes of the exports of the run.
    """
    if not run.replicas.is_local:
        print("Rehearsal of checkpoint, steps, evaluation and hooks\n  none: the replicas are in several processes")
        return 0
    with _rehearsing(run) as trial:
        own = own_hooks(trial.run)
        print("Checkpoint, written and read back")
        _checkpoint(trial, own)
        print("\nSteps, timed and undone")
        _steps(trial)
        print("\nEvaluation")
        _evaluation(trial)
        print("\nHooks, each called and undone")
        hooks = [*built_in_hooks(trial.run, trial.interval), *own.hooks]
        _hooks(trial, hooks)
        print()
        times = _times(trial.run, hooks)
        wall = _forecast(trial, times)
        print()
        _disk(trial, run.workdir, times, exported, wall)
    return int(trial.problems > 0)


@contextlib.contextmanager
def _rehearsing(run: Run) -> Iterator[Rehearsal]:
    """Gives a copy of the run in a temporary folder on the disk of the run folder; puts the state back at the end."""
    restore = compile_choice.saved(run.state)
    beside = _existing(run.workdir)
    _remove_left(beside)
    with (
        lifeline.terminated_as_interrupted(),
        tempfile.TemporaryDirectory(prefix=_PREFIX, dir=beside) as folder,
        files.held(Path(folder) / LOCK, lambda holder: f"{folder} is of process {holder}"),
    ):
        copy = dataclasses.replace(run, workdir=Path(folder), remote=None)
        if run.config.train.compile == "auto":  # the mode that training tries first
            mode = compile_choice.candidates(run.resolved, run.probe, run.replicas)[0]
            copy.compile_by(CompileChoice(mode, {}, "not tuned"))
        progress = Progress(mean_size(run.data), time.monotonic(), {}, run.modes)
        progress.time_to_first_step = 0.0  # its first block is not the one that compiles
        try:
            yield Rehearsal(copy, restore, progress, Interval(copy.train_block.layout, {}))
        finally:
            restore()


def _remove_left(beside: Path) -> None:
    """Removes the folders of checks that were killed, by their locks, which end with a process."""
    for folder in beside.glob(f"{_PREFIX}*"):
        if (folder / LOCK).is_file() and not files.holder(folder / LOCK):
            shutil.rmtree(folder, ignore_errors=True)


def _checkpoint(trial: Rehearsal, own: OwnHooks) -> None:
    """Writes a checkpoint as training does, and compares the bits that are read back."""
    run = trial.run
    try:
        begin = time.monotonic()
        path = run.checkpoints.save(run.state, own.note(), run.facts())
        run.checkpoints.close()
        written = time.monotonic()
        arrays = read_arrays(path)
        read = time.monotonic()
    except (RunError, UserError, CorruptError) as error:
        trial.fail(error)
        return
    size = _bytes_of(path)
    trial.took(_SAVE, written - begin, size)
    if digest(arrays) != digest(run.state):
        trial.fail("other bits were read than were written: the disk or the memory of this machine is broken.")
        return
    print(f"  {_size(size)}, written in {_time(written - begin)}, read in {_time(read - written)}: the same bits")


def _steps(trial: Rehearsal) -> None:
    """Takes steps as training will, and times all but those that compile."""
    run, progress = trial.run, trial.progress
    is_new = not run.train_block.compiled.calls
    try:
        begin = time.monotonic()
        is_taken = _take(trial, 1)
        compiling, k = time.monotonic() - begin, 1
        for _ in range(_ROUNDS):
            if not is_taken or progress.total.seconds >= _SECONDS:
                break
            is_taken = _take(trial, k, progress.timed)
            if progress.step_seconds:
                k = max(1, min(run.train_block.block_steps, int(_SECONDS / progress.step_seconds)))
    except UserError as error:
        trial.fail(error)
        return
    total = progress.total
    if total.steps:
        waited = f"; {total.data_wait:.0%} of it waiting for data" if total.data_wait else ""
        speed = f"{total.steps / total.seconds:,.4g} steps/s, {_time(progress.step_seconds)} each{waited}"
        print(f"  {total.steps:,} steps, train.compile={run.train_block.compiled.mode}: {speed}")
        if is_new:
            print(f"  the first one, which compiles: {_time(compiling)}")


def _take(trial: Rehearsal, k: int, call: Callable[..., Block] = lambda block, k: block(k)) -> bool:
    """Takes steps, by `call(block, k)`; returns whether training would go on after them."""
    if int(trial.run.state.step) + k > trial.run.total_steps:
        trial.restore()
    numbers = call(lambda k: trial.run.train_block(k, trial.interval.sums), k)
    if numbers.is_halted:
        row = numbers.row(len(numbers.rows) - 1)
        bad = numbers.first_step + len(numbers.rows)
        trial.fail(
            f"training would end at step {bad}: the loss or a weight is not finite there (loss={row['loss']:.6g})."
            " Try a lower --config.schedule.learning_rate."
        )
        return False
    trial.block = numbers
    trial.interval.add(numbers)
    return True


def _evaluation(trial: Rehearsal) -> None:
    """Evaluates the first batches of each split, and calls each evaluator once."""
    run, before = trial.run, trial.problems
    found: dict[str, dict] = {"scalars": {}, "images": {}, "texts": {}}
    for split, block in run.eval_blocks.items():
        try:
            with run.weights("ema" if split.endswith(AVERAGED) else "model"):
                results, count, seconds = _pass(block)
        except UserError as error:
            trial.fail(error)
            continue
        trial.took(_EVALUATE, seconds)
        found["scalars"] |= {f"{split}/{name}": value for name, value in results.items()}
        some = "" if count == block.steps else f"; {count:,} were timed"
        print(f"  {split:<24} {block.steps:,} batches in {_time(seconds)}{some}")
        if block.problem:
            print(f"    not finite: {block.problem}")
    snapshot = Snapshot(run.state)
    for name, evaluator in run.evaluators.items():
        begin = time.monotonic()
        try:
            report = report_of(run, name, evaluator, snapshot)
        except UserError as error:
            trial.fail(error)
            continue
        trial.took(_EVALUATE, time.monotonic() - begin)
        print(f"  {name:<24} its evaluator, the first time: {_time(time.monotonic() - begin)}")
        for kind, values in found.items():
            values |= {f"{name}/{key}": value for key, value in getattr(report, kind).items()}
    if trial.problems == before:
        trial.report = Report(**found)


def _pass(block: EvalBlock) -> tuple[dict[str, float], int, float]:
    """Returns the results of the first batches of a split, their number, and the seconds that a whole pass takes."""
    block(most=1)  # compiles
    begin = time.monotonic()
    results = block(most=1)
    one = time.monotonic() - begin
    count = max(1, min(block.steps, int(_SECONDS / one)))
    if count == 1:
        return results, count, one * block.steps
    for _ in range(2):
        traces, begin = block.compiled.traces, time.monotonic()
        results = block(most=count)
        seconds = time.monotonic() - begin
        if block.compiled.traces == traces:  # else batches of another bucket were compiled
            break
    return results, count, seconds + (block.steps - count) * max(0.0, seconds - one) / (count - 1)


def _hooks(trial: Rehearsal, hooks: Sequence[Hook]) -> None:
    """Calls each hook as after a step, with writers of the temporary folder."""
    run = trial.run
    if trial.block is None:
        print("  none: there is no step after which they could act")
        return
    before = _bytes_of(run.workdir)
    with MultiWriter([Jsonl(run.workdir / METRICS, 0), TensorBoard(run.workdir / CURVES, 0)]) as writer:
        writer.open(run.workdir, 0)
        show_inputs(run, writer)
        writer.flush()
        trial.once += _bytes_of(run.workdir) - before
        step = trial.block.first_step + len(trial.block.rows)
        context = Context(step, trial.block, run, writer, trial.progress)
        for hook in hooks:
            if not forecast.times_due(hook, run.total_steps):
                continue
            if hook.name == _EVALUATE and trial.report is not None:
                _call(
                    trial, dataclasses.replace(hook, action=functools.partial(take_evaluation, trial.report)), context
                )
            elif hook.name not in (_EVALUATE, _SAVE):  # a save is rehearsed already
                _call(trial, hook, context)
    _header_and_page(trial)


def _header_and_page(trial: Rehearsal) -> None:
    """Writes what a run writes at its start and its end; after the hooks, which note failures in a run folder."""
    run = trial.run
    before = _bytes_of(run.workdir)
    try:
        run.write_header(())
        report.refresh(run.workdir)
    except OSError as error:
        trial.fail(f"config, code or report cannot be written: {error}")
    trial.once += _bytes_of(run.workdir) - before


def _call(trial: Rehearsal, hook: Hook, context: Context) -> None:
    """Calls a hook, a second time if it is quick; tells its time, and undoes what it changes of the state."""
    run, snapshot = trial.run, Snapshot(trial.run.state)
    changed: list[str] = []
    before, seconds = _bytes_of(run.workdir), 0.0
    try:
        for _ in range(2 if forecast.times_due(hook, run.total_steps) > 1 else 1):
            begin = time.monotonic()
            hook.action(context)
            seconds = time.monotonic() - begin
            context.writer.flush()
            changed = snapshot.put_back()
            size = max(0, _bytes_of(run.workdir) - before)
            before += size
            if seconds > _QUICK:
                break
    except (UserError, RunError) as error:
        snapshot.put_back()
        trial.fail(error)
        return
    trial.took(hook.name, seconds, size)
    print(f"  {hook.name:<24} {_time(seconds)}")
    if changed and hook.name not in BUILT_IN:
        print(f"    changes {', '.join(changed[:3])}: a replayed step would not have what a hook changes")


def _times(run: Run, hooks: Sequence[Hook]) -> dict[str, int]:
    """Returns {hook: how often it acts in the whole run}; of saves, the most there can be."""
    by_name = {hook.name: hook for hook in hooks}
    times = {hook.name: forecast.times_due(hook, run.total_steps) for hook in hooks}
    if run.resolved.checkpoint.best_metric:  # each evaluation may be the best so far
        times[_SAVE] = forecast.times_either(by_name[_EVALUATE], by_name[_SAVE], run.total_steps)
    return times


def _forecast(trial: Rehearsal, times: dict[str, int]) -> float:
    """Prints how long the whole run will take, and of what; returns the seconds."""
    rows = [("steps", trial.run.total_steps, trial.progress.step_seconds)]
    rows += [(name, times[name], seconds) for name, seconds in trial.seconds.items()]
    wall = sum(count * seconds for _, count, seconds in rows)
    print(f"The whole run, at these times: {trial.run.total_steps:,} steps in {duration(wall)}, without its start")
    for name, count, seconds in rows:
        print(f"  {name:<24} {count:>11,} x {_time(seconds):<9} {duration(count * seconds)}")
    most, memory = peak_memory(), host_memory()
    if most is not None and memory is not None:
        print(f"  {'memory so far':<24} at most {_size(most)}, of the {_size(memory)} of this machine")
    return wall


def _disk(trial: Rehearsal, workdir: Path, times: dict[str, int], exported: int, wall: float) -> None:
    """Prints what the run will write, and fails if it does not fit on the disk."""
    count = forecast.checkpoints_at_once(trial.run.resolved.checkpoint, times[_SAVE], wall)
    checkpoints = count * trial.sizes.get(_SAVE, 0)
    curves = sum(times[name] * size for name, size in trial.sizes.items() if name != _SAVE)
    needed, free = checkpoints + exported + curves + trial.once, shutil.disk_usage(_existing(workdir)).free
    there = min(checkpoints, _bytes_of(workdir / CHECKPOINTS))
    print(f"Disk: {_size(needed)} for the run, {_size(free)} free")
    print(f"  {'checkpoints':<24} {_size(checkpoints)}: at most {count} at a time, the one under way among them")
    print(f"  {'exports':<24} {_size(exported)}")
    print(f"  {'rows, curves and others':<24} {_size(curves)}")
    print(f"  {'config, code and report':<24} {_size(trial.once)}")
    if needed - there > free:
        trial.fail(
            f"the run would need {_size(needed - there)} more, and {_size(free)} are free where {workdir} is."
            " Make room, or type a --workdir on another disk or a smaller --config.checkpoint.keep."
        )


def _existing(path: Path) -> Path:
    """Returns the folder itself or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents, Path()) if folder.is_dir())


def _bytes_of(folder: Path) -> int:
    """Returns the bytes of all files below a folder, which need not exist."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _size(size: float) -> str:
    """Returns bytes as text: '403 kB', '1.2 GB'."""
    for unit, bytes_of_unit in (("GB", 1e9), ("MB", 1e6)):
        if size >= bytes_of_unit:
            return f"{size / bytes_of_unit:,.1f} {unit}"
    return f"{size / 1000:,.0f} kB"


def _time(seconds: float) -> str:
    """Returns a short time as text: '0.31 ms', '4.2 s'."""
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else duration(seconds)
