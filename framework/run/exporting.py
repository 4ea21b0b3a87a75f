"""Exports the live state of a run and verifies each export on held-out examples.

reports = export_run(run)
"""

from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf

from framework import precision
from framework.compile import jit
from framework.config import base_split
from framework.data.batches import epoch_steps
from framework.errors import UserError
from framework.export.base import ExportReport
from framework.export.runner import export_all
from framework.folder import EXPORTS, FILES
from framework.run import own_files
from framework.run.build import on_one_device
from framework.run.evaluation import untouched
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.forward import forward


def export_run(run: Run) -> list[ExportReport]:
    """Exports the live state through every hook of the experiment and verifies each on held-out examples.

    The files of `make_files`, such as a vocabulary, are copied to exports/files/.

    Raises:
      UserError: the state is untrained, but the run folder has a checkpoint.
    """
    if int(run.state.step) == 0 and run.checkpoints.steps():
        raise UserError(f"the model is untrained, but {run.workdir} has a checkpoint. Call run.restore() first.")
    run = on_one_device(run)
    folder, step = run.workdir / EXPORTS, int(run.state.step)
    own_files.write(folder / FILES, run.files)
    with run.weights(run.resolved.export.weights), untouched(run):
        batches, own = list(held_out(run)), _own_outputs(run)
        return export_all(run.exports, run.model, batches, run.metrics, folder, step, own, run.averaged)


def _own_outputs(run: Run) -> Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]:
    """Returns a function from a batch to the outputs that an evaluation gives to metrics."""

    def outputs_of(tensors: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        with precision.scope(run.resolved.train.precision):
            return dict(forward(run.loss, run.model, tensors, training=False)[1])

    is_slow = "eager" in compile_choice.slow_convolutions(run.probe.graph, run.replicas)
    compiled = jit(outputs_of) if is_slow else outputs_of

    def call(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        # A hook may make layers compute in float32, which is not slow; the compiled function has the old dtype.
        function = compiled if precision.halved(run.model) else outputs_of
        outputs = function({name: tf.constant(array) for name, array in batch.items()})
        return {name: np.asarray(output) for name, output in outputs.items()}

    return call


def held_out(run: Run) -> Iterator[dict[str, np.ndarray]]:
    """Yields whole batches of the first evaluation split, until they have `export.examples` examples."""
    batches = run.eval_data[base_split(run.resolved.eval.splits[0])]
    step, left = 0, run.resolved.export.examples
    while left > 0 and step < epoch_steps(batches):
        batch = {name: tensor.numpy() for name, tensor in batches.at(step).items()}
        yield batch
        step, left = step + 1, left - len(batch["weight"])
