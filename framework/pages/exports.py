"""The exports of a run: the entries of exports/report.json, their table, and a chart of size against error.

table([report]) + NOTE + chart([report])
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from framework.pages import charts, html

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 340, 70, 150, 20, 50  # of the chart, and its margins
_HEADINGS = (
    *("same argmax", "max error", "p99 error", "bytes", "gzip"),
    *("p50, batch 1", "p99, batch 1", "p50, batch 32", "p99, batch 32", "examples/s, batch 32"),
)
NOTE = (
    "Metrics are those of the artefact, and in brackets those of the trained model. Errors are of the worst output,"
    " in percent of the range that it has in the trained model. Times are in ms, one call after the other."
)


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """Reports on the artefact of one hook; `exports/report.json` is a list of reports.

    Attributes:
      hook: the hook's name.
      step: the step of the exported state.
      path: the artefact, relative to exports/; a failed one is below <hook>.failed/.
      passed: whether the artefact agrees with the trained model and was put in place.
      failure: why it did not pass, in one line; '' if it passed.
      bytes: size of the artefact.
      gzip_bytes: size of its files by gzip, together.
      outputs: for each output ('<signature>/<output>' with several signatures) `max_error` and `p99_error` (over all
        values), `bound` (of the largest error), `range` and `max_reference` (largest magnitude) of the trained model's,
        `agreement` (part of the rows with the same argmax, or of equal values; absent for floating outputs of one value
        a row, which have no argmax), `argmax_mismatches` (beyond ties) and `nonfinite` (values that are NaN or
        infinite, unlike those of the trained model; the other numbers leave them out). Outputs that are not floating
        point have an error of 0 or 1, and a bound of 0. With `Bounds`, `lost_columns` is the number of columns, places
        of the last dimension, to which their mean is nearer (by squared error) than the artefact. Of exact formats,
        `batch_dependence` is by how much an example alone differs from itself in a batch, if by 5 % of the range.
      latency_ms: for the batch sizes '1' and '32', `p50` and `p99` of one call in milliseconds.
      throughput: for the same batch sizes, examples per second at the median time of a call.
      metrics: for each metric, its value from the trained model (`trained`) and the artefact (`exported`); None if it
        is not finite.
      examples: number of held-out examples compared.
      seconds: time that writing and verifying took.
      sha256: hash of the artefact, if it passed.
      averaged: the steps of the checkpoints whose mean the exported weights are; [] if they are no mean.
      weights: 'model', or 'ema' for their moving average.
      split: the evaluation split of the held-out examples.
      holds: whose data the artefact holds beside the weights, as its signatures say.
      measured: {name: number, text or dict of them} that the hook measured itself.
    """

    hook: str
    step: int
    path: str
    passed: bool
    failure: str
    bytes: int
    outputs: dict[str, dict[str, float]]
    latency_ms: dict[str, dict[str, float]]
    metrics: dict[str, dict[str, float | None]]
    examples: int
    seconds: float
    sha256: str = ""
    averaged: list[int] = dataclasses.field(default_factory=list)
    gzip_bytes: int = 0
    throughput: dict[str, float] = dataclasses.field(default_factory=dict)
    holds: list[str] = dataclasses.field(default_factory=list)
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)
    weights: str = "model"
    split: str = ""

    @property
    def size(self) -> str:
        """Returns the size of the artefact as text: '403 kB'."""
        return f"{self.bytes / 1000:,.0f} kB" if self.bytes >= 1000 else f"{self.bytes} bytes"

    @property
    def worst_output(self) -> dict[str, float]:
        """Returns the numbers of the output whose error is the largest part of its bound."""
        return max(self.outputs.values(), key=lambda output: output["max_error"] / (output["bound"] or 1))


def table(reports: Sequence[ExportReport]) -> str:
    """Returns the table of reports."""
    metrics = [*dict.fromkeys(name for report in reports for name in report.metrics)]
    return html.table(("format", *metrics, *_HEADINGS), (_row(report, metrics) for report in reports))


def relative_error(report: ExportReport, name: str) -> float:
    """Returns `max_error` or `p99_error` of the output that is worst, as a part of its range.

    Outputs that are not floating point have no range; their error is 0 or 1.
    """
    return max((output[name] / (output["range"] or 1.0) for output in report.outputs.values()), default=0.0)


def _row(report: ExportReport, metrics: Sequence[str]) -> str:
    if not report.passed:
        cells = (
            f'<td class="failure" colspan="{len(metrics) + len(_HEADINGS)}">failed: {html.safe(report.failure)}</td>'
        )
        return f"<tr><td>{html.safe(report.hook)}</td>{cells}</tr>"
    times = [f"{report.latency_ms[size][name]:.3f}" for size in ("1", "32") for name in ("p50", "p99")]
    values = [
        report.hook,
        *(_metric(report, name) for name in metrics),
        _agreement(report),
        *(f"{100 * relative_error(report, name):.3g} %" for name in ("max_error", "p99_error")),
        f"{report.bytes:,}",
        f"{report.gzip_bytes:,}",
        *times,
        f"{report.throughput['32']:,.0f}",
    ]
    return html.row(values)


def _agreement(report: ExportReport) -> str:
    """Returns the agreement of the worst output, '99.40%'; '' if no output has one."""
    parts = [output["agreement"] for output in report.outputs.values() if "agreement" in output]
    return f"{min(parts):.2%}" if parts else ""


def _metric(report: ExportReport, name: str) -> str:
    """Returns '0.9793 (0.9794)', or '' if the format has no such metric."""
    found = report.metrics.get(name)
    if found is None:
        return ""
    exported, trained = ("nan" if found[kind] is None else f"{found[kind]:.5g}" for kind in ("exported", "trained"))
    return f"{exported} ({trained})"


def chart(reports: Sequence[ExportReport]) -> str:
    """Returns an SVG of size by gzip (linear) against the p99 error in percent (logarithmic; 0 is below the axis)."""
    if not reports:
        return ""
    errors = [100 * relative_error(report, "p99_error") for report in reports]
    powers = [math.log10(error) for error in errors if error > 0] or [0.0]
    low, high = math.floor(min(powers)) - 1, math.ceil(max(powers))  # the lowest line is that of 0
    high = max(high, low + 1)
    most = max(report.gzip_bytes for report in reports) or 1

    x = charts.Scale(0, most, _LEFT, _WIDTH - _RIGHT)
    y = charts.Scale(low, high, _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="size against error">']
    for power in range(low, high + 1):
        name = "0" if power == low else f"{10.0**power:g} %"
        parts.append(charts.line(_LEFT, _WIDTH - _RIGHT, y(power), y(power)))
        parts.append(charts.text(_LEFT - 8, y(power) + 4, name, "end"))
    for part in range(5):
        size = most * part / 4
        parts.append(charts.text(x(size), _HEIGHT - _BOTTOM + 20, f"{size / 1e3:,.4g} kB", "middle"))
    parts.append(charts.text(_LEFT, _HEIGHT - 8, "size by gzip, against p99 error in percent of the range"))
    places = [
        (x(report.gzip_bytes), y(math.log10(error) if error > 0 else low))
        for report, error in zip(reports, errors, strict=True)
    ]
    for report, (right, down), shift in zip(reports, places, _shifts(places), strict=True):
        parts.append(f'<circle cx="{right:.1f}" cy="{down:.1f}" r="5"/>')
        parts.append(charts.text(right + 9, down + 4 + shift, report.hook))
    return "\n".join(parts) + "\n</svg>\n"


def _shifts(places: Sequence[tuple[float, float]]) -> list[float]:
    """Returns how far down each label goes, so that labels of points at one place do not cover each other."""
    return [
        14.0 * sum(abs(right - other) < 60 and abs(down - below) < 10 for other, below in places[:place])
        for place, (right, down) in enumerate(places)
    ]
