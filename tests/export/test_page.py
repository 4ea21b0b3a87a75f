"""exports/report.html: the numbers of the reports, escaped, in one file."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from framework.export.page import page
from framework.export.report import begun
from framework.pages.exports import ExportReport, relative_error
from tests.export.fakes import Fake, Hits, X, adding, export_one, make_batch
from tests.pages.cells import Cells


def report(hook, size, p99, **changes):
    outputs = {
        "logits": {"max_error": 4 * p99, "p99_error": p99, "bound": 9.0, "range": 50.0, "agreement": 0.995},
        "ids": {"max_error": 0.0, "p99_error": 0.0, "bound": 0.0, "range": 0.0, "agreement": 1.0},
    }
    values = {
        "hook": hook,
        "step": 40,
        "path": f"{hook}/model",
        "passed": True,
        "failure": "",
        "bytes": 2 * size,
        "outputs": outputs,
        "latency_ms": {"1": {"p50": 0.25, "p99": 1.5}, "32": {"p50": 2.0, "p99": 3.25}},
        "metrics": {"accuracy": {"trained": 0.9794, "exported": 0.9793}, "auc": {"trained": None, "exported": None}},
        "examples": 10,
        "seconds": 1.0,
        "gzip_bytes": size,
        "throughput": {"1": 4000.0, "32": 16000.0},
    }
    return ExportReport(**{**values, **changes})


def test_the_table_has_the_numbers_of_the_reports():
    cells = Cells(page([report("lite", 380_000, 0.0), report("lite_int8", 94_271, 0.145)]))
    assert cells.rows == [
        [
            *("format", "accuracy", "auc", "same argmax", "max error", "p99 error", "bytes", "gzip"),
            *("p50, batch 1", "p99, batch 1", "p50, batch 32", "p99, batch 32", "examples/s, batch 32"),
        ],
        [
            *("lite", "0.9793 (0.9794)", "nan (nan)", "99.50%", "0 %", "0 %", "760,000", "380,000"),
            *("0.250", "1.500", "2.000", "3.250", "16,000"),
        ],
        [
            *("lite_int8", "0.9793 (0.9794)", "nan (nan)", "99.50%", "1.16 %", "0.29 %", "188,542", "94,271"),
            *("0.250", "1.500", "2.000", "3.250", "16,000"),
        ],
    ]


def test_errors_are_parts_of_the_range():
    assert relative_error(report("a", 1, 0.5), "p99_error") == pytest.approx(0.01)
    whole = {"ids": {"max_error": 1.0, "p99_error": 0.0, "range": 0.0, "agreement": 0.9}}
    assert relative_error(report("a", 1, 0.5, outputs=whole), "max_error") == 1.0


def circles(text):
    svg = ElementTree.fromstring(re.search(r"<svg.*</svg>", text, re.DOTALL)[0])
    return [(float(circle.get("cx")), float(circle.get("cy"))) for circle in svg.iter("circle")], svg


def test_the_chart_is_linear_in_size_and_logarithmic_in_error():
    found, svg = circles(
        page([report("a", 400, 0.0), report("b", 200, 5.0), report("c", 100, 0.5), report("d", 100, 0.05)])
    )
    (a, b, c, d) = found
    assert a[0] - b[0] == pytest.approx(b[0] - 70, abs=0.11)
    assert b[0] - c[0] == pytest.approx(c[0] - 70, abs=0.11)
    # 10 %, 1 % and 0.1 %: steps of one power of ten; 0 is a step below the least.
    assert d[1] - c[1] == pytest.approx(c[1] - b[1], abs=0.11)
    assert a[1] - d[1] == pytest.approx(d[1] - c[1], abs=0.11)
    texts = [text.text for text in svg.iter("text")]
    assert {"0", "0.1 %", "1 %", "10 %", "a", "b", "c", "d"} <= set(texts)
    assert all(0 <= right <= 760 and 0 <= down <= 340 for right, down in found)


def test_labels_of_one_place_do_not_cover_each_other():
    _, svg = circles(page([report(name, 100, 0.5) for name in "abc"]))
    places = [float(text.get("y")) for text in svg.iter("text") if text.text in ("a", "b", "c")]
    assert [low - high for high, low in zip(places, places[1:], strict=False)] == pytest.approx([14, 14])


@pytest.mark.parametrize("reports", [[], [begun("lite", 3)], [report("exact", 0, 0.0)]])
def test_pages_of_few_reports(reports):
    assert ("<svg" in page(reports)) == any(one.passed for one in reports)


def test_all_that_others_wrote_is_escaped():
    bad = '<script src="http://x/">&'
    name = {bad: {"trained": 1.0, "exported": 1.0}}
    text = page([report(bad, 10, 0.1, metrics=name), report("lite", 10, 0.1, passed=False, failure=f"failed on {bad}")])
    cells = Cells(text)
    assert bad in cells.rows[0] and cells.rows[1][0] == bad and cells.rows[2][1] == f"failed: failed on {bad}"
    assert cells.tags.isdisjoint({"script", "img", "link", "iframe", "a"})
    assert cells.attributes.isdisjoint({"src", "href", "onload"})
    circles(text)  # well-formed
    assert "default-src 'none'" in text


def test_an_export_writes_it_with_the_failures(tmp_path):
    export_one(tmp_path, Fake(), [make_batch(X)], {"hits": Hits()})
    assert Cells((tmp_path / "report.html").read_text()).rows[1][:2] == ["fake", "0.33333 (0.33333)"]
    export_one(tmp_path, Fake(spoil=adding(1)), [make_batch(X)])
    assert Cells((tmp_path / "report.html").read_text()).rows[1] == [
        "fake",
        "failed: logits: max error 1 exceeds the bound 2e-05",
    ]
