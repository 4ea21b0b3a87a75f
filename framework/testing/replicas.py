"""Compares an experiment on one device with the same experiment on replicas.

check_replicas("experiments/mnist_mlp.py", {"train.precision": "float64"}, replicas=2, steps=10)
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from framework import paths
from framework.config import flatten
from framework.config.overrides import override
from framework.errors import UserError
from framework.experiment.load import load
from framework.run.build import build


def check_replicas(
    name: str,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    replicas: int = 2,
    steps: int = 20,
    rtol: float | None = None,
) -> None:
    """Trains an experiment on one device and on virtual replicas, and compares weights and losses.

    Args:
      name: as for `framework.build`.
      overrides: of both runs. `{"train.precision": "float64"}` tells a wrong step from rounding.
      replicas: virtual CPU devices; TensorFlow must not have started in this process, or with as many.
      steps: that each run takes.
      rtol: bound of the relative L2 difference of each variable, and of the loss of each step; by default 1e-11 in
        float64, 1e-4 in float32, 0.05 in half precision.

    Raises:
      AssertionError: they disagree; the message names the worst variable, or the first step.
      UserError: the run has fewer steps.
    """
    settings = override(load(name).get_config(), overrides)
    bound = rtol or {"float64": 1e-11, "float32": 1e-4}.get(settings.train.precision, 0.05)
    typed = {key: value for key, value in flatten(settings).items() if not key.startswith("runtime.")}
    typed["train.block_steps"] = steps
    many = build(name, typed | {"runtime.strategy": "mirrored", "runtime.virtual_devices": replicas})
    one = build(name, typed)
    if steps > one.total_steps:
        raise UserError(f"check_replicas: steps={steps}, but train.duration has {one.total_steps} steps. Take fewer.")
    rows = [run.train_block(steps) for run in (one, many)]
    trained = {path: variable.numpy() for path, variable in paths.trainable(many.model).items()}
    distances = {}
    for path, variable in paths.trainable(one.model).items():
        wanted = variable.numpy().astype(np.float64)
        distances[path] = float(np.linalg.norm(trained[path] - wanted)) / max(float(np.linalg.norm(wanted)), 1e-6)
    worst = max(distances, key=lambda path: distances[path])
    if not distances[worst] <= bound:
        raise AssertionError(
            f"{replicas} replicas and one device disagree after {steps} steps: relative L2 {distances[worst]:.3g} of"
            f" '{worst}', the bound is {bound:g}"
        )
    for step in range(steps):
        left, right = (block.row(step)["loss"] for block in rows)
        if not abs(left - right) <= bound * max(abs(left), abs(right)):
            raise AssertionError(f"step {step + 1}: the loss is {left:.9g} on one device, {right:.9g} on {replicas}")
