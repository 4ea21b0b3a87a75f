"""exports/report.html: the formats of an export in one table, and a chart of size against error.

(folder / "report.html").write_text(page([report]))
"""

from collections.abc import Sequence

from framework.pages import exports, html
from framework.pages.exports import ExportReport


def page(reports: Sequence[ExportReport]) -> str:
    """Returns the page of reports."""
    steps = ", ".join(str(step) for step in dict.fromkeys(report.step for report in reports))
    chart = exports.chart([report for report in reports if report.passed])
    title = f"<h1>Exports of step {steps}</h1>"
    return html.document("Exports", f"{title}\n{exports.table(reports)}\n<p>{exports.NOTE}</p>\n{chart}")
