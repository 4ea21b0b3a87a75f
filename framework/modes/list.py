"""--mode=list: a table of the runs below a folder.

python launch.py --mode=list --workdir=runs
"""

import shutil
import sys
from pathlib import Path

from framework.errors import UserError
from framework.pages import listing


def main(workdir: Path) -> int:
    """Prints the table, from the files alone; returns 0.

    Raises:
      UserError: the folder cannot be read.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir} is no folder. Type one with run folders in it, e.g. --workdir=runs.")
    runs = listing.below(workdir)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0  # a file has a line for each run
    print(listing.table(workdir, runs, width) if runs else f"no runs below {workdir}")
    return 0
