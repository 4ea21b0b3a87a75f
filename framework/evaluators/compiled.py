"""A function of the model, compiled once and computed on the examples of an evaluation split.

def decoded(model, batch):
    return {"ids": framework.decode(model.step, model.start(batch["source"], 64), BEGIN, END, 64).ids[:, 0]}

decode = Compiled(decoded)
for batch, outputs in decode(run, "test"):
    ...
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from framework import compat
from framework.compile import HANDFUL, Traces
from framework.evaluators.base import Arrays, examples, weights_of


class Compiled:
    """Yields what a function of the model and a batch returns, for the batches of a split, as `predictions` does.

    Make one in `make_evaluators`, so that the graph is traced at the first evaluation alone. If it is traced more than
    a handful of times, a warning names what changes in the batches.

    Args:
      function: (model, {field: tensor}) -> {name: tensor}. It is compiled as a graph whose dimensions are free once two
        batches differ in them; without AutoGraph, so loops over tensors are `tf.while_loop` and choices `tf.where`.
    """

    def __init__(self, function: Callable[[Any, dict[str, tf.Tensor]], Mapping[str, tf.Tensor]]) -> None:
        self._function = function
        self._model: Any = None
        self._graph: Any = None
        self._traces = Traces()
        self._is_told = False

    def __call__(
        self, run: Any, split: str | None = None, limit: int | None = None
    ) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        """Yields (batch, outputs) of a split in the order of a pass, without padding, as NumPy arrays.

        Args and errors are those of `predictions`.
        """
        batches, weights = examples(run, split, limit), weights_of(run, split)
        if self._model is not run.model:
            self._model = run.model
            self._traces = Traces()

            def traced(batch: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
                self._traces.add({"batch": batch})
                return dict(self._function(run.model, batch))

            # AutoGraph would read the function's file again, which may have been edited since the start of the run.
            graph = tf.function(traced, reduce_retracing=True, autograph=False)
            self._graph = compat.without_trace_warning(graph)
        return self._outputs(run, weights, batches)

    def _outputs(self, run: Any, weights: str, batches: Iterator[Arrays]) -> Iterator[tuple[Arrays, dict[str, Any]]]:
        for batch in batches:
            with run.weights(weights):
                outputs = self._graph({name: tf.constant(array) for name, array in batch.items()})
            self._warn_of_traces()
            yield batch, {name: output.numpy() for name, output in outputs.items()}

    def _warn_of_traces(self) -> None:
        """Logs a warning, once, if the function was traced more than a handful of times."""
        if self._is_told or len(self._traces) <= HANDFUL:
            return
        self._is_told = True
        name = getattr(self._function, "__name__", type(self._function).__name__)
        logging.warning(
            "evaluators.Compiled(%s) was traced %d times, and a trace takes seconds (%s). Give each batch the same"
            " fields and dtypes.",
            name,
            len(self._traces),
            self._traces.why,
        )
