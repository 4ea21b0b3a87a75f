"""exports/report.html: the formats of an export in one table, and a chart of size against error.

    (folder / "report.html").write_text(page([report]))

The page is one file without scripts, and asks nothing of the network.
"""

import html
import math
from collections.abc import Sequence

from framework.export.base import ExportReport

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Exports</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.failure { text-align: left } td.failure { color: #a00; max-width: 60em }
svg text { font-size: 12px; fill: #444 } svg line { stroke: #ddd } svg circle { fill: #1667a8 }
</style></head><body>
"""
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 760, 340, 70, 150, 20, 50  # of the chart, and its margins
_HEADINGS = (
    *("same argmax", "max error", "p99 error", "bytes", "gzip"),
    *("p50, batch 1", "p99, batch 1", "p50, batch 32", "p99, batch 32", "examples/s, batch 32"),
)


def page(reports: Sequence[ExportReport]) -> str:
    """Returns the page of reports."""
    metrics = [*dict.fromkeys(name for report in reports for name in report.metrics)]
    steps = ", ".join(str(step) for step in dict.fromkeys(report.step for report in reports))
    head = "".join(f"<th>{_safe(name)}</th>" for name in ("format", *metrics, *_HEADINGS))
    rows = "\n".join(_row(report, metrics) for report in reports)
    note = (
        "Metrics are those of the artefact, and in brackets those of the trained model. Errors are of the worst output,"
        " in percent of the range that it has in the trained model. Times are in ms, one call after the other."
    )
    table = f"<table><thead><tr>{head}</tr></thead><tbody>\n{rows}\n</tbody></table>"
    chart = _chart([report for report in reports if report.passed])
    return f"{_HEAD}<h1>Exports of step {steps}</h1>\n{table}\n<p>{note}</p>\n{chart}</body></html>\n"


def relative_error(report: ExportReport, name: str) -> float:
    """Returns `max_error` or `p99_error` of the output that is worst, as a part of its range.

    Outputs that are not floating point have no range; their error is 0 or 1.
    """
    return max((output[name] / (output["range"] or 1.0) for output in report.outputs.values()), default=0.0)


def _row(report: ExportReport, metrics: Sequence[str]) -> str:
    if not report.passed:
        cells = f'<td class="failure" colspan="{len(metrics) + len(_HEADINGS)}">failed: {_safe(report.failure)}</td>'
        return f"<tr><td>{_safe(report.hook)}</td>{cells}</tr>"
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
    return "<tr>" + "".join(f"<td>{_safe(value)}</td>" for value in values) + "</tr>"


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


def _chart(reports: Sequence[ExportReport]) -> str:
    """Returns an SVG of size by gzip (linear) against the p99 error in percent (logarithmic; 0 is below the axis)."""
    if not reports:
        return ""
    errors = [100 * relative_error(report, "p99_error") for report in reports]
    powers = [math.log10(error) for error in errors if error > 0] or [0.0]
    low, high = math.floor(min(powers)) - 1, math.ceil(max(powers))  # the lowest line is that of 0
    high = max(high, low + 1)
    most = max(report.gzip_bytes for report in reports) or 1

    def x(size: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * size / most

    def y(power: float) -> float:
        return _TOP + (_HEIGHT - _TOP - _BOTTOM) * (high - power) / (high - low)

    parts = [f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="size against error">']
    for power in range(low, high + 1):
        name = "0" if power == low else f"{10.0**power:g} %"
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(power):.1f}" y2="{y(power):.1f}"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y(power) + 4:.1f}" text-anchor="end">{name}</text>')
    for part in range(5):
        parts.append(
            f'<text x="{x(most * part / 4):.1f}" y="{_HEIGHT - _BOTTOM + 20}" text-anchor="middle">'
            f"{most * part / 4e3:,.4g} kB</text>"
        )
    parts.append(f'<text x="{_LEFT}" y="{_HEIGHT - 8}">size by gzip, against p99 error in percent of the range</text>')
    places = [
        (x(report.gzip_bytes), y(math.log10(error) if error > 0 else low))
        for report, error in zip(reports, errors, strict=True)
    ]
    for report, (right, down), shift in zip(reports, places, _shifts(places), strict=True):
        parts.append(f'<circle cx="{right:.1f}" cy="{down:.1f}" r="5"/>')
        parts.append(f'<text x="{right + 9:.1f}" y="{down + 4 + shift:.1f}">{_safe(report.hook)}</text>')
    return "\n".join(parts) + "\n</svg>\n"


def _shifts(places: Sequence[tuple[float, float]]) -> list[float]:
    """Returns how far down each label goes, so that labels of points at one place do not cover each other."""
    return [
        14.0 * sum(abs(right - other) < 60 and abs(down - below) < 10 for other, below in places[:place])
        for place, (right, down) in enumerate(places)
    ]


def _safe(value: str) -> str:
    return html.escape(value)
