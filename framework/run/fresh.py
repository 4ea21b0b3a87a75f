"""A fresh run of the same experiment whose learning rates are given update by update, for modes that try rates out.

other = fresh_run(run, [1e-6, 1e-5, 1e-4])          # update 0 has the rate 1e-6; the last rate stays
other = fresh_run(run, rates, OneBatch(run.data))   # on other batches
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from framework.checkpoint.start import set_out
from framework.data.batches import Batches
from framework.errors import UserError
from framework.experiment import load
from framework.optim import Schedule
from framework.run.build import build_run
from framework.run.run import Run


def fresh_run(run: Run, rates: Sequence[float], data: Batches | None = None) -> Run:
    """Returns an untrained run with the weights that `run` started from, or with those of `init_from`.

    The experiment's optimizers, groups with their factors, and step stay; the rate of the schedule is replaced.

    Args:
      run: as built.
      rates: of the updates from 0 on.
      data: training batches; those of `run` by default.
    """

    def make_schedule(cfg: Any, total_steps: int) -> Schedule:
        return table(rates)

    experiment = dataclasses.replace(
        run.experiment, functions={**run.experiment.functions, "make_schedule": make_schedule}
    )
    source = run if data is None else dataclasses.replace(run, data=data)
    fresh = build_run(experiment, run.config, run.workdir, time.monotonic(), data_of=source)
    set_out(fresh.state, fresh.resolved)
    fresh.refresh()
    return fresh


def table(rates: Sequence[float]) -> Schedule:
    """Returns the schedule with the rate `rates[update]`, and the last one after them."""

    def schedule(update: Any) -> tf.Tensor:
        return tf.gather(tf.constant(rates, tf.float64), tf.minimum(tf.cast(update, tf.int64), len(rates) - 1))

    return schedule


def advice(run: Run, rate: float) -> str:
    """Returns what to type for a learning rate."""
    makes = "make_schedule" in run.experiment.functions
    if makes and load.ignores(run.experiment.path, "make_schedule", "schedule.learning_rate"):
        return f"Give make_schedule of {run.experiment.path} a highest rate of {rate:.3g}"
    return f"Type --config.schedule.learning_rate={rate:.3g}"


def refuse_unsuited(run: Run, mode: str) -> None:
    """Raises UserError for a run of which a mode that tries rates out cannot say anything."""
    why = ""
    if not run.replicas.is_local:
        why = f"takes one process, but runtime.strategy='{run.config.runtime.strategy}' is several. Leave it out."
    elif len(run.state.models) > 1:
        why = (
            f"judges by one loss, but make_model returned several models ({', '.join(run.state.models)})."
            " Train for e.g. --config.train.duration='200 steps', and look at the terms in report.html."
        )
    elif run.state.data is not None:
        why = "needs batches that are a function of the step; these have a state, which the steps fill."
    elif run.config.resume_from:
        why = "starts from untrained weights, or from those of init_from. Leave --config.resume_from out."
    if why:
        raise UserError(f"--mode={mode} {why}")
