"""Which parameters can be pruned and clustered, and which of some paths the keys `include` and `exclude` leave.

legal = matrices(trained)
left = selected("prune", config.prune, ["first/kernel", "last/kernel"], "parameters that can be pruned")
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from framework.errors import UserError, near

_NEVER = ("bias", "gamma", "beta", "alpha")  # alpha: the slopes of PReLU, which start at 0


def matrices(variables: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Returns {path: variable} of rank 2 or more: no biases, normalisations and slopes of activations."""
    return {path: v for path, v in variables.items() if v.shape.rank >= 2 and not path.endswith(_NEVER)}


def selected(
    section: str, settings: Any, paths: Iterable[str], what: str, shown: Sequence[str] | None = None
) -> list[str]:
    """Returns the paths that match `include`, unless it is empty, and do not match `exclude`, in their order.

    Args:
      section: of the config, as errors name it.
      settings: the section, with `include` and `exclude`: regexes of whole paths, '' is none.
      paths: to choose from.
      what: the paths, as errors name them.
      shown: the paths that errors list; None lists those that are left.

    Raises:
      UserError: a regex matches none of the paths that are left.
    """
    left = list(paths)
    for key, keeps in (("include", True), ("exclude", False)):
        regex = settings[key]
        if regex and not any(re.fullmatch(regex, path) for path in left):
            raise UserError(
                f"{section}.{key}='{regex}' matches none of the {what}:"
                f" {', '.join(left if shown is None else shown) or 'none'}."
                f"{near(regex, left)} A regex must match a whole path."
            )
        if regex:
            left = [path for path in left if bool(re.fullmatch(regex, path)) is keeps]
    return left
