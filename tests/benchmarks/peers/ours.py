"""The framework: `framework.train` on the experiment of a workload, as it is by default.

    python tests/benchmarks/peers/ours.py --workload=mlp --option=settings:train.compile=graph,log.every='10 steps'

Determinism, the finite check, norms, metrics of every step, all hooks and all writers are on. What the peers do not
have, evaluations and checkpoints, is put off to the end of a run that does not end. Everything between blocks is
measured: the loop pauses only where it asks how long its next block may be.
"""

import atexit
import math
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[3]))

from gate import Gate
from protocol import Peer, serve

import framework
from framework.run.environment import environment
from framework.run.run import Run
from framework.step.block import Block

ROOT = Path(__file__).resolve().parents[3]
ENDLESS = {"train.duration": "1000000000 steps", "eval.every": "", "checkpoint.every": ""}


class GatedBlock:
    """A run's `train_block` that makes as many steps as the gate allows; everything else is the block's own.

    Attributes:
      last: what the last block reported.
    """

    def __init__(self, train_block: Any, gate: Gate) -> None:
        self._train_block, self._gate = train_block, gate
        self._made = 0
        self.last: Block | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._train_block, name)

    @property
    def block_steps(self) -> int:
        """What the loop asks for before each block; where a turn is over, it waits here for the next."""
        if not self._gate.left:
            step = int(self._train_block.state.step)  # and so waits for what may be under way
            if step != self._made:
                raise RuntimeError(f"the state is at step {step} after {self._made} steps")
        return min(self._train_block.block_steps, self._gate.allowed())

    def __call__(self, k: int, sums: Any = None) -> Block:
        self.last = self._train_block(k, sums)
        self._made += k
        self._gate.made(k)
        return self.last


def pause(run: Run, gate: Gate) -> None:
    """Makes a run's loop wait at the gate, from when it is settled how blocks are compiled: trials are no steps."""

    def settled(*args: Any) -> None:
        compile_by(*args)
        run.train_block = GatedBlock(run.train_block, gate)

    compile_by = run.compile_by
    if run.config.train.compile == "auto":
        run.compile_by = settled
    else:
        run.train_block = GatedBlock(run.train_block, gate)


def prepare(workload: str, precision: str, option: str) -> Peer:
    """A run in a folder of its own, past its first epoch, whose end compiles its last program: that of histograms."""
    typed = option.removeprefix("settings:").split(",") if option else []
    settings = {**ENDLESS, "train.precision": precision, **dict(part.split("=", 1) for part in typed)}
    folder = tempfile.mkdtemp(prefix="compare-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    run = framework.build(str(ROOT / "tests" / "benchmarks" / "workloads" / f"{workload}.py"), settings, folder)
    gate = Gate(lambda gate: framework.train(run))
    pause(run, gate)
    gate.steps(math.ceil(run.data.steps_per_epoch) + 1)

    def loss() -> float:
        block = run.train_block.last
        return block.row(len(block.rows) - 1)["loss"]

    packages = environment()["packages"]
    return Peer(
        gate.steps, {name: packages[name] for name in ("tensorflow", "tf-keras")}, loss, run.train_block.compiled.mode
    )


if __name__ == "__main__":
    serve(prepare)
