"""The mean of several checkpoints of a run, for evaluation and export.

    note = restore_mean(state, [folder / 'step-00000400', folder / 'step-00000469'])

Source: Vaswani et al., 2017, "Attention is all you need", who average the last 5 to 20.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths
from framework.checkpoint.snapshot import read
from framework.checkpoint.storage import CorruptError, read_arrays
from framework.errors import UserError
from framework.state import TrainState

_AVERAGED = ("model/", "ema/")


def restore_mean(state: TrainState, folders: Sequence[Path]) -> dict[str, Any]:
    """Sets `state` from the newest of several checkpoints, and its weights to the mean of all; returns its note.

    Floating-point variables of the model, the statistics of BatchNormalization among them, and of the moving average of
    its weights are means, computed in float64 and rounded once. All others, such as counters, are those of the newest;
    by its masks, if it has some, weights and averages are 0, and in its clusters they are equal.

    Args:
      state: a state of the same model and optimizer.
      folders: the checkpoints, the newest last.

    Raises:
      UserError: a checkpoint is damaged, or of another model.
    """
    try:
        note = read(state, folders[-1])
        sums: dict[str, np.ndarray] = {}
        for folder in folders:
            _add(sums, read_arrays(folder), state, folder)
    except CorruptError as damage:
        raise UserError(
            f"a checkpoint to average is damaged: {damage} ({', '.join(folder.name for folder in folders)} in"
            f" {folders[-1].parent}). Average fewer: type e.g. --config.checkpoint.average=1."
        ) from damage
    variables = paths.variables(state)
    for path, total in sums.items():
        paths.assign(variables[path], (total / len(folders)).astype(variables[path].dtype.as_numpy_dtype))
    if state.prune is not None:
        state.prune.mask_all()
    if state.cluster is not None:
        state.cluster.share_all()
    return note


def _add(sums: dict[str, np.ndarray], arrays: dict[str, np.ndarray], state: TrainState, folder: Path) -> None:
    """Adds the arrays that are averaged to their sums, in float64."""
    for path, variable in paths.variables(state).items():
        if not path.startswith(_AVERAGED) or not variable.dtype.is_floating:
            continue
        array = arrays.get(path)
        if array is None or tf.as_dtype(array.dtype) != variable.dtype or array.shape != tuple(variable.shape):
            shape = "absent" if array is None else f"{array.dtype.name}{list(array.shape)}"
            raise UserError(f"{folder} is of another model than the newest checkpoint: {path} is {shape}.")
        sums[path] = sums.get(path, 0.0) + array.astype(np.float64)
