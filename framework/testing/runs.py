"""Runs for tests: built of functions, compared bit for bit, read back row by row.

run = build({"make_data": make_data, "make_model": make_model, "make_loss": make_loss}, {"train.compile": "graph"})
before = bits(run.state)
run.train_block(3)
assert differing(before, bits(run.state)) >= {"step", "model/dense/kernel"}
"""

import inspect
import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from framework import config, paths
from framework.config.overrides import override
from framework.errors import UserError, near
from framework.experiment.load import Experiment
from framework.experiment.returns import FUNCTIONS
from framework.folder import METRICS
from framework.run.build import build_run
from framework.run.request import fetched, fresh_workdir
from framework.run.run import Run


def build(
    functions: Mapping[str, Callable[..., Any]] | ModuleType,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    workdir: Path | str | None = None,
) -> Run:
    """Builds a run of the functions of an experiment that is no file of its own.

    Args:
      functions: {name: function of an experiment}, or a module that has them. Without `get_config` the config is
        `base_config()`.
      overrides: as for `framework.build`.
      workdir: the run folder, or its address, which training makes; a fresh one below runs/ by default.

    Raises:
      UserError: as `framework.build` raises it; also if a function has a name that no experiment has.
    """
    if isinstance(functions, ModuleType):
        functions = {name: getattr(functions, name) for name in FUNCTIONS if hasattr(functions, name)}
    for name in functions:
        if name not in FUNCTIONS:
            raise UserError(f"testing.build: no experiment has a function '{name}'.{near(name, FUNCTIONS)}")
    made = {"get_config": lambda arg: config.base_config(), **functions}
    for name, function in FUNCTIONS.items():
        if function.required and name not in made:
            raise UserError(f"testing.build: {name}({', '.join(function.arguments)}) is missing.")
    experiment = Experiment(_file_of(functions), "", made)
    final = config.finalize(override(experiment.get_config(), overrides), experiment.own)
    if "check_config" in made:
        made["check_config"](final)
    remote = fetched(workdir, final)
    folder = remote.folder if remote else Path(workdir or fresh_workdir(experiment.path.name))
    run = build_run(experiment, final, folder, time.monotonic())
    run.remote = remote
    return run


def bits(state: Any) -> dict[str, bytes]:
    """Returns {path: bytes} of all variables of a state, model, layer or other tf.Module."""
    return {path: variable.numpy().tobytes() for path, variable in paths.variables(state).items()}


def differing(one: Mapping[str, bytes], other: Mapping[str, bytes]) -> set[str]:
    """Returns the paths whose bits differ, or that only one of two results of `bits` has."""
    return {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}


def rows(run: Run) -> list[dict[str, Any]]:
    """Returns the rows of metrics.jsonl of a run; None is what was not finite."""
    return [json.loads(line) for line in (run.workdir / METRICS).read_text(encoding="utf-8").splitlines()]


def _file_of(functions: Mapping[str, Callable[..., Any]]) -> Path:
    """Returns the file of the functions, of which a run folder gets a copy.

    Raises:
      UserError: none is a function of a file, such as of functions typed at a prompt.
    """
    for name in ("make_model", "make_loss", "make_data"):
        try:
            file = inspect.getsourcefile(inspect.unwrap(functions[name]))
        except TypeError:  # an object with __call__, or one written in C
            continue
        if file:
            return Path(file)
    raise UserError("testing.build: none of make_model, make_loss and make_data is a function of a file.")
