"""What a run shows once, after its first block: config, graph, pictures of the inputs; a loss that is not additive.

show_inputs(run, writer)
warn_unless_additive(run)
"""

from absl import logging

from framework.run.evaluation import untouched
from framework.run.run import Run
from framework.step import compile_choice
from framework.step.additivity import check_additive
from framework.writers import MultiWriter


def show_inputs(run: Run, writer: MultiWriter) -> None:
    """Once a run: the config, the graph of the forward pass, and real input pictures."""
    writer.texts(0, {"config": f"```\n{run.config}\n```"})
    writer.graph(run.probe.graph)
    for name, tensor in run.data.at(0).items():
        is_picture = tensor.shape.rank == 3 or (tensor.shape.rank == 4 and tensor.shape[-1] in (1, 3, 4))
        if run.resolved.log.images and is_picture and min(tensor.shape[1:3]) >= 8:
            writer.images(0, {f"inputs/{name}": tensor[: run.resolved.log.images].numpy()})


def warn_unless_additive(run: Run) -> None:
    """Once a run: says so if a term of the loss is no weighted sum over examples."""
    if run.replicas.is_local and "eager" not in compile_choice.slow_convolutions(run.probe.graph, run.replicas):
        with untouched(run):
            found = check_additive(run.loss, run.model, run.data.at(0), run.resolved)
        for sentence in found or ():
            logging.warning("%s", sentence)
