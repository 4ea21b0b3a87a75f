"""Where each value stands in a step's row of numbers.

layout = MetricRow(("loss", "learning_rate"), ("cross_entropy",), {"accuracy": metrics.Accuracy()})
row = layout.pack(scalars, terms, states, tf.float32)             # in the step: [layout.width]
layout.results(layout.unpack(row.numpy()))                        # on the host: {'loss': 0.21, …}

Metrics that are logged less often than each step, such as those with large states, have no place in the row: the step
adds their states to sums that it is given.

sums = layout.empty_sums()                                        # {'f1': float64 [n]}
additions = layout.additions(row, states)                         # in the step, of the same form
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping

import numpy as np
import tensorflow as tf

from framework.metrics import Metric, Picture, results
from framework.metrics.base import is_summed
from framework.step.forward import Terms
from framework.step.penalties import PENALTY, is_penalty

VIOLATIONS = "violations"  # guards that do not hold, see `framework/trace/guards.py`; a run ends with the first


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """The order of the numbers in a row: scalars as they are, (sum, weight) of each term, the states of metrics.

    Attributes:
      scalars: names.
      terms: names of the terms of the loss.
      metrics: {name: metric}; `row_metrics` are those with a place in the row, `summed` the others.
    """

    scalars: tuple[str, ...]
    terms: tuple[str, ...]
    metrics: Mapping[str, Metric]

    @functools.cached_property
    def row_metrics(self) -> dict[str, Metric]:
        """The metrics whose states stand in the row of their step."""
        return {name: metric for name, metric in self.metrics.items() if not is_summed(metric)}

    @functools.cached_property
    def summed(self) -> dict[str, Metric]:
        """The metrics whose states are added on the device."""
        return {name: metric for name, metric in self.metrics.items() if is_summed(metric)}

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """{name: how many numbers of the row}, in order."""
        widths = dict.fromkeys(self.scalars, 1)
        widths |= {term_key(name): 2 for name in self.terms}
        return widths | {name: len(metric.empty()) for name, metric in self.row_metrics.items()}

    @property
    def width(self) -> int:
        """How many numbers a row has."""
        return sum(self.widths.values())

    @functools.cached_property
    def judged(self) -> list[int]:
        """The places of loss and gradient norms: if one is not finite, the step does not count."""
        return [i for i, name in enumerate(self.scalars) if name == "loss" or name.startswith("gradient_norm")]

    def pack(
        self, scalars: Mapping[str, tf.Tensor], terms: Terms, states: Mapping[str, tf.Tensor], dtype: tf.DType
    ) -> tf.Tensor:
        """Returns one row: [width] of dtype."""
        if set(terms) != set(self.terms):
            raise ValueError(f"the loss returned terms {sorted(terms)}, but in training {sorted(self.terms)}")
        numbers = [scalars[name][tf.newaxis] for name in self.scalars]
        # One by one: a weight may be of another dtype than its sum, such as a count.
        numbers += [tf.reshape(number, [1]) for name in self.terms for number in terms[name]]
        numbers += [states[name] for name in self.row_metrics]
        return tf.concat([tf.cast(number, dtype) for number in numbers], axis=0)

    def additions(self, row: tf.Tensor, states: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what a step adds to the sums: the states of `summed`, or zeros if the step is not finite."""
        if not self.summed:
            return {}
        is_finite = tf.reduce_all(tf.math.is_finite(tf.gather(row, tf.constant(self.judged, tf.int32))))
        states = {name: tf.cast(states[name], tf.float64) for name in self.summed}
        return {name: tf.where(is_finite, state, tf.zeros_like(state)) for name, state in states.items()}

    def empty_sums(self) -> dict[str, np.ndarray]:
        """Returns the sums of no steps."""
        return {name: np.zeros(len(metric.empty())) for name, metric in self.summed.items()}

    def unpack(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """Returns {name: float64 [numbers]} of a row."""
        values, ends = row.astype(np.float64), itertools.accumulate(self.widths.values())
        return {name: values[end - width : end] for (name, width), end in zip(self.widths.items(), ends, strict=True)}

    def results(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Returns the final numbers of the states in `values`, metrics by their `result`.

        Terms are means; a single one is left out, because it is the loss.
        """
        numbers = {name: float(values[name][0]) for name in self.scalars if name != VIOLATIONS}
        if len(self.terms) > 1:
            means = {name: mean(values[term_key(name)]) for name in self.terms}
            numbers |= {term_key(name): value for name, value in means.items() if not is_penalty(name)}
            if penalties := [value for name, value in means.items() if is_penalty(name)]:
                numbers[term_key(PENALTY)] = sum(penalties)
        shown = self._shown(values)
        return numbers | {name: value for name, value in shown.items() if not isinstance(value, Picture)}

    def pictures(self, values: Mapping[str, np.ndarray]) -> dict[str, Picture]:
        """Returns the pictures that metrics make of their states."""
        return {name: value for name, value in self._shown(values).items() if isinstance(value, Picture)}

    def _shown(self, values: Mapping[str, np.ndarray]) -> dict[str, float | Picture]:
        shown: dict[str, float | Picture] = {}
        for name, metric in self.metrics.items():
            if name in values:
                shown |= results.of(metric, name, values[name])
        return shown


def term_key(name: str) -> str:
    """Returns the name of a term among the numbers of a step."""
    return f"loss/{name}"


def mean(state: np.ndarray) -> float:
    """Returns the mean of a (sum, weight) pair; 0 for no weight, as in the loss."""
    return float(state[0] / state[1]) if state[1] else 0.0
