"""Schedules with a state: a learning rate that depends on what evaluations found.

    class Halve(tf.Module):
        def __init__(self, rate):
            super().__init__()
            self.rate = tf.Variable(rate, dtype=tf.float64)

        def __call__(self, update):
            return self.rate.read_value()

        def observe(self, results):                      # {'test/loss': 0.07, 'test/accuracy': 0.98}
            if results["test/accuracy"] > 0.9:
                self.rate.assign(0.5 * self.rate)

    def make_schedule(cfg, total_steps):
        return Halve(cfg.schedule.learning_rate)

A schedule may be a tf.Module. Its variables are `state.schedule`: saved, and restored on resume and on going back
before a non-finite step. A step reads them. The loop calls `observe(results)` after each evaluation, before the
checkpoint of that step, and nothing else may assign them. `prepare(modes)`, if the module has one, is called once
before, with {'test/loss': 'min', 'test/accuracy': 'max'}. `schedules.ReduceOnPlateau` is a schedule of this kind.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from framework import paths
from framework.errors import UserError
from framework.experiment import user_code


def schedule_state(returned: Any) -> tf.Module | dict[str, tf.Module] | None:
    """Returns what of a schedule, or of {model: schedule}, has variables; None if nothing does.

    Args:
      returned: by `make_schedule`.

    Raises:
      UserError: what is learnt could not be saved, or the variables would never change.
    """
    if not isinstance(returned, Mapping):
        return returned if _has_state(returned) else None
    return {name: schedule for name, schedule in returned.items() if _has_state(schedule)} or None


def prepare_schedules(state: Any, modes: Mapping[str, str]) -> None:
    """Tells the schedules of `schedule_state` which values of each evaluated number are better, 'min' or 'max'."""
    for schedule in _each(state):
        if hasattr(schedule, "prepare"):
            with user_code.named(_kind(schedule)):
                schedule.prepare(modes)


def observe(state: Any, results: Mapping[str, float]) -> None:
    """Tells the schedules of `schedule_state` the results of an evaluation; between two blocks."""
    for schedule in _each(state):
        with user_code.named(_kind(schedule)):
            schedule.observe(results)


def _has_state(schedule: Any) -> bool:
    variables = paths.variables(schedule) if isinstance(schedule, tf.Module) else {}
    observes = callable(getattr(schedule, "observe", None))
    if observes and not variables:
        raise UserError(
            f"{_kind(schedule)} of make_schedule has observe(results) and no variable, so a resumed run would not know"
            " what it has seen. Write a tf.Module that keeps it in tf.Variable(…)."
        )
    if variables and not observes:
        raise UserError(
            f"{_kind(schedule)} of make_schedule has the variable '{next(iter(variables))}' and no observe(results),"
            " which alone may assign it. Write one, or compute the rate from the update."
        )
    return observes


def _each(state: Any) -> list[Any]:
    """Returns the schedules, each once, also if several models share one."""
    schedules = [] if state is None else list(state.values()) if isinstance(state, Mapping) else [state]
    return list({id(schedule): schedule for schedule in schedules}.values())


def _kind(schedule: Any) -> str:
    return f"schedule {type(schedule).__name__}"
