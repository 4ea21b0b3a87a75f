"""Makes and reads result.json, which says how a run ended.

    status(run)                                  # 'finished', 'stopped early' or 'interrupted'
    write_json(path, make_result(run, progress))
    read_json(path, whole_result, None, "it is written again")

It holds the newest and the best numbers, and what the run was trained with.
"""

import dataclasses
import math
from typing import Any

from framework import paths
from framework.config import base_config
from framework.distribute.memory import peak_memory
from framework.folder import starts
from framework.run.progress import Progress
from framework.run.run import Run
from framework.run.stored_config import unlike


def status(run: Run) -> str:
    """Returns 'finished', 'stopped early' or 'interrupted', by the state of the run."""
    settings = run.resolved.early_stopping
    if settings.metric and int(run.state.early.waited) >= settings.patience:
        return "stopped early"
    return "finished" if int(run.state.step) >= run.total_steps else "interrupted"


def make_result(run: Run, progress: Progress) -> dict[str, Any]:
    """Returns the content of result.json."""
    compiled = run.train_block.compiled
    spent = progress.total
    start = ([{}, *starts(run.workdir)])[-1]  # the commits that trained; the checkouts may have moved on
    return {
        "status": status(run),
        "step": int(run.state.step),
        "updates": int(run.state.updates),
        "skipped": int(run.state.skipped),
        "empty_terms": int(run.state.empty_terms),
        "epochs": None if math.isinf(epoch := run.data.steps_per_epoch) else int(run.state.step) / epoch,
        "train": {name: _or_none(value) for name, value in progress.trained.items()},
        "train_step": progress.trained_step,
        "final": {name: _or_none(value) for name, value in progress.evaluations.items()},
        "final_step": progress.evaluated_step,
        "best": {name: _or_none(value) for name, value in progress.best.items()},
        "best_steps": progress.best_steps,
        "seed": run.config.seed,
        "hyperparameters": unlike(run.config, base_config()),
        "overridden": unlike(run.config, run.experiment.get_config()),
        "commit": {"framework": start.get("git"), "experiment": start.get("experiment_git")},
        "data": {"train": run.data.origin, **{split: data.origin for split, data in run.eval_data.items()}},
        "parameters": sum(variable.shape.num_elements() for variable in paths.trainable(run.model).values()),
        "sparsity": None if run.state.prune is None else run.sparsity() | {"variables": run.state.prune.sparsities()},
        "distinct_values": None if run.state.cluster is None else run.state.cluster.distinct(),
        "wall_seconds": progress.wall_seconds(),
        "seconds": progress.seconds(),
        "time_to_first_step_seconds": progress.time_to_first_step,
        "examples_per_second": _or_none(progress.examples_per_second(spent)),
        "data_wait": None if run.data.is_resident else _or_none(spent.data_wait),
        "peak_memory_bytes": peak_memory(),  # of the last process
        "replicas": run.replicas.count,
        "compile": compiled.mode,
        "tuning": None if run.choice is None else dataclasses.asdict(run.choice),
        "traces": compiled.traces,
        "compilations": compiled.compilations,
    }


def whole_result(value: Any) -> dict[str, Any]:
    """Returns a result whose counters and printed numbers are there; a KeyError names what is missing."""
    for name in ("final", "best"):
        if any(number is not None and not isinstance(number, (int, float)) for number in value[name].values()):
            raise ValueError(f"'{name}' holds what is no number")
    counters = {name: int(value[name]) for name in ("step", "updates", "skipped", "empty_terms")}
    return {**value, **counters, "status": str(value["status"])}


def _or_none(value: float) -> float | None:
    """Returns the value, or None for NaN and infinity, which JSON does not have."""
    return value if math.isfinite(value) else None
