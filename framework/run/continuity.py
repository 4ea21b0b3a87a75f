"""Whether a run may continue in its folder: config, experiment, examples and tables must be those of before.

    refuse_other_run(workdir, experiment, config)       # UserError that lists the keys that differ

A folder holds one run, so that a resumed run ends in the bits of one that was never interrupted.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from framework import folder
from framework.checkpoint import warm_start
from framework.checkpoint.checkpoints import Checkpoints
from framework.checkpoint.other_runs import find
from framework.errors import UserError
from framework.experiment.load import Experiment
from framework.run import code_copies, stored_config
from framework.step import coverage

_SHOWN = 5  # most keys of one message


def refuse_other_file(workdir: Path, loaded: Experiment) -> None:
    """Raises UserError if a run folder has no copy of the file of an experiment, but that of another file."""
    others = sorted(path.name for path in workdir.glob("*.py"))
    if others and loaded.path.name not in others:
        raise UserError(
            f"--workdir={workdir} holds a run of another experiment: {loaded.path.name} now, {', '.join(others)} there."
            " Type --config= with its file, or another --workdir."
        )


def refuse_other_run(workdir: Path, loaded: Experiment, final: ConfigDict, unknown: Sequence[str] = ()) -> None:
    """Raises UserError if the folder holds a run of another config or experiment; changed code is a warning.

    Args:
      workdir: the run folder, which need not exist.
      loaded: the experiment.
      final: its config, finalized.
      unknown: keys whose value is not known yet.
    """
    stored = stored_config.read(workdir)
    copy = workdir / loaded.path.name
    if stored is None:
        refuse_unknown(workdir, final.resume_from)
        return
    differing = [
        f"{key}: {there!r} there, {now!r} now"
        for key, (there, now) in stored.differing(final).items()
        if key not in (*stored_config.MAY_DIFFER, *unknown)
    ]
    if stored.is_longer(final, unknown):  # `longer.check` decides, once the state is restored
        differing = []
    if not copy.exists():
        differing.insert(0, f"experiment: {copy.name} now, another file there")
    if differing:
        more = f"; and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        is_longer = any(text.startswith("train.duration: ") for text in differing)
        longer = "To train longer, type the rest as it is there. Else use" if is_longer else "Use"
        raise UserError(
            f"--workdir={workdir} holds a run of another config ({'; '.join(differing[:_SHOWN])}{more}). {longer}"
            f" another folder; there, --config.resume_from={workdir} continues this run."
        )
    warn_of_change(workdir, loaded)


def refuse_no_origin(workdir: Path, final: ConfigDict) -> None:
    """Raises UserError if resume_from or init_from names nothing, before the run folder is made.

    A run with checkpoints of its own starts from these, and ignores both keys.
    """
    warm_start.parse_map(final.init_map)
    for key in ("resume_from", "init_from"):
        if final[key] and not Path(final[key]).exists() and not (workdir / folder.CHECKPOINTS).exists():
            find(key, final[key])


def refuse_unknown(workdir: Path, resume_from: str = "") -> None:
    """Raises UserError if the folder has checkpoints but no config.json, which says how they were trained."""
    # A run that was killed while it copied the checkpoint of `resume_from` has nothing else yet.
    is_begun = not resume_from or (workdir / folder.ENVIRONMENT).exists()
    if is_begun and Checkpoints(workdir / folder.CHECKPOINTS, 1).steps():
        raise UserError(
            f"--workdir={workdir} has checkpoints but no config.json, which says how they were trained."
            f" Put the file back, or use another folder; there, --config.resume_from={workdir} continues this run."
        )


def warn_of_change(workdir: Path, loaded: Experiment) -> None:
    """Warns if the experiment, or code that it imports, is not that which the run was started with."""
    if not (workdir / loaded.path.name).exists():
        logging.warning("%s is not the experiment that %s was started with", loaded.path, workdir)
    elif files := code_copies.changed(workdir, loaded):
        verb = "has" if len(files) == 1 else "have"
        logging.warning("%s %s changed since %s was started", ", ".join(files), verb, workdir)


def refuse_other_data(workdir: Path, data: Mapping[str, Mapping[str, str | None]], facts: Mapping[str, Any]) -> None:
    """Raises UserError if the examples of a split are not those of the newest checkpoint.

    Args:
      workdir: the run folder.
      data: the `Run.data_facts()` of now.
      facts: what the newest checkpoint records.
    """
    for split in other_splits(data, facts):
        raise UserError(
            f"the examples of '{split}' changed since {workdir} was begun, so the run cannot resume exactly. Does"
            " make_data draw them without a seed? Use another folder; there,"
            f" --config.resume_from={workdir} continues this run."
        )


def other_splits(data: Mapping[str, Mapping[str, str | None]], facts: Mapping[str, Any]) -> list[str]:
    """Returns the splits whose examples are not those of a checkpoint, as its facts say."""
    differing = {
        split: None
        for fact, known in data.items()
        for split, now in known.items()
        if None not in (now, then := facts.get(fact, {}).get(split)) and now != then
    }
    return [*differing]


def refuse_other_batch(workdir: Path, step: int, last: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Raises UserError if a tf.data pipeline does not give the batch that a checkpoint was last trained on.

    Args:
      workdir: the run folder.
      step: of the checkpoint.
      last: {'last_batch': hash of the batch before that step}, as the pipeline gives it now; {} of other data.
      facts: what the checkpoint records.
    """
    for name, sample in last.items():
        if sample != facts.get(name, sample):
            raise UserError(
                f"batch {step - 1} of the tf.data pipeline is not the one that step {step} of {workdir} was trained on,"
                " so the run cannot resume exactly. Did files or the code of make_data change? Use another folder;"
                f" there, --config.resume_from={workdir} continues this run."
            )


def refuse_other_constants(workdir: Path, constants: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Raises UserError if a table or constant of the traces is not that of the newest checkpoint, as its facts say."""
    begun = facts.get("constants")
    _refuse_differing(workdir, [] if begun is None else coverage.differing(begun, constants))


def refuse_other_tables(workdir: Path, constants: Mapping[str, str], facts: Mapping[str, Any]) -> None:
    """Raises UserError if a lookup table is not that of the restored checkpoint; splits may be others."""
    begun = facts.get("constants", {})
    tables = {name: begun[name] for name in begun.keys() & constants.keys() if name.startswith("table")}
    _refuse_differing(workdir, coverage.differing(tables, {name: constants[name] for name in tables}))


def _refuse_differing(workdir: Path, differing: Sequence[str]) -> None:
    if differing:
        more = f" and {len(differing) - _SHOWN} more" if len(differing) > _SHOWN else ""
        raise UserError(
            f"{', '.join(differing[:_SHOWN])}{more}: changed since {workdir} was begun, so the run cannot resume"
            " exactly. Was it read from a file that changed? Put the file back, or use another"
            f" folder; there, --config.resume_from={workdir} continues this run."
        )
