"""--mode=compare: runs beside each other, as a page, as CSV, and in a short table.

python launch.py --mode=compare runs/a runs/b runs/c --out=compare.html

The table has the width of the terminal, and 80 columns if there is none.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

from framework.errors import UserError
from framework.files import write_text
from framework.modes.report import refuse_other
from framework.pages import comparison, stored
from framework.pages.curves import Averaged

_SUFFIX = ".html"


def main(runs: Sequence[str] = (), out: str = "compare.html") -> int:
    """Writes the page and a .csv beside it, prints a table; returns 0.

    Args:
      runs: the run folders, two or more.
      out: where the page goes.

    Raises:
      UserError: fewer than two runs, a folder that is none, one that is named twice, or a page that cannot be written.
    """
    paths = [Path(run) for run in runs]
    if len(paths) < 2:
        raise UserError("--mode=compare needs two runs or more. Type e.g. --mode=compare runs/a runs/b.")
    for number, path in enumerate(paths):
        refuse_other(path)
        if path.resolve() in [other.resolve() for other in paths[:number]]:
            raise UserError(f"{path} is named twice. Leave one out.")
    page = Path(out)
    if page.suffix != _SUFFIX:
        raise UserError(f"--out={out} is no page. Type e.g. --out=compare.html.")
    groups = comparison.grouped([stored.read(path, make=Averaged) for path in paths])
    table = page.with_suffix(".csv")
    try:
        write_text(page, comparison.page(groups))
        write_text(table, comparison.csv_text(groups))
    except OSError as error:
        raise UserError(
            f"--out={out} cannot be written: {error.strerror}. Type a file in a folder of yours."
        ) from error
    print(comparison.summary(groups, shutil.get_terminal_size().columns))
    if warning := comparison.unlike_in_words(groups):
        print(f"\n{warning} They are in the page.")
    print(f"\n{page}, {table}")
    return 0
