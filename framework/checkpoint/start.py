"""Where training starts from: the one place that decides it, and says so.

    note = begin(state, checkpoints, config, workdir)

In this order: the newest whole checkpoint of the run's own folder; `resume_from`, a state that is gone on from as a
whole; `init_from`, weights alone; scratch. What comes first is taken, and the others are not looked at.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import FrozenConfigDict

from framework import folder, paths
from framework.checkpoint import other_runs, snapshot, warm_start
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.storage import read_arrays
from framework.config import UserError
from framework.files import read_json, write_json
from framework.state import TrainState


def begin(
    state: TrainState,
    checkpoints: Checkpoints,
    config: FrozenConfigDict,
    workdir: Path,
    writes: bool = True,
    facts: Mapping[str, Any] | None = None,
) -> dict[str, Any] | None:
    """Sets `state`, makes the run folder, and returns the note of the checkpoint that is gone on from, if one is.

    Args:
      config: resolved; reads resume_from, init_from, init_map, init_weights.
      writes: False for a worker that is not the chief, which has left everything on disk already.
      facts: of this run, for the checkpoints that it takes over from `resume_from`.

    Raises:
      UserError: a source that is no checkpoint, is of another model, or has nothing for this one.
    """
    note = checkpoints.restore(state, repair=writes)
    other = next((f"{key}={config[key]}" for key in ("resume_from", "init_from") if config[key]), "")
    if note is not None:
        unread = f"; {other} is not read" if other else ""
        logging.info("%s: resuming at step %d, its own newest checkpoint%s", workdir, int(state.step), unread)
        return note
    if int(state.step):
        raise UserError(
            f"the state in memory is at step {int(state.step)}, but {workdir} has no checkpoint of it."
            " Build the run anew."
        )
    if writes:
        folder.refuse_lost(workdir, config.checkpoint.every)
    if config.resume_from:
        return _resume(state, checkpoints, config, workdir, facts or {})
    if config.init_from:
        _initialise(state, config, workdir, writes)
        return None
    workdir.mkdir(parents=True, exist_ok=True)
    logging.info("%s: starting from scratch: no checkpoint, and neither resume_from nor init_from is set", workdir)
    return None


def set_out(state: TrainState, config: FrozenConfigDict) -> None:
    """Sets a fresh state to what a run without a checkpoint of its own starts from; nothing is written or said."""
    if config.resume_from:
        other_runs.restore_from(state, other_runs.find("resume_from", config.resume_from), "")
    elif config.init_from:
        _take_weights(state, config)


def _resume(
    state: TrainState, checkpoints: Checkpoints, config: FrozenConfigDict, workdir: Path, facts: Mapping[str, Any]
) -> dict[str, Any]:
    source = other_runs.find("resume_from", config.resume_from)
    hint = f"To take what fits, with a fresh optimizer, type --config.resume_from= --config.init_from={source}."
    note = other_runs.restore_from(state, source, hint)
    if int(state.step) >= config.train.duration:
        raise UserError(
            f"resume_from='{config.resume_from}' is at step {int(state.step)}, and train.duration ends at step"
            f" {config.train.duration}. Type e.g. --config.train.duration='{2 * int(state.step)} steps'."
        )
    changed = _forget_other_goals(state, source, facts.get("goals", {}))
    checkpoints.save(state, note, facts)  # the run's own from here on: it can go back to it, and the source may go
    checkpoints.steps()  # waits for it: if only the best one were there, that would be gone on from
    _keep_best(state, source, checkpoints, facts)
    logging.info(
        "%s: going on at step %d from %s (resume_from; no checkpoint of its own)%s",
        workdir,
        int(state.step),
        source,
        "".join(f"; {key} is another, so its best value so far is forgotten" for key in changed),
    )
    return note


def _forget_other_goals(state: TrainState, source: Path, ours: Mapping[str, list[str]]) -> list[str]:
    """Best values of a metric that the run goes by no longer say nothing; returns the keys that have changed."""
    changed = []
    theirs = snapshot.facts_of(source).get("goals") or _goals_beside(source, ours)
    for best, section in ((state.best, "checkpoint"), (state.early, "early_stopping")):
        if _goal(theirs, section) != _goal(ours, section):
            best.forget()
            changed.append(f"{section}.{'best_metric' if section == 'checkpoint' else 'metric'}")
    return changed


def goals(config: Mapping[str, Any], modes: Mapping[str, str]) -> dict[str, list[str]]:
    """Returns the metrics that choose the best checkpoint and stop early, with their modes: facts of a checkpoint.

    Args:
      config: resolved.
      modes: {'test/accuracy': 'max', …} of all evaluated metrics.
    """
    metrics = {"checkpoint": config["checkpoint"]["best_metric"], "early_stopping": config["early_stopping"]["metric"]}
    return {section: [metric, modes.get(metric, "")] for section, metric in metrics.items()}


def _goal(goals: Mapping[str, list[str]], section: str) -> list[str] | None:
    """Returns metric and mode; of no metric, to which older runs gave a mode as well, neither."""
    goal = goals.get(section)
    return goal if goal and goal[0] else None


def _goals_beside(source: Path, same: Mapping[str, list[str]]) -> Mapping[str, list[str]]:
    """Returns the goals of an older checkpoint, from the config.json of its run; `same` if there is none."""
    path = source.resolve().parents[1] / folder.CONFIG
    if not path.is_file():
        return same
    return read_json(path, _stored_goals, {}, "the best values so far are forgotten")


def _stored_goals(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """Returns the goals by a config.json with modes: of runs without them, checkpoints themselves say their goals."""
    best = config["checkpoint"]
    early = config["early_stopping"]
    return {"checkpoint": [best["best_metric"], best["best_mode"]], "early_stopping": [early["metric"], early["mode"]]}


def _keep_best(state: TrainState, source: Path, checkpoints: Checkpoints, facts: Mapping[str, Any]) -> None:
    """The best checkpoint goes with the state that knows of it."""
    best = source.with_name(snapshot.name_of(int(state.best.step)))
    if int(state.best.step) in (-1, int(state.step)):
        return
    if snapshot.is_whole(best):
        other_runs.adopt(best, checkpoints.folder, facts)
    else:
        logging.warning("the best checkpoint so far, %s, is not there: only a better one will be kept", best)


def _initialise(state: TrainState, config: FrozenConfigDict, workdir: Path, writes: bool) -> None:
    source, found, total = _take_weights(state, config)
    if writes:
        workdir.mkdir(parents=True, exist_ok=True)
        report = {"from": str(source), "weights": config.init_weights, "taken": found.sources}
        write_json(workdir / folder.INIT, report | {"left": found.left, "initial": found.initial})
    logging.info(
        "%s: starting at step 0 from %s (init_from; no checkpoint of its own): %d of %d variables taken;"
        " with their initial values: %s; not taken: %s",
        workdir,
        source,
        len(found.sources),
        total,
        ", ".join(found.initial) or "none",
        ", ".join(found.left) or "none",
    )


def _take_weights(state: TrainState, config: FrozenConfigDict) -> tuple[Path, warm_start.Match, int]:
    """Sets the weights that `init_from` has for this model; (checkpoint, what matched, variables of the model)."""
    source = other_runs.find("init_from", config.init_from)
    arrays = warm_start.weights_of(read_arrays(source), config.init_weights, str(source))
    target = paths.variables(state.model)
    named = (snapshot.named_in(source), paths.ambiguous(state.model))
    found = warm_start.match(arrays, target, warm_start.parse_map(config.init_map), str(source), named)
    warm_start.assign(found, arrays, target)
    if state.ema is not None:
        state.ema.restart()
    return source, found, len(target)
