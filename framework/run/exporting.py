"""Exports the live state of a run and verifies each export on held-out examples.

reports = export_run(run)
"""

import functools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import tensorflow as tf

from framework import precision
from framework.compile import jit
from framework.config import base_split
from framework.data.batches import Batches
from framework.data.bucketed import Bucketed
from framework.errors import UserError
from framework.export.formats import select
from framework.export.runner import export_all
from framework.folder import EXPORTS, FILES
from framework.pages import report
from framework.pages.exports import ExportReport
from framework.run import own_files
from framework.run.build import on_one_device
from framework.run.evaluation import untouched
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.forward import forward


def export_run(run: Run, formats: Sequence[str] = ()) -> list[ExportReport]:
    """Exports the live state through every hook of the experiment and verifies each on held-out examples.

    The files of `make_files`, such as a vocabulary, are copied to exports/files/.

    Args:
      run: as built.
      formats: names of hooks, or of formats made of them, see `export.formats`; () are the hooks of `make_exports`.

    Raises:
      UserError: the experiment has no exports; the state is untrained, but the run folder has a checkpoint; or there
        is no such format.
    """
    check_declared(run)
    if int(run.state.step) == 0 and run.checkpoints.steps():
        raise UserError(f"the model is untrained, but {run.workdir} has a checkpoint. Call run.restore() first.")
    with run.copying():
        return _export(on_one_device(run), formats)


def check_declared(run: Run) -> None:
    """Raises UserError unless the experiment has exports."""
    if not run.exports:
        raise UserError(
            f"{run.experiment.path} declares no exports. Add make_exports(cfg), which returns a list of hooks."
        )


def _export(run: Run, formats: Sequence[str]) -> list[ExportReport]:
    hooks = select(run.exports, formats) if formats else run.exports
    folder, step = run.workdir / EXPORTS, int(run.state.step)
    own_files.write(folder / FILES, run.files)
    with run.weights(run.resolved.export.weights), untouched(run):
        batches, own = list(held_out(run)), _own_outputs(run)
        reports = export_all(
            hooks,
            run.model,
            batches,
            run.metrics,
            folder,
            step,
            own,
            run.averaged,
            functools.partial(training, run),
            keeps_others=bool(formats),
            is_fresh=run.resolved.export.process == "fresh",
            weights=run.resolved.export.weights,
            split=base_split(run.resolved.eval.splits[0]),
        )
    report.refresh(run.workdir)
    return reports


def _own_outputs(run: Run) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns a function from a batch to the outputs that an evaluation gives to metrics."""

    def outputs_of(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with precision.scope(run.resolved.train.precision):
            return dict(forward(run.loss, run.model, tensors, training=False)[1])

    # A hook may make a model round or not, which the compiled function would not follow.
    is_slow = run.state.quantize is None and "eager" in compile_choice.slow_convolutions(run.probe.graph, run.replicas)
    compiled = jit(outputs_of) if is_slow else outputs_of

    def call(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A hook may make layers compute in float32, which is not slow; the compiled function has the old dtype.
        function = compiled if precision.halved(run.model) else outputs_of
        outputs = function({name: tf.constant(array) for name, array in batch.items()})
        return {name: np.asarray(output) for name, output in outputs.items()}

    return call


def held_out(run: Run) -> Iterator[dict[str, np.ndarray]]:
    """Yields whole batches of the first evaluation split, until they have `export.examples` examples.

    Of batches in buckets, there are as many examples of each bucket, or all that it has: a pass begins with the
    shortest, which would show nothing of the others. Those of the bucket that takes most of a pass come first, because
    latencies are measured on the first batch.
    """
    left = run.resolved.export.examples
    split = run.eval_data[base_split(run.resolved.eval.splits[0])]
    if isinstance(split, Bucketed):
        yield from _of_each_bucket(split, left)
        return
    for batch in _epoch(split):
        yield batch
        if (left := left - len(batch["weight"])) <= 0:
            return


def _of_each_bucket(split: Bucketed, examples: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields so many examples, the last batch of each bucket cut, as `held_out` says."""
    counts = np.array([row["examples"] for row in split.origin["buckets"]])
    shares, buckets_left = np.zeros_like(counts), len(counts)
    for bucket in np.argsort(counts, kind="stable"):  # what a small bucket lacks, larger ones have
        shares[bucket] = min(counts[bucket], -(-(examples - shares.sum()) // buckets_left))
        buckets_left -= 1
    turns = split.timetable.buckets(0)
    for bucket in (split.busiest, *np.delete(np.arange(len(counts)), split.busiest)):
        batches = (_arrays(split, int(step)) for step in np.flatnonzero(turns == bucket))
        yield from _first(batches, shares[bucket])


def training(run: Run, examples: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields the first batches of training, augmented as they are there, until they have so many examples.

    The last batch is cut. Examples of weight 0, which are padding, do not count.
    """
    return _first(_epoch(run.data), examples)


def _first(batches: Iterator[dict[str, np.ndarray]], examples: int) -> Iterator[dict[str, np.ndarray]]:
    """Yields batches without examples of weight 0 until they have so many; the last one is cut."""
    while examples > 0 and (batch := next(batches, None)) is not None:
        is_real = batch["weight"] != 0
        cut = np.flatnonzero(is_real)[:examples]
        yield {name: array[cut] if array.shape[:1] == is_real.shape else array for name, array in batch.items()}
        examples -= len(cut)


def _epoch(batches: Batches) -> Iterator[dict[str, np.ndarray]]:
    """Yields the batches of one epoch as arrays; of a stream whose length is not known, without end."""
    step = 0
    while step < batches.steps_per_epoch:
        yield _arrays(batches, step)
        step += 1


def _arrays(batches: Batches, step: int) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in batches.at(step).items()}
