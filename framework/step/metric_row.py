"""Where each value stands in a step's row of numbers.

layout = MetricRow(("loss", "learning_rate"), ("cross_entropy",), {"accuracy": metrics.Accuracy()})
row = layout.pack(scalars, terms, states, tf.float32)             # in the step: [layout.width]
layout.results(layout.unpack(row.numpy()))                        # on the host: {'loss': 0.21, …}
"""

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.metrics import Metric
from framework.step.forward import Terms
from framework.step.penalties import PENALTY, is_penalty

VIOLATIONS = "violations"  # guards that do not hold, see `framework/trace/guards.py`; a run ends with the first


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """A term is its (sum, weight), a metric its state, a scalar itself."""

    scalars: tuple[str, ...]
    terms: tuple[str, ...]
    metrics: Mapping[str, Metric]

    @functools.cached_property
    def widths(self) -> dict[str, int]:
        """{name: numbers}, in order."""
        widths = dict.fromkeys(self.scalars, 1)
        widths |= {term_key(name): 2 for name in self.terms}
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
        # One by one: a weight may be of another dtype than its sum, such as a count.
        parts += [tf.reshape(number, [1]) for name in self.terms for number in terms[name]]
        parts += [states[name] for name in self.metrics]
        return tf.concat([tf.cast(part, dtype) for part in parts], axis=0)

    def unpack(self, row: np.ndarray) -> dict[str, np.ndarray]:
        """{name: float64 [numbers]} of a row."""
        values, ends = row.astype(np.float64), itertools.accumulate(self.widths.values())
        return {name: values[end - width : end] for (name, width), end in zip(self.widths.items(), ends, strict=True)}

    def results(self, values: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Final numbers: terms as means (left out where there is only one: it is the loss), metrics by `result`."""
        results = {name: float(values[name][0]) for name in self.scalars if name != VIOLATIONS}
        if len(self.terms) > 1:
            means = {name: mean(values[term_key(name)]) for name in self.terms}
            results |= {term_key(name): value for name, value in means.items() if not is_penalty(name)}
            if penalties := [value for name, value in means.items() if is_penalty(name)]:
                results[term_key(PENALTY)] = sum(penalties)
        return results | {name: _number(name, metric.result(values[name])) for name, metric in self.metrics.items()}

    def check_results(self) -> None:
        """Raises UserError if a metric's `result` returns no number for a state of ones."""
        for name, metric in self.metrics.items():
            try:
                value = metric.result(np.ones(self.widths[name]))
            except Exception:  # a state that is none of this metric's; what it makes of its own will be seen
                continue
            _number(name, value)


def _number(name: str, value: Any) -> float:
    """What a metric's `result` returned, as a float."""
    if isinstance(value, tf.Tensor | tf.Variable):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.number) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, int | float):
        kind = f"of shape {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"
        raise UserError(
            f"metric '{name}': result returned a value {kind}. It must return a float, e.g. float(state[0] / state[1])."
        )
    return float(value)


def term_key(name: str) -> str:
    """The name of a term among the numbers of a step."""
    return f"loss/{name}"


def mean(state: np.ndarray) -> float:
    """Mean of a (sum, weight) pair; 0 for no weight, as in the loss."""
    return float(state[0] / state[1]) if state[1] else 0.0
