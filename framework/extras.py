"""Optional packages: imported where they are used, and installed by the extra of pyproject.toml that has them.

parquet = extras.load("pyarrow.parquet", "data")        # UserError with the pip command, if it is not installed
"""

import importlib
import tomllib
from pathlib import Path
from typing import Any

from framework.errors import UserError

_PYPROJECT = Path(__file__).resolve().parents[1] / "pyproject.toml"


def load(module: str, extra: str) -> Any:
    """Returns an imported module of an optional package.

    Args:
      module: its full name: 'pyarrow.parquet'.
      extra: the extra of pyproject.toml that has the package: 'data'.

    Raises:
      UserError: the package is not installed; the message has the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        why = "" if error.name == module else f", but {module} needs it"
        raise UserError(
            f"{error.name} is not installed{why}. Type python -m pip install {' '.join(pins(extra))}"
        ) from error


def pins(extra: str) -> list[str]:
    """Returns the pinned packages of an extra: ['array-record==0.8.6', …]."""
    return tomllib.loads(_PYPROJECT.read_text())["project"]["optional-dependencies"][extra]
