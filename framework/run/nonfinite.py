"""Handles a step that is not finite: the run goes back and leaves the step out, or it ends and keeps what led to it.

    rewind_or_raise(run, block)              # or NonFiniteError; see workdir/failure/step-00000123/

The folder holds failure.json (numbers of the step, what went bad first, indices of its examples), batch.npz, and the
state before the step in the form of a checkpoint. If weights are not finite, the state is the one after the step.
"""

import math
from pathlib import Path

import numpy as np
from absl import logging

from framework.checkpoint import snapshot
from framework.errors import NonFiniteError
from framework.files import remove, write_json
from framework.run.run import Run
from framework.step.block import Block
from framework.step.diagnose import BATCH, COMPILED_ALONE, LOSS_ALONE, diagnose


def rewind_or_raise(run: Run, block: Block) -> None:
    """Goes back to the newest checkpoint and puts the step that halted `block` on the skip list, or gives up.

    Raises:
      NonFiniteError: the policy is not to rewind, or the skip list is full.
    """
    skip_list, loss_scale = run.state.skip_list, run.state.loss_scale
    if skip_list is None or (loss_scale is not None and loss_scale.is_dynamic) or not np.any(skip_list.numpy() < 0):
        raise report(run, block)
    bad, listed = block.first_step + len(block.rows) - 1, skip_list.numpy()
    listed[np.flatnonzero(listed < 0)[0]] = bad
    run.replicas.chief_first(lambda: run.restore(repair=run.replicas.is_chief))
    skip_list.assign(listed)
    logging.warning("step %d is not finite: going back to step %d and leaving it out", bad + 1, int(run.state.step))


def report(run: Run, block: Block) -> NonFiniteError:
    """Finds what went bad first in the last step of a halted block, writes it down, and returns the error to raise."""
    row = block.row(len(block.rows) - 1)
    step = block.first_step + len(block.rows) - 1
    run.state.step.assign(step)  # a skipped step has changed nothing else that the step is computed from
    finding = diagnose(run.train_block)
    folder = run.workdir / "failure" / f"step-{step:08d}"
    if run.replicas.is_chief:
        _write_down(run, folder, step, row, finding)
    run.replicas.all_workers(0, most=True)  # a worker that fails earlier would end the chief while it writes
    return NonFiniteError(f"{_what_happened(run, row, finding)} Batch, indices and state are in {folder}.")


def _write_down(run: Run, folder: Path, step: int, row: dict[str, float], finding: str) -> None:
    remove(folder)
    folder.mkdir(parents=True)
    batch = {name: tensor.numpy() for name, tensor in run.train_block.batch().items()}
    np.savez(folder / "batch.npz", **batch)
    indices = run.data.indices(step) if hasattr(run.data, "indices") else {}
    facts = {
        "step": step,
        "finding": finding,
        "numbers": {name: value if math.isfinite(value) else str(value) for name, value in row.items()},
        "examples": {name: array.tolist() for name, array in indices.items()},
    }
    snapshot.write_state(run.state, run.note, folder)
    write_json(folder / "failure.json", facts)


def _what_happened(run: Run, row: dict[str, float], finding: str) -> str:
    settings, state = run.resolved, run.state
    shown = [f"{name}={value}" for name, value in row.items() if name.startswith(("loss", "gradient_norm"))]
    rates = [f"{name}={value:.3g}" for name, value in row.items() if name.startswith("learning_rate")]
    saved = run.checkpoints.steps()
    if state.loss_scale is not None and bool(state.loss_scale.is_stuck):
        return (
            f"step {int(state.step) + 1}: {int(state.loss_scale.stuck)} updates in a row were not finite although the"
            f" loss scale is at its floor of {settings.loss_scale.floor:g}, so float16 is not the reason: {finding}."
            " Try a lower --config.schedule.learning_rate, or --config.train.precision=bfloat16."
        )
    if settings.train.on_nonfinite == "skip" and int(state.skipped_in_row) >= settings.train.nonfinite_limit:
        return (
            f"step {int(state.step) + 1}: {int(state.skipped_in_row)} steps in a row were skipped because they were not"
            f" finite (train.nonfinite_limit={settings.train.nonfinite_limit}): {finding}."
        )
    rewound = ""
    if settings.train.on_nonfinite == "rewind":
        rewound = f" after {settings.train.nonfinite_limit} rewinds (train.nonfinite_limit)"
    return (
        f"step {int(state.step) + 1} cannot be taken{rewound}: {finding}; {', '.join(shown)}"
        f" at {', '.join(rates)}. Nothing of it is saved;"
        f" {f'the last checkpoint is of step {saved[-1]}' if saved else 'there is no checkpoint yet'}."
        f" {_advice(finding, run.train_block.compiled.mode)}"
    )


def _advice(finding: str, mode: str) -> str:
    if finding.endswith(LOSS_ALONE):
        return (
            "Look at the loss, where a label that is no class, a division by 0 and the log of what is not positive"
            " give NaN or infinity; or try a lower --config.schedule.learning_rate."
        )
    if finding.endswith(BATCH):
        return "Look at the examples, at their weights and at the transform."
    lower = "a lower --config.schedule.learning_rate, a warm-up, or --config.clip.name=global_norm"
    if finding == COMPILED_ALONE:
        other = "" if mode in ("graph", "eager") else "--config.train.compile=graph, in another folder, or "
        return f"{_BOTH_BRANCHES} Or try {other}{lower}."
    if "gradient" in finding:
        return f"Try {lower}. {_BOTH_BRANCHES}"
    return f"Try {lower}."


# XLA multiplies 0 by the infinite derivative of sqrt at 0, where a kernel of a graph may look for the 0 first.
_BOTH_BRANCHES = (
    "tf.where differentiates both of its branches: where one has sqrt(0), log(0) or a division by 0, make its argument"
    " safe too, as in tf.where(z > 0, tf.sqrt(tf.where(z > 0, z, 1.0)), 0.0)."
)
