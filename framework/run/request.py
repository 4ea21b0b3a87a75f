"""What a run is asked to be: experiment, final config and run folder, checked before any device is initialised.

request = resolve_request('experiments/mnist_mlp.py', ['--config.train.compile=graph'], 'runs/first')
request.experiment, request.config, request.workdir
"""

import dataclasses
import datetime
import os
import re
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from framework import config, folder
from framework.checkpoint.checkpoints import Checkpoints
from framework.config.keys.runtime import SEVERAL_PROCESSES
from framework.config.overrides import override, restored
from framework.errors import UserError
from framework.experiment import load
from framework.experiment.load import Experiment
from framework.folder import check_workdir
from framework.remote.address import folder_of, is_address
from framework.remote.run_copy import RunCopy
from framework.run import continuity, stored_config
from framework.run.arguments import refuse_unread, taken_of_run

_MOST_CHARACTERS = 80  # of what names a run folder, without the time


@dataclasses.dataclass(frozen=True)
class Request:
    """What a run is asked to be.

    Attributes:
      experiment: the file and its functions.
      config: final values, locked; durations as they were typed.
      workdir: the run folder, which need not exist; of one at an address, its copy on this machine.
      remote: that copy; None of a folder.
    """

    experiment: Experiment
    config: ConfigDict
    workdir: Path
    remote: RunCopy | None = None


def resolve_request(
    name: str,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    workdir: str | os.PathLike[str] | None = None,
    from_workdir: bool = False,
    mode: str = "",
) -> Request:
    """Returns the request that the arguments of `build` describe: the config of the file, then overrides, then checks.

    Raises:
      UserError: bad input that can be found before a device is initialised.
    """
    is_fresh, address = not workdir, workdir if is_address(workdir) else None
    workdir = folder_of(workdir or fresh_workdir(name))
    if not from_workdir:
        check_workdir(workdir)
    experiment = load.load(name)
    start = experiment.get_config()
    remote = fetched(address, start if from_workdir else override(start, overrides))
    stored = stored_config.read(workdir)
    stored_config.refuse_altered(workdir, stored, Checkpoints(workdir / folder.CHECKPOINTS, 1).facts())
    if from_workdir and stored is None:
        continuity.refuse_unknown(workdir)
    elif from_workdir and stored is not None:
        try:
            start = restored(start, stored.values)
        except UserError:  # the keys differ: of an older file, or of another one
            continuity.refuse_other_file(workdir, experiment)
            raise
        if start.runtime.strategy in SEVERAL_PROCESSES:  # a look back takes one process
            start.unlock().runtime = config.base_config().runtime
    given = override(start, overrides)
    if mode in ("evaluate", "export"):
        _keep_loss_scale(start, given)
    try:
        final = config.finalize(given, experiment.own, is_trained=not mode)
    except UserError as error:
        raise UserError(taken_of_run(mode, overrides, str(error)) if mode else str(error)) from error
    if mode:
        refuse_unread(mode, config.flatten(start), config.flatten(final))
    _refuse_ignored(experiment, start, final)
    if "check_config" in experiment.functions:
        experiment.functions["check_config"](final)
    if not from_workdir:
        continuity.refuse_no_origin(workdir, final)
        # data.replica_batch_size decides data.batch_size once the replicas are known; `Run.open` compares it then.
        unknown = ("data.batch_size",) if final.data.replica_batch_size else ()
        continuity.refuse_other_run(workdir, experiment, final, unknown)
    if is_fresh:
        workdir = fresh_workdir(name, stored_config.unlike(final, start))
    return Request(experiment, final, workdir, remote)


def _keep_loss_scale(start: ConfigDict, given: ConfigDict) -> None:
    """Lets a run that is looked at in another precision keep its loss scale or have none, as its checkpoints say."""
    if given.train.precision != start.train.precision and start.loss_scale.name == given.loss_scale.name == "auto":
        name = "dynamic" if start.train.precision == "float16" else "none"
        for values in (start, given):
            values.unlock().loss_scale.name = name


def fetched(workdir: str | os.PathLike[str] | None, config: ConfigDict) -> RunCopy | None:
    """Returns the copy of a run folder at an address, as new as that; None for a folder of this machine.

    Raises:
      UserError: the address cannot be read; or several processes train, each of which would have another copy.
    """
    if not is_address(workdir):
        return None
    if (strategy := config.runtime.strategy) in SEVERAL_PROCESSES:
        raise UserError(
            f"--workdir={workdir} is an address, which one process copies to, but runtime.strategy='{strategy}' is"
            " several. Type a folder that all of them see."
        )
    remote = RunCopy(str(workdir))
    remote.fetch()
    return remote


def fresh_workdir(name: str, differing: Mapping[str, Any] | None = None) -> Path:
    """Returns runs/<experiment>-<preset>-<key=value>-<time>-<random>, which no other run gets.

    Args:
      name: as typed: 'experiments/mnist_mlp.py:adamw'.
      differing: {key: value} that are not the defaults of the experiment; as many as there is room for are in the name.
    """
    file, _, preset = name.partition(":")
    parts = [Path(file).stem, *filter(None, [preset])]
    for key, value in (differing or {}).items():
        shown = f"{key.rpartition('.')[2]}={value}"
        if key not in stored_config.MAY_DIFFER and sum(map(len, parts)) + len(shown) <= _MOST_CHARACTERS:
            parts.append(shown)
    stem = re.sub(r"[^\w.=+,-]+", "_", "-".join(parts), flags=re.ASCII)
    return Path("runs") / f"{stem}-{datetime.datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def _refuse_ignored(experiment: Experiment, start: ConfigDict, final: ConfigDict) -> None:
    """Raises UserError if a key of `optimizer` was typed that the experiment's own make_optimizer does not read."""
    before = config.flatten(start)
    for key, value in config.flatten(final).items():
        is_typed = key.startswith("optimizer.") and key != "optimizer.groups" and value != before[key]
        if is_typed and load.ignores(experiment.path, "make_optimizer", key):
            raise UserError(
                f"{key}={value!r} has no effect: make_optimizer of {experiment.path} does not read cfg.{key}."
                " Leave it out, or read it there."
            )
