"""Means of loss and metrics over all steps since the last logged row.

    interval = Interval(train_block.layout, run.note)       # continues with what a checkpoint had of it
    interval.add(train_block(k, interval.sums))
    interval.means()                                        # {'mean/loss': 0.31, 'mean/accuracy': 0.9}
    interval.begin()                                        # a row was logged
    checkpoints.save(state, {**note, **interval.note()})

The sums and weights of each term are added over the steps: `mean/loss/<term>` is the sum of sums by the sum of weights,
and `mean/loss` the sum of these, as in an evaluation. The states of each metric are merged; those without a place in
the row, such as large ones, come from the block as a sum.
"""

import base64
import math
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from framework.metrics import Sums
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
      note: of the checkpoint that the run continues from; if its sums are of other terms or metrics than those of
        `layout`, the interval starts again.

    Attributes:
      sums: {metric: float64 [n]} of metrics without a place in the row, for the next block to add to.
    """

    def __init__(self, layout: MetricRow, note: Mapping[str, Any]) -> None:
        self._layout = MetricRow((), layout.terms, layout.metrics)
        self._first, self._judged = len(layout.scalars), layout.judged
        self.begin()
        self._continue(note.get(_KEY, {}))

    def begin(self) -> None:
        """Forgets all steps so far."""
        terms = [np.zeros(2) for _ in self._layout.terms]
        states = [np.asarray(metric.empty(), np.float64) for metric in self._layout.row_metrics.values()]
        self._steps = 0
        self._totals = np.concatenate([np.zeros(0), *terms, *states])
        self.sums: dict[str, np.ndarray] = self._layout.empty_sums()

    def add(self, block: Block) -> None:
        """Takes the steps of a block that was not halted, and which was given `sums`."""
        rows = block.rows[np.isfinite(block.rows[:, self._judged]).all(axis=1), self._first :].astype(np.float64)
        self._steps += len(rows)
        self.sums = dict(block.sums)
        with np.errstate(invalid="ignore", over="ignore"):
            # `accumulate` adds row after row; `sum` would add pairs, and its bits would depend on their number.
            totals = np.add.accumulate(np.concatenate([self._totals[np.newaxis], rows]), axis=0)[-1]
            end = 2 * len(self._layout.terms)
            for name, metric in self._layout.row_metrics.items():
                place = slice(end, end + self._layout.widths[name])
                end = place.stop
                if not isinstance(metric, Sums) or type(metric).merge is not Sums.merge:
                    totals[place] = self._merged(metric, self._totals[place], rows[:, place])
        self._totals = totals

    def means(self) -> dict[str, float]:
        """Returns {'mean/loss': …, 'mean/loss/<term>': … of several, 'mean/<metric>': …}; NaN for no steps."""
        totals = self._by_name() | self.sums
        loss = sum(mean(totals[term_key(name)]) for name in self._layout.terms)
        results = {"loss": loss, **self._layout.results(totals)}
        return {f"{PREFIX}{name}": value if self._steps else math.nan for name, value in results.items()}

    def note(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of the interval, to the last bit: numbers, and packed arrays for `sums`."""
        kept = {"steps": self._steps, "totals": {name: a.tolist() for name, a in self._by_name().items()}}
        sums = {name: _packed(values) for name, values in self.sums.items()}
        return {_KEY: kept | ({"sums": sums} if sums else {})}

    def _continue(self, kept: Mapping[str, Any]) -> None:
        totals = kept.get("totals")
        sums = {name: _unpacked(text) for name, text in kept.get("sums", {}).items()}
        lengths = {name: len(values) for name, values in self.sums.items()}
        if totals is None or {name: len(values) for name, values in totals.items()} != self._layout.widths:
            return
        if {name: len(values) for name, values in sums.items()} != lengths:
            return
        self._steps = kept["steps"]
        self._totals = np.concatenate([np.asarray(totals[name]) for name in self._layout.widths])
        self.sums = sums

    def _by_name(self) -> dict[str, np.ndarray]:
        return self._layout.unpack(self._totals)

    @staticmethod
    def _merged(metric: Any, total: np.ndarray, states: np.ndarray) -> np.ndarray:
        for state in states:
            total = np.asarray(metric.merge(total, state), np.float64)
        return total


def _packed(values: np.ndarray) -> str:
    """Returns float64 values as text; counts take a few bytes each, zeros next to nothing."""
    return base64.b64encode(zlib.compress(values.astype("<f8").tobytes(), 1)).decode()


def _unpacked(text: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<f8")
