"""--mode=report: writes report.html of a run folder again, also of a run that is under way.

python launch.py --mode=report --workdir=runs/mnist
"""

from pathlib import Path

from framework.errors import UserError
from framework.pages import report, stored


def main(workdir: Path) -> int:
    """Writes the page from the files alone and prints where it is; returns 0.

    Raises:
      UserError: the folder is no run folder, or cannot be written.
    """
    refuse_other(workdir)
    try:
        path = report.write(workdir)
    except OSError as error:
        raise UserError(f"{workdir} cannot be written: {error.strerror}.") from error
    for damage in stored.read(workdir, is_short=True).damages:
        print(f"  damaged: {damage}")
    print(path)
    return 0


def refuse_other(workdir: Path) -> None:
    """Raises UserError for a folder that is no run folder."""
    try:
        names = {path.name for path in workdir.iterdir()}
    except OSError as error:
        raise UserError(f"{workdir} cannot be read: {error.strerror}. Type a run folder, e.g. runs/mnist.") from error
    if not stored.is_run(names):
        raise UserError(f"{workdir} is no run folder: it has no config.json. Type a run folder, e.g. runs/mnist.")
