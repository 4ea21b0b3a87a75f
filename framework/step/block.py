"""K steps in one compiled call, with the metrics of every one of them.

    train = TrainBlock(state, loss, metrics, batches, schedule, config)
    block = train(k)                      # k <= train.block_steps; any k, one trace, one compilation
    block.row(k - 1)                      # {'loss': 0.21, 'learning_rate': 1e-3, 'gradient_norm': 0.8, …}

With one device the whole block is one program: batches are gathered, drawn for and consumed inside it.
"""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from ml_collections import FrozenConfigDict

from framework import paths, precision, rng
from framework.compile import Compiled
from framework.config import UserError
from framework.data.batches import Batch, Batches, epoch_steps
from framework.losses import Term
from framework.metrics import Metric
from framework.optim import Schedule
from framework.state import TrainState
from framework.step.gradients import PENALTY, Loss, Terms, forward, terms_and_gradients, total
from framework.step.update import apply

# What a step reports beside terms and metrics.
SCALARS = ("loss", "learning_rate", "gradient_norm")


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where each value stands in a step's row of numbers.

    A term is its (sum, weight), a metric its state, a scalar itself.
    """

    scalars: tuple[str, ...]
    terms: tuple[str, ...]
    metrics: Mapping[str, Metric]

    @property
    def widths(self) -> dict[str, int]:
        """{name: numbers}, in order."""
        widths = dict.fromkeys(self.scalars, 1)
        widths |= {_term_key(name): 2 for name in self.terms}
        return widths | {name: len(metric.empty()) for name, metric in self.metrics.items()}

    @property
    def width(self) -> int:
        """Numbers of one row."""
        return sum(self.widths.values())

    def pack(
        self, scalars: Mapping[str, tf.Tensor], terms: Terms, states: Mapping[str, tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """One row: [width] of dtype."""
        if set(terms) != set(self.terms):
            raise ValueError(f"the loss returned terms {sorted(terms)}, but in training {sorted(self.terms)}")
        parts = [scalars[name][tf.newaxis] for name in self.scalars]
        parts += [tf.stack(list(terms[name])) for name in self.terms]
        parts += [states[name] for name in self.metrics]
        return tf.concat([tf.cast(part, dtype) for part in parts], axis=0)

    def unpack(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """{name: float64 [numbers]} of a row."""
        ends = np.cumsum(list(self.widths.values()))
        return dict(zip(self.widths, np.split(row.astype(np.float64), ends[:-1]), strict=True))

    def results(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Final numbers: terms as means (left out where there is only one: it is the loss), metrics by `result`."""
        results = {name: float(values[name][0]) for name in self.scalars}
        if len(self.terms) > 1:
            results |= {_term_key(name): _mean(values[_term_key(name)]) for name in self.terms}
        return results | {name: metric.result(values[name]) for name, metric in self.metrics.items()}


@dataclasses.dataclass(frozen=True)
class Block:
    """What a call of K steps reports.

    Attributes:
      first_step: the step counter before it.
      rows: floating [k, width].
    """

    first_step: int
    rows: np.ndarray
    layout: Layout

    def row(self, index: int) -> dict[str, float]:
        """The numbers of the step that made the counter `first_step + index + 1`."""
        return self.layout.results(self.layout.unpack(self.rows[index]))

    def first_nonfinite(self) -> int | None:
        """Index of the first step whose loss or gradient norm is not finite; None if all are."""
        starts = dict(zip(self.layout.widths, np.cumsum([0, *self.layout.widths.values()]), strict=False))
        columns = self.rows[:, [starts["loss"], starts["gradient_norm"]]]
        bad = np.flatnonzero(~np.isfinite(columns).all(axis=1))
        return int(bad[0]) if len(bad) else None


