"""One compiled pass over an evaluation split.

evaluate = EvalBlock(model, loss, metrics, batches, config, terms, replicas)
evaluate()                              # {'loss': 0.07, 'accuracy': 0.98}
"""

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import precision, rng
from framework.compile import Compiled
from framework.data.batches import Batch, Batches, epoch_steps
from framework.losses import Term
from framework.metrics import Metric
from framework.replicas import Replicas
from framework.step.block import at_once, parts_of, repeat, take_parts
from framework.step.gradients import PENALTY, Loss, forward
from framework.step.layout import Layout, mean, term_key
from framework.step.probe import scopes

# There is no update here.
_MODES = {"xla_update": "graph"}


class EvalBlock:
    """One pass over an evaluation split, compiled; sums are merged over batches in float64."""

    def __init__(
        self,
        model: Any,
        loss: Loss,
        metrics: Mapping[str, Metric],
        batches: Batches,
        config: FrozenConfigDict,
        terms: tuple[str, ...],
        replicas: Replicas,
        has_collectives: bool = False,
    ) -> None:
        self.compiled = self._compiled(config.train.compile, replicas)
        self._replicas, self._parts = replicas, parts_of(batches, replicas)
        self._has_collectives = has_collectives
        self._layout = Layout((), terms, metrics)
        self._steps = epoch_steps(batches)
        self._block_steps = at_once(batches, min(config.train.block_steps, self._steps))
        self._model, self._loss, self._batches = model, loss, batches
        self._precision = config.train.precision
        self._dtype = precision.master_dtype(self._precision)
        self._key = tf.constant(rng.key(config.seed), tf.uint64)

    def __call__(self) -> dict[str, float]:
        """{'loss': …, metric: …} over the whole split, each example once."""
        totals = {term_key(name): np.zeros(2) for name in self._layout.terms}
        totals |= {name: metric.empty() for name, metric in self._layout.metrics.items()}
        for first in range(0, self._steps, self._block_steps):
            k = min(self._block_steps, self._steps - first)
            plans = []
            if not self._batches.is_resident:
                plans = [part.plan(first, k, self._block_steps) for part in self._parts]
            rows = self.compiled(tf.constant(first, tf.int64), tf.constant(k), plans).numpy()[:k]
            for row in rows:
                totals = self._merge(totals, self._layout.unpack(row))
        loss = sum(mean(totals[term_key(name)]) for name in self._layout.terms)
        return {"loss": loss, **self._layout.results(totals)}

    def compiled_by(self, mode: str) -> "EvalBlock":
        """The same pass, compiled as suits a training block compiled by `mode`."""
        other = copy.copy(self)
        other.compiled = other._compiled(mode, self._replicas)
        return other

    def _compiled(self, mode: str, replicas: Replicas) -> Compiled:
        return Compiled(self._run, _MODES.get(mode, mode), "evaluate", in_parts=replicas.strategy is not None)

    def _run(self, first: tf.Tensor, k: tf.Tensor, plans: list[Batch]) -> tf.Tensor:
        plans = plans or [part.plan(first, k, self._block_steps) for part in self._parts]

        mode = "xla" if "gradients" in self.compiled.programs and not self._has_collectives else "graph"

        def step(index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            with scopes(self._precision, self._key, first + tf.cast(index, tf.int64)):
                batch = take_parts(self._replicas, self._parts, plans, index)
                return self._replicas.total(self._row, batch, mode=mode), tf.constant(False)

        return repeat(step, k, self._block_steps, self._layout.width, self._dtype).rows

    def _row(self, index: int, batch: Batch) -> tf.Tensor:
        """Sums over the examples of one replica."""
        terms, outputs = forward(self._loss, self._model, batch, training=False)
        if PENALTY in self._layout.terms and PENALTY not in terms:  # a layer that adds one in training alone
            terms = {**terms, PENALTY: Term(tf.zeros([], self._dtype), tf.ones([], self._dtype))}
        states = {name: metric.update(outputs, batch) for name, metric in self._layout.metrics.items()}
        return self._layout.pack({}, terms, states, self._dtype)

    def _merge(self, totals: Mapping[str, np.ndarray], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        metrics = self._layout.metrics
        return {
            name: metrics[name].merge(value, row[name]) if name in metrics else value + row[name]
            for name, value in totals.items()
        }
