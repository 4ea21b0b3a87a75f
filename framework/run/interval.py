"""Means of loss and metrics over all steps since the last logged row.

    interval = Interval(train_block.layout, run.note)       # goes on with what a checkpoint had of it
    interval.add(block)
    interval.means()                                        # {'mean/loss': 0.31, 'mean/accuracy': 0.9}
    interval.begin()                                        # a row was logged
    checkpoints.save(state, {**note, **interval.note()})

Of each term, the sums and weights of the steps are added: `mean/loss/<term>` is the sum of sums by the sum of weights,
and `mean/loss` the sum of these, as in an evaluation. Of each metric, the states are merged.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.metrics import Mean
from framework.step.block import Block
from framework.step.metric_row import MetricRow, mean, term_key

PREFIX = "mean/"
_KEY = "interval"


class Interval:
    """The sums of the interval under way, in float64.

    Steps are added one after the other, so sums do not depend on how steps were grouped into blocks, nor on where a run
    was interrupted. A step whose loss or gradient is not finite changed nothing, and is left out.

    Args:
      layout: of a step's row.
      note: of the checkpoint that is gone on from; sums of other terms or metrics than those of `layout` are dropped.
    """

    def __init__(self, layout: MetricRow, note: Mapping[str, Any]) -> None:
        self._layout = MetricRow((), layout.terms, layout.metrics)
        self._first = len(layout.scalars)  # of the columns that are summed
        self._judged = [
            place for place, name in enumerate(layout.scalars) if name == "loss" or name.startswith("gradient_norm")
        ]
        self._steps, self._totals = 0, np.zeros(0)
        self.begin()
        kept = note.get(_KEY)
        if kept is not None and {name: len(values) for name, values in kept["totals"].items()} == self._layout.widths:
            self._steps = kept["steps"]
            self._totals = np.concatenate([np.asarray(kept["totals"][name]) for name in self._layout.widths])

    def begin(self) -> None:
        """Forgets all steps so far."""
        terms = [np.zeros(2) for _ in self._layout.terms]
        states = [np.asarray(metric.empty(), np.float64) for metric in self._layout.metrics.values()]
        self._steps, self._totals = 0, np.concatenate([np.zeros(0), *terms, *states])

    def add(self, block: Block) -> None:
        """Takes the steps of a block that was not halted."""
        rows = block.rows[np.isfinite(block.rows[:, self._judged]).all(axis=1), self._first :].astype(np.float64)
        self._steps += len(rows)
        with np.errstate(invalid="ignore", over="ignore"):
            # `accumulate` adds row after row; `sum` would add pairs, and its bits would depend on their number.
            totals = np.add.accumulate(np.concatenate([self._totals[np.newaxis], rows]), axis=0)[-1]
            end = 2 * len(self._layout.terms)
            for name, metric in self._layout.metrics.items():
                place = slice(end, end + self._layout.widths[name])
                end = place.stop
                if not isinstance(metric, Mean) or type(metric).merge is not Mean.merge:
                    totals[place] = self._merged(metric, self._totals[place], rows[:, place])
        self._totals = totals

    def means(self) -> dict[str, float]:
        """{'mean/loss': …, 'mean/loss/<term>': … where there are several, 'mean/<metric>': …}; NaN for no steps."""
        totals = self._by_name()
        loss = sum(mean(totals[term_key(name)]) for name in self._layout.terms)
        results = {"loss": loss, **self._layout.results(totals)}
        return {f"{PREFIX}{name}": value if self._steps else math.nan for name, value in results.items()}

    def note(self) -> dict[str, Any]:
        """What a checkpoint keeps of the interval; JSON has floats to the last bit."""
        return {_KEY: {"steps": self._steps, "totals": {name: a.tolist() for name, a in self._by_name().items()}}}

    def _by_name(self) -> dict[str, np.ndarray]:
        return self._layout.unpack(self._totals)

    @staticmethod
    def _merged(metric: Any, total: np.ndarray, states: np.ndarray) -> np.ndarray:
        for state in states:
            total = np.asarray(metric.merge(total, state), np.float64)
        return total
