"""Shows once, after the first block of a run: config, graph, pictures of the inputs, and a loss that is not additive.

show_inputs(run, writer)
warn_unless_additive(run)

The first step comes first, because people wait for it.
"""

from absl import logging

from framework.run.evaluation import untouched
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.writers import MultiWriter


def show_inputs(run: Run, writer: MultiWriter) -> None:
    """Writes the config, the graph of the forward pass, and pictures of real inputs."""
    writer.texts(0, {"config": f"```\n{run.config}\n```"})
    writer.graph(run.probe.graph)
    for name, tensor in run.data.at(0).items():
        is_picture = tensor.shape.rank == 3 or (tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4))
        if run.resolved.log.images and is_picture and min(tensor.shape[1:3]) >= 8:
            writer.images(0, {f"inputs/{name}": tensor[: run.resolved.log.images].numpy()})


def warn_unless_additive(run: Run) -> None:
    """Warns if a term of the loss is not a weighted sum over examples."""
    if run.replicas.is_local and "eager" not in compile_choice.slow_convolutions(run.probe.graph, run.replicas):
        with untouched(run):
            problems = check_additive(run.loss, run.model, run.data.at(0), run.resolved)
        for sentence in problems or ():
            logging.warning("%s", sentence)
