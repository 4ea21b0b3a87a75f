"""The parts of an HTML page: its head, escaped text, tables.

    document("Exports", table(["format", "bytes"], [row(["lite", "403,000"])]))

A page is one file without scripts, and its policy forbids the browser to load anything from a network.
"""

import html
import re
from collections.abc import Iterable

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_STYLE = """\
body { font: 14px/1.4 system-ui, sans-serif; margin: 2em; color: #222; background: #fff }
table { border-collapse: collapse } th, td { padding: .25em .7em; text-align: right; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.failure { text-align: left } td.failure { color: #a00; max-width: 60em }
svg text { font-size: 12px; fill: #444 } svg line { stroke: #ddd } svg circle { fill: #1667a8 }
"""
# What UTF-8 or a browser does not take: control characters, and the surrogates of file names that are no text.
_UNSHOWN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")


def safe(value: object) -> str:
    """Returns a value as text in which nothing is markup."""
    return html.escape(_UNSHOWN.sub("\N{REPLACEMENT CHARACTER}", str(value)))


def document(title: str, body: str, style: str = "") -> str:
    """Returns a page.

    Args:
      title: text.
      body: HTML.
      style: CSS beside that of all pages.
    """
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{safe(title)}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<style>
{_STYLE}{style}</style></head><body>
{body}</body></html>
"""


def table(headings: Iterable[object], rows: Iterable[str]) -> str:
    """Returns a table of headings, which are text (() for a table without), and rows, which are HTML, as of `row`."""
    cells = "".join(f"<th>{safe(heading)}</th>" for heading in headings)
    head = f"<thead><tr>{cells}</tr></thead>" if cells else ""
    body = "\n".join(rows)
    return f"<table>{head}<tbody>\n{body}\n</tbody></table>"


def row(values: Iterable[object]) -> str:
    """Returns a row of a table, whose cells are text."""
    return "<tr>" + "".join(f"<td>{safe(value)}</td>" for value in values) + "</tr>"
