"""The pages in headless Chromium: no error in its console, the numbers in its document."""

import pytest

from framework.pages import report, shown, stored
from tests.pages.browser import needs_chromium, opened
from tests.pages.folders import BAD, make
from tests.pages.test_report import PNG, planted, rows_of

pytestmark = [pytest.mark.slow, needs_chromium]


def test_the_browser_shows_a_report(tmp_path):
    path = report.write(make(tmp_path / "a"))
    document, errors = opened(path, tmp_path / "profile")
    assert errors == []
    rows = rows_of(document)
    assert rows["test/accuracy"] == ["0.625", "400", "0.75", "200", "max"] and rows["step"] == ["400 of 400"]
    assert document.count("<polyline") == 6


def test_planted_scripts_are_text(tmp_path):
    folder = planted(tmp_path)
    path = tmp_path / "planted.html"
    path.write_text(report.page(stored.read(folder), shown.Shown({BAD: (3, PNG)}, {BAD: (3, BAD)})))
    document, errors = opened(path, tmp_path / "profile")
    assert errors == [] and "<script" not in document and document.count("&lt;script") > 20


def test_the_policy_is_in_force(tmp_path):
    """A script that came through would be refused: the page says so in the console."""
    path = tmp_path / "page.html"
    path.write_text(
        report.page(stored.read(make(tmp_path / "a"))).replace("</body>", "<script>alert(1)</script></body>")
    )
    _, errors = opened(path, tmp_path / "profile")
    assert len(errors) == 1 and "Content Security Policy" in errors[0]
