"""The command that a user types next.

typed(["--mode=list", "--workdir=my runs"])      # "python launch.py --mode=list '--workdir=my runs'"
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

_INSTALLED = "framework"  # the command that `pip install -e .` makes


def typed(arguments: Sequence[str]) -> str:
    """Returns a command line; it begins with `framework` in a process that was started so."""
    program = [_INSTALLED] if Path(sys.argv[0]).name == _INSTALLED else ["python", "launch.py"]
    return shlex.join([*program, *arguments])
