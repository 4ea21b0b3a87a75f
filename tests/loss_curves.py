"""The loss curves of an experiment in other precisions and on replicas beside those of float32 on one device.

loss_curves.assert_alike(lambda name, settings: build(tmp_path / name, **settings), bound=0.01)
"""

import numpy as np

from framework import testing
from framework.run import loop

STEPS, MEAN_OVER = 500, 50
LENGTH = {"train.duration": f"{STEPS} steps", "log.every": f"{MEAN_OVER} steps"}
CURVES = {
    "float32": {},
    "two replicas": {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2},
    "bfloat16": {"train.precision": "bfloat16"},
    "float16": {"train.precision": "float16"},  # with a dynamic loss scale
}
MAY_SKIP = {"float16": 5}  # its loss scale starts too high


def assert_alike(build, bound, curves=CURVES):
    """Asserts that all curves are that of 'float32' but for a share of it.

    Args:
      build: (name, settings, those of `LENGTH` and of a curve) -> a run.
      bound: of the difference of the mean losses of 50 steps, as a share of that of float32.
      curves: {name: settings}; 'float32' is one of them.
    """
    found, skipped = {}, {}
    for name, settings in curves.items():
        run = build(name, {**LENGTH, **settings})
        loop.train(run)
        found[name] = np.array([row["mean/loss"] for row in testing.rows(run) if "mean/loss" in row])
        skipped[name] = STEPS - int(run.state.updates)
        print(name, found[name].round(4), f"skipped {skipped[name]}")
    for name, curve in found.items():
        assert len(curve) == STEPS // MEAN_OVER, name
        assert skipped[name] <= MAY_SKIP.get(name, 0), name
        assert np.abs(curve / found["float32"] - 1).max() <= bound, name
