"""Finds draws that a resumed run would not repeat, in what is traced."""

import re
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import FrozenConfigDict

from framework.errors import UserError
from framework.layers import keras_draws

# Ops that draw from a generator of the process, or of the op, which no checkpoint holds.
_STATEFUL_DRAW = re.compile(
    r"(Random(Uniform|UniformInt|StandardNormal|Gamma|GammaGrad|Poisson|PoissonV2|Shuffle|Crop)|TruncatedNormal"
    r"|ParameterizedTruncatedNormal|Multinomial|RngReadAndSkip|RngSkip|\w+CandidateSampler|SampleDistortedBoundingBox(V2)?"
    r"|Stateful(Uniform(FullInt|Int)?|StandardNormal(V2)?|TruncatedNormal|RandomBinomial))"
)


def check_draws(graph: tf.Graph, config: FrozenConfigDict, root: Any = None) -> None:
    """Looks for draws that a resumed run would not repeat, in a graph and all functions that it calls.

    What Python code draws inside `tf.numpy_function` cannot be seen.

    Args:
      root: a model or a state, to name the layers in it that draw.

    Raises:
      UserError: there is one and `runtime.deterministic` is set. Without it, a warning is logged.
    """
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    draws = {node.name: node.op for node in nodes if _STATEFUL_DRAW.fullmatch(node.op)}
    if not draws:
        return
    name, op = next(iter(draws.items()))
    what = f"'{name}' draws random numbers ({op}) that a resumed run would not draw again"
    if config.runtime.deterministic:
        advice = (root is not None and keras_draws.advice(root, draws)) or f"{what}. Use framework.rng."
        raise UserError(f"{advice} Or type --config.runtime.deterministic=False.")
    logging.warning("%s: if this run is interrupted, it will not end in the same bits", what)
