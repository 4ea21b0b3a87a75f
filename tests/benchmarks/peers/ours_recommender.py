"""The framework on `workloads/recommender.py`: training as `ours.py` has it, or evaluations after a training.

    python tests/benchmarks/peers/ours_recommender.py --workload=two_tower --option=ratings.npz:history:graph
    python tests/benchmarks/peers/ours_recommender.py --workload=two_tower --option=ratings.npz:history:evaluate_xla

`graph` and `xla` train. A step of `evaluate_graph` or `evaluate_xla` is an evaluation of all users, compiled so; it
leaves the vectors in ratings.npz.history.ours.npz.
"""

import atexit
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

import numpy as np
from gate import Gate
from ours import ENDLESS, ROOT, pause
from protocol import Peer, serve

import framework
from framework.run import evaluation
from framework.run.environment import environment
from tests.benchmarks.workloads import recommender


def prepare(workload: str, precision: str, option: str) -> Peer:
    """A run in a folder of its own, past its first epoch, or at its end."""
    path, features, what = option.rsplit(":", 2)
    folder = tempfile.mkdtemp(prefix="recommender-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    evaluates = what.startswith("evaluate_")
    settings = {**ENDLESS, "data.dir": path, "model.features": features, "train.precision": precision}
    settings["train.compile"] = what.removeprefix("evaluate_")
    if evaluates:
        del settings["train.duration"]
    run = framework.build(str(ROOT / "tests/benchmarks/workloads/recommender.py"), settings, folder)
    versions = {name: environment()["packages"][name] for name in ("tensorflow", "tf-keras")}
    if not evaluates:
        gate = Gate(lambda gate: framework.train(run))
        pause(run, gate)
        gate.steps(math.ceil(run.data.steps_per_epoch) + 1)
        return Peer(gate.steps, versions, lambda: run.train_block.last.row(-1)["loss"], run.train_block.compiled.mode)
    framework.train(run)
    users, items, _ = recommender.vectors(run)
    np.savez(f"{path}.{features}.ours.npz", users=users, items=items)
    evaluation.evaluate(run)

    def evaluations(count: int) -> None:
        for _ in range(count):
            evaluation.evaluate(run)

    return Peer(evaluations, versions, lambda: 0.0)


if __name__ == "__main__":
    serve(prepare)
