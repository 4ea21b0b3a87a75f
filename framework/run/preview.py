"""Shows once, after the first block of a run: config, layers, graph, pictures of the inputs, and what counts padding.

show_inputs(run, writer)
warn_of_padding(run)
warn_of_same_data(run)

The first step comes first, because people wait for it.
"""

from collections.abc import Mapping

import numpy as np
import tensorflow as tf
from absl import logging

from framework.config import base_config, flatten
from framework.config.overrides import keys_of
from framework.data import augment
from framework.folder import OVERRIDES
from framework.run import summary
from framework.run.evaluation import untouched
from framework.run.run import Run
from framework.run.stored_config import unlike
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.step.padding import check_metrics, padded
from framework.writers import MultiWriter


def show_inputs(run: Run, writer: MultiWriter) -> None:
    """Writes the config, what it changes, the layers, the graph of the forward pass, and pictures of real inputs.

    Pictures that a chain of augmentations made are also shown after each of its members.
    """
    writer.texts(0, {"config": f"```\n{run.config}\n```"})
    writer.layers(summary.table(run))
    writer.hyperparameters(_hyperparameters(run))
    writer.graph(run.probe.graph)
    if not run.resolved.log.images:
        return
    with augment.recorded() as stages:
        batch = run.data.at(0)
    writer.images(0, _pictures(run, "", getattr(run.data, "to_pictures", dict)(batch)))
    for place, (name, stage) in enumerate(stages):
        if place < len(stages) - 1:  # the last one is the batch itself
            writer.images(0, _pictures(run, f"/{place}_{name}", stage))


def _hyperparameters(run: Run) -> dict[str, bool | float | str]:
    """Returns the seed, the values that are not the defaults of the framework or of the experiment, and what was typed.

    A trial whose value is the default by chance would have an empty cell among those of its sweep.
    """
    changed = unlike(run.config, base_config()) | unlike(run.config, run.experiment.get_config())
    path, flat = run.workdir / OVERRIDES, flatten(run.config)
    lines = path.read_text().splitlines() if path.exists() else []  # only the chief writes the file
    values = {"seed": run.config.seed, **changed, **{key: flat[key] for key in keys_of(lines) if key in flat}}
    return {key: value if isinstance(value, bool | int | float) else str(value) for key, value in values.items()}


def _pictures(run: Run, end: str, batch: Mapping[str, tf.Tensor]) -> dict[str, np.ndarray]:
    """Returns the fields of a batch that look like pictures, by the name under which they are written."""
    return {
        f"inputs/{name}{end}": tensor[: run.resolved.log.images].numpy()
        for name, tensor in batch.items()
        if (tensor.shape.rank == 3 or (tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4)))
        and min(tensor.shape[1:3]) >= 8
    }


def warn_of_padding(run: Run) -> None:
    """Warns if a term of the loss is not a weighted sum over examples, or a metric counts rows of weight 0."""
    if run.replicas.is_local and "eager" not in compile_choice.slow_convolutions(run.probe.graph, run.replicas):
        with untouched(run):
            batch = padded(run.data)
            problems = check_additive(run.loss, run.model, batch, run.resolved) or []
            problems += check_metrics(run.loss, run.model, run.metrics, batch, run.resolved)
        for sentence in problems:
            logging.warning("%s", sentence)


def warn_of_same_data(run: Run) -> None:
    """Warns of an evaluation split that holds the training data, byte for byte, and is not named 'train…'."""
    for split, batches in run.eval_data.items():
        known = batches.origin.get("sha256")
        if known is not None and known == run.data.origin.get("sha256") and not split.startswith("train"):
            logging.warning(
                "the evaluation split '%s' has the same examples as the training data: it does not show how the model"
                " does on others. Return others from make_data, or name it 'train…' in eval.splits.",
                split,
            )