class TrainBlock:
    """The compiled training steps of one run.

    Attributes:
      block_steps: most steps of one call.
      layout: what a row of numbers holds.
      compiled: counts traces and compilations.
    """

    def __init__(
        self,
        state: TrainState,
        loss: Loss,
        metrics: Mapping[str, Metric],
        batches: Batches,
        schedule: Schedule,
        config: FrozenConfigDict,
        terms: tuple[str, ...],
    ) -> None:
        self.block_steps = min(config.train.block_steps, config.train.duration)
        self.layout = Layout(SCALARS, terms, metrics)
        self.compiled = Compiled(self._run, config.train.compile, "train")
        self._inspect = Compiled(self._gradients, "eager" if config.train.compile == "eager" else "graph", "inspect")
        self._state, self._loss, self._batches, self._schedule = state, loss, batches, schedule
        self._precision = config.train.precision
        self._dtype = precision.master_dtype(self._precision)
        self._key = tf.constant(rng.key(config.seed), tf.uint64)
        self._variables = paths.trainable(state.model)

    def __call__(self, k: int) -> Block:
        """Runs `k` steps from `state.step` and waits for their numbers."""
        if not 1 <= k <= self.block_steps:
            raise ValueError(f"k={k} is not between 1 and block_steps={self.block_steps}")
        first = int(self._state.step)
        plan = {} if self._batches.is_resident else self._batches.plan(first, k, self.block_steps)
        rows = self.compiled(tf.constant(k), plan)
        return Block(first, rows.numpy()[:k], self.layout)

    def inspect(self) -> dict[str, np.ndarray]:
        """{path: gradient} that the next step will have; changes nothing."""
        batch = {} if self._batches.is_resident else self._batches.at(int(self._state.step))
        # A forward pass in training moves averages such as BatchNorm's.
        moving = [(variable, variable.numpy()) for variable in self._state.model.variables if not variable.trainable]
        gradients = {path: gradient.numpy() for path, gradient in self._inspect(batch).items()}
        for variable, value in moving:
            variable.assign(value)
        return gradients

    def _run(self, k: tf.Tensor, plan: Batch) -> tf.Tensor:
        plan = plan or self._batches.plan(self._state.step, k, self.block_steps)

        def step(index: tf.Tensor) -> tf.Tensor:
            with self._scope():
                row = self._step(self._batches.take(plan, index))
            self._state.step.assign_add(1)
            return row

        return repeat(step, k, self.block_steps, self.layout.width, self._dtype)

    def _step(self, batch: Batch) -> tf.Tensor:
        """One step: reads and changes the state, returns its row."""
        terms, outputs, gradients = terms_and_gradients(self._loss, self._state.model, batch, self._variables)
        states = {name: metric.update(outputs, batch) for name, metric in self.layout.metrics.items()}
        scalars = {"loss": total(terms), "learning_rate": self._schedule(self._state.updates)}
        scalars["gradient_norm"] = apply(self._state.optimizer, gradients, self._variables)
        return self.layout.pack(scalars, terms, states, self._dtype)

    def _gradients(self, batch: Batch) -> dict[str, tf.Tensor]:
        with self._scope():
            batch = batch or self._batches.take(self._batches.plan(self._state.step, 1, 1), tf.constant(0))
            _, _, gradients = terms_and_gradients(self._loss, self._state.model, batch, self._variables)
        return dict(zip(self._variables, gradients, strict=True))

    def _scope(self) -> Any:
        return _scopes(self._precision, self._key, self._state.step.read_value())


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
    ) -> None:
        self.compiled = Compiled(self._run, config.train.compile, "evaluate")
        self._layout = Layout((), terms, metrics)
        self._steps = epoch_steps(batches)
        self._block_steps = min(config.train.block_steps, self._steps)
        self._model, self._loss, self._batches = model, loss, batches
        self._precision = config.train.precision
        self._dtype = precision.master_dtype(self._precision)
        self._key = tf.constant(rng.key(config.seed), tf.uint64)

    def __call__(self) -> dict[str, float]:
        """{'loss': …, metric: …} over the whole split, each example once."""
        totals = {_term_key(name): np.zeros(2) for name in self._layout.terms}
        totals |= {name: metric.empty() for name, metric in self._layout.metrics.items()}
        for first in range(0, self._steps, self._block_steps):
            k = min(self._block_steps, self._steps - first)
            plan = {} if self._batches.is_resident else self._batches.plan(first, k, self._block_steps)
            rows = self.compiled(tf.constant(first, tf.int64), tf.constant(k), plan).numpy()[:k]
            for row in rows:
                totals = self._merge(totals, self._layout.unpack(row))
        loss = sum(_mean(totals[_term_key(name)]) for name in self._layout.terms)
        return {"loss": loss, **self._layout.results(totals)}

    def _run(self, first: tf.Tensor, k: tf.Tensor, plan: Batch) -> tf.Tensor:
        plan = plan or self._batches.plan(first, k, self._block_steps)

        def step(index: tf.Tensor) -> tf.Tensor:
            with _scopes(self._precision, self._key, first + tf.cast(index, tf.int64)):
                batch = self._batches.take(plan, index)
                terms, outputs = forward(self._loss, self._model, batch, training=False)
            if PENALTY in self._layout.terms and PENALTY not in terms:  # a layer that adds one in training alone
                terms = {**terms, PENALTY: Term(tf.zeros([], self._dtype), tf.ones([], self._dtype))}
            states = {name: metric.update(outputs, batch) for name, metric in self._layout.metrics.items()}
            return self._layout.pack({}, terms, states, self._dtype)

        return repeat(step, k, self._block_steps, self._layout.width, self._dtype)

    def _merge(self, totals: Mapping[str, np.ndarray], row: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        metrics = self._layout.metrics
        return {
            name: metrics[name].merge(value, row[name]) if name in metrics else value + row[name]
            for name, value in totals.items()
        }


def repeat(step: Callable[[tf.Tensor], tf.Tensor], k: tf.Tensor, size: int, width: int, dtype: tf.DType) -> tf.Tensor:
    """Calls `step(0) … step(k - 1)` and returns their rows in a buffer [size, width].

    The buffer's size is fixed and `k` is a tensor, so no `k` recompiles. (A TensorArray sized by `k`, or autograph's
    `for i in tf.range(k)`, makes XLA compile anew for every `k`, silently.)
    """

    def body(index: tf.Tensor, rows: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return index + 1, tf.tensor_scatter_nd_update(rows, [[index]], step(index)[tf.newaxis])

    start = (tf.constant(0), tf.zeros([size, width], dtype))
    return tf.while_loop(lambda index, rows: index < k, body, start, parallel_iterations=1)[1]


@dataclasses.dataclass(frozen=True)
class Probe:
    """What a loss gives, found by tracing it once; this also creates the model's variables.

    Attributes:
      terms: names of its terms, the penalty included.
      batch, outputs: {name: TensorSpec}.
    """

    terms: tuple[str, ...]
    batch: Mapping[str, tf.TensorSpec]
    outputs: Mapping[str, tf.TensorSpec]
    graph: tf.Graph


def probe(loss: Loss, model: Any, metrics: Mapping[str, Metric], batches: Batches, config: FrozenConfigDict) -> Probe:
    """Traces the forward pass and the metrics of one training batch; nothing is run.

    Raises:
      UserError: a loss, metric or random draw that the step cannot take.
    """

    def trace() -> Any:
        with _scopes(config.train.precision, 0, tf.constant(0, tf.int64)):
            batch = batches.at(0)
            terms, outputs = forward(loss, model, batch, training=True)
            for name, metric in metrics.items():
                _check_metric(name, metric, metric.update(outputs, batch))
        return dict(terms), dict(batch), dict(outputs)

    function = tf.function(trace, autograph=False).get_concrete_function()
    if config.runtime.deterministic:
        _refuse_stateful_draws(function.graph)
    terms, batch, outputs = function.structured_outputs
    return Probe(tuple(terms), batch, outputs, function.graph)


def _check_metric(name: str, metric: Metric, state: tf.Tensor) -> None:
    if state.shape.as_list() != [len(metric.empty())]:
        raise UserError(
            f"metric '{name}': update returned shape {state.shape}, but empty() has {len(metric.empty())} numbers."
            " A state is a vector of fixed length, e.g. tf.stack([sum, weight])."
        )


# Ops that draw from a generator of the process, which no checkpoint holds.
_STATEFUL_DRAW = re.compile(
    r"(Random(Uniform|UniformInt|StandardNormal|Gamma|GammaGrad|Poisson|PoissonV2|Shuffle|Crop)|TruncatedNormal"
    r"|ParameterizedTruncatedNormal|Multinomial|RngReadAndSkip|RngSkip"
    r"|Stateful(Uniform(FullInt|Int)?|StandardNormal(V2)?|TruncatedNormal|RandomBinomial))"
)


def _refuse_stateful_draws(graph: tf.Graph) -> None:
    definition = graph.as_graph_def()
    nodes = [*definition.node, *(node for function in definition.library.function for node in function.node_def)]
    for node in nodes:
        if _STATEFUL_DRAW.fullmatch(node.op):
            raise UserError(
                f"'{node.name}' draws random numbers ({node.op}) that a resumed run would not draw again. Use"
                " framework.layers.Dropout or framework.rng, or --config.runtime.deterministic=False."
            )


def _scopes(precision_name: str, key: Any, step: tf.Tensor) -> Any:
    """The precision and randomness scopes of one step, as one context."""
    stack = contextlib.ExitStack()
    stack.enter_context(precision.scope(precision_name))
    stack.enter_context(rng.scope(key, step))
    return stack


def _term_key(name: str) -> str:
    return f"loss/{name}"


def _mean(state: np.ndarray) -> float:
    """Mean of a (sum, weight) pair; 0 for no weight, as in the loss."""
    return float(state[0] / state[1]) if state[1] else 0.0
