"""The start of training: sets the state from the first of four places that apply, and logs which one it was.

    note = begin(state, checkpoints, config, workdir)

1. the newest undamaged checkpoint of the run's own folder
2. `resume_from`: run folder or checkpoint to continue from: weights, optimizer, step and random state
3. `init_from`: run folder or checkpoint whose weights are the initial weights
4. scratch
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import FrozenConfigDict

from framework import folder, paths
from framework.checkpoint import other_runs, snapshot, warm_start
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.storage import read_arrays
from framework.errors import UserError
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
    """Sets `state`, makes the run folder, and returns the note of the checkpoint that the run continues from.

    Args:
      state: a fresh state.
      checkpoints: the run's own checkpoints.
      config: a resolved config; reads resume_from, init_from, init_map, init_weights.
      workdir: the run folder.
      writes: False for a worker that is not the chief: the chief has written everything already.
      facts: the facts of this run, for the checkpoints that it takes over from `resume_from`.

    Returns:
      The note; None if the run starts at step 0.

    Raises:
      UserError: a place is no checkpoint, is of another model, or has no weights for this one.
    """
    note = checkpoints.restore(state, repair=writes)
    other = next((f"{key}={config[key]}" for key in ("resume_from", "init_from") if config[key]), "")
    if note is not None:
        unread = f"; {other} is not read" if other else ""
        logging.info("%s: resuming at step %d, its own newest checkpoint%s", workdir, int(state.step), unread)
        return note
    if int(state.step):
        raise UserError(
            f"the state in memory is at step {int(state.step)}, but {workdir} has no checkpoint of that step."
            " Build the run again."
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
    """Sets a fresh state as `begin` does for a run without a checkpoint of its own; writes and logs nothing."""
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
    checkpoints.save(state, note, facts)  # a copy of the run's own, to which it can go back when the source is gone
    checkpoints.steps()  # waits: after a crash, the best checkpoint alone would be taken for the newest
    _keep_best(state, source, checkpoints, facts)
    logging.info(
        "%s: going on at step %d from %s (resume_from; no checkpoint of its own)%s",
        workdir,
        int(state.step),
        source,
        "".join(f"; {key} has changed, so the best value so far is forgotten" for key in changed),
    )
    return note


def _forget_other_goals(state: TrainState, source: Path, ours: Mapping[str, list[str]]) -> list[str]:
    """Resets the best value of each metric that this run chooses differently; returns the config keys of those."""
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
    """Returns [metric, mode]; None if there is no metric, although older runs recorded a mode even then."""
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
    """Copies the best checkpoint of the source, which the restored state names, among the run's own."""
    best = source.with_name(folder.name_of(int(state.best.step)))
    if int(state.best.step) in (-1, int(state.step)):
        return
    if snapshot.is_whole(best):
        other_runs.adopt(best, checkpoints.folder, facts)
    else:
        logging.warning("the best checkpoint so far, %s, is missing: only a better one will be kept", best)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights that `init_from` has for a model: their checkpoint, and how they match the model's variables."""

    source: Path
    match: warm_start.Match
    variables: int  # of the model


def _initialise(state: TrainState, config: FrozenConfigDict, workdir: Path, writes: bool) -> None:
    """Sets the weights from `init_from`; writes init.json and logs which variables were taken."""
    taken = _take_weights(state, config)
    match = taken.match
    if writes:
        workdir.mkdir(parents=True, exist_ok=True)
        report = {"from": str(taken.source), "weights": config.init_weights, "taken": match.sources}
        write_json(workdir / folder.INIT, report | {"left": match.left, "initial": match.initial})
    logging.info(
        "%s: starting at step 0 from %s (init_from; no checkpoint of its own): %d of %d variables taken;"
        " with their initial values: %s; not taken: %s",
        workdir,
        taken.source,
        len(match.sources),
        taken.variables,
        ", ".join(match.initial) or "none",
        ", ".join(match.left) or "none",
    )


def _take_weights(state: TrainState, config: FrozenConfigDict) -> _Weights:
    """Sets the weights that `init_from` has for this model."""
    source = other_runs.find("init_from", config.init_from)
    arrays = warm_start.weights_of(read_arrays(source), config.init_weights, str(source))
    target = paths.variables(state.model)
    ambiguous = warm_start.Ambiguous(snapshot.named_in(source), paths.ambiguous(state.model))
    match = warm_start.match(arrays, target, warm_start.parse_map(config.init_map), str(source), ambiguous)
    warm_start.assign(match, arrays, target)
    state.restart()
    return _Weights(source, match, len(target))
