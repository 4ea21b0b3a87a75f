"""The runs below a folder as a table for the terminal.

print(table(Path("runs"), below(Path("runs"))))

    run      state     step     best                        last         started           time    differs
    mnist_a  finished  938/938  test/accuracy 0.9723 @938   0.9723 @938  2026-11-29 07:45  42.5 s  duration=2 epochs
"""

import os
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

from framework.pages import report, stored
from framework.pages.curves import Point
from framework.pages.stored import StoredRun

_HEADINGS = ("run", "state", "step", "best", "last", "started", "time", "differs")
_GAP, _INDENT = "  ", "    "
_LEAST_ROOM = 20  # columns
_MOST_CHARACTERS = 60  # of a state or a list of keys


def below(folder: Path) -> list[StoredRun]:
    """Returns the runs in a folder and the folders below it, by path; nothing inside a run folder is looked at."""
    runs = []
    for path, folders, files in os.walk(folder):
        if stored.is_run({*folders, *files}):
            folders.clear()
            runs.append(stored.read(Path(path), is_short=True))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    return runs


def table(folder: Path, runs: Sequence[StoredRun], width: int = 0) -> str:
    """Returns the table; the last column of a row also names what could not be read of the run.

    Args:
      folder: that the runs are below.
      runs: at least one.
      width: columns of the terminal; if the table has more, each run has lines of its own. 0 for a table of any width.
    """
    rows = [_row(folder, run) for run in runs]
    whole = aligned([_HEADINGS, *rows])
    if not width or max(map(len, whole.splitlines())) <= width:
        return whole
    return "\n".join(line for row in rows for line in _record(row, width))


def _record(row: Sequence[str], width: int) -> list[str]:
    """Returns the lines of a run: its name, and below it what a table has in its columns."""
    name, *cells = map(_plain, row)
    words = _GAP.join(f"{heading} {cell}" for heading, cell in zip(_HEADINGS[1:], cells, strict=True) if cell)
    return [name, *textwrap.wrap(words, max(_LEAST_ROOM, width), initial_indent=_INDENT, subsequent_indent=_INDENT)]


def aligned(rows: Sequence[Sequence[str]], width: int = 0) -> str:
    """Returns rows of texts as columns, without what a terminal would take for a command.

    Args:
      rows: of as many texts each.
      width: columns that lines have, if the other columns leave 20 to the last one, whose texts go on in further lines;
        0 for lines of any length.
    """
    plain = [[_plain(cell) for cell in row] for row in rows]
    *widths, last = [max(map(len, column)) for column in zip(*plain, strict=True)]
    room = max(_LEAST_ROOM, width - sum(widths) - len(_GAP) * len(widths)) if width else last
    lines: list[str] = []
    for *cells, text in plain:
        first, *further = (textwrap.wrap(text, room, break_on_hyphens=False) or [""]) if width else [text]
        head = _GAP.join(f"{cell:<{columns}}" for cell, columns in zip(cells, widths, strict=True))
        lines += [f"{head}{_GAP}{first}", *(f"{' ' * len(head)}{_GAP}{one}" for one in further)]
    return "\n".join(line.rstrip() for line in lines)


def _plain(text: str) -> str:
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)


def _row(folder: Path, run: StoredRun) -> tuple[str, ...]:
    main = run.main_result()
    total = "?" if run.total_steps is None else f"{run.total_steps:,}"
    seconds = report.seconds_of(run)
    return (
        str(run.path.relative_to(folder)) if run.path != folder else folder.resolve().name,
        _cut(report.state(run)),
        f"{run.step:,}/{total}",
        f"{main.name} {_at(main.best)}" if main and main.best else "",
        _at(main.last) if main else "",
        run.starts[0]["time"][:16].replace("T", " ") if run.starts else "",
        "" if seconds is None else report.duration(seconds),
        "  ".join(filter(None, [_cut(differs(run)), f"damaged: {'; '.join(run.damages)}" if run.damages else ""])),
    )


def differs(run: StoredRun) -> str:
    """Returns what differs from the defaults of the experiment: 'learning_rate=0.1 seed=3'; '' if nothing does."""
    shown = short_names(run.overridden)
    return " ".join(f"{shown[key]}={report.as_text(value)}" for key, value in run.overridden.items())


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Returns {key: its last part; the whole key if another one has the same}."""
    names = {key: key.rpartition(".")[2] for key in keys}
    return {key: name if [*names.values()].count(name) == 1 else key for key, name in names.items()}


def _at(point: Point | None) -> str:
    return "" if point is None else f"{point[1]:.5g} @{point[0]:,}"


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
