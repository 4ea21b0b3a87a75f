"""A run as its folder has it, whether it is under way, has ended, failed or is damaged.

    run = read(Path("runs/mnist"))
    run.state, run.step, run.total_steps      # 'finished', 9380, 9380
    run.results()                             # [Result('test/accuracy', (9380, 0.98), (8442, 0.981)), …]
    run.damages                               # what could not be read, in words

Nothing here raises for what stands in the files: what is damaged is named and left out.
"""

import dataclasses
import datetime
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from framework import folder
from framework.config import former
from framework.files import CorruptError, holder, load_json
from framework.pages import curves
from framework.pages.curves import Curve, Curves, Point
from framework.pages.exports import ExportReport
from framework.remote.holder import told

T = TypeVar("T")
Change = tuple[int, str, Any]  # step, key, value before it

EVALUATION = "eval/"
_DAMAGE = (ArithmeticError, AttributeError, CorruptError, LookupError, RecursionError, TypeError, ValueError, OSError)
_STEPS = re.compile(r"(\d+) steps?")
_EPOCHS = re.compile(r"(\d+(?:\.\d+)?) epochs?")
_DIGITS = 8  # that are shown of a hash
_ENDED = ("finished", "stopped early")


@dataclasses.dataclass(frozen=True)
class Result:
    """Holds the last and the best evaluation of a metric, 'test/accuracy'; None if there is none, or no best one.

    The last one may be NaN: an earlier number would pass for that of a run that broke.
    """

    name: str
    last: Point | None
    best: Point | None


@dataclasses.dataclass
class StoredRun:
    """What the files of a run folder say.

    Attributes:
      path: the run folder.
      config: {key: value} of config.json, by the keys of today.
      changes: (step, key, value before it) of what was changed while the run was trained, such as train.duration.
      starts: of environment.json, oldest first.
      result: of result.json; {} without one, and if the run has gone on since.
      curves: of metrics.jsonl.
      exports: the entries of exports/report.json.
      saved: the manifest of the newest checkpoint; {} if it was not asked for.
      checkpoints: the steps of the checkpoints, by their names.
      holder: the process that trains in the folder; '' if none does.
      failure: why the last start failed, in one line; '' if it did not.
      damages: one line for each file that could not be read.
    """

    path: Path
    config: dict[str, Any] = dataclasses.field(default_factory=dict)
    changes: list[Change] = dataclasses.field(default_factory=list)
    starts: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    result: dict[str, Any] = dataclasses.field(default_factory=dict)
    curves: Curves = dataclasses.field(default_factory=Curves)
    exports: list[ExportReport] = dataclasses.field(default_factory=list)
    saved: dict[str, Any] = dataclasses.field(default_factory=dict)
    checkpoints: list[int] = dataclasses.field(default_factory=list)
    holder: str = ""
    failure: str = ""
    damages: list[str] = dataclasses.field(default_factory=list)

    @property
    def start(self) -> dict[str, Any]:
        """The newest start; {} without one."""
        return self.starts[-1] if self.starts else {}

    @property
    def step(self) -> int:
        """The step that the run has come to, as far as its files know."""
        return max(self.curves.last_step, self.result.get("step", 0), *self.checkpoints, 0)

    @property
    def total_steps(self) -> int | None:
        """The length of the run; None if its files do not tell it."""
        if type(total := self.start.get("total_steps")) is int:
            return total
        if self.result.get("status") == "finished":
            return int(self.result["step"])
        duration = str(self.config.get("train.duration"))
        if steps := _STEPS.fullmatch(duration):
            return int(steps[1])
        epochs, done, step = _EPOCHS.fullmatch(duration), self.result.get("epochs"), self.result.get("step")
        return round(float(epochs[1]) * step / done) if epochs and done and step else None

    @property
    def state(self) -> str:
        """'running', 'finished', 'stopped early', 'failed', or 'stopped' before its end."""
        if self.holder:
            return "running"
        if self.result.get("status") in _ENDED:
            return str(self.result["status"])
        return "failed" if self.failure else "stopped"

    @property
    def has_ended(self) -> bool:
        """Whether it was trained to its end, or stopped early."""
        return self.state in _ENDED

    @property
    def facts(self) -> dict[str, str]:
        """{'framework': 'b82c33c9', …}: what numbers depend on beside config and code; of several starts, joined."""
        found: dict[str, list[str]] = {}
        for start in self.starts:
            for name, value in _facts(start):
                found.setdefault(name, []).append(value)
        return {name: ", ".join(dict.fromkeys(values)) for name, values in found.items()}

    @property
    def stopped_at(self) -> int:
        """The step from which the next start goes on."""
        return max(self.checkpoints, default=0)

    @property
    def modes(self) -> dict[str, str]:
        """{'test/loss': 'min'}: which values are better; {} for a run of an earlier version."""
        modes = self.start.get("modes")
        return modes if isinstance(modes, dict) else {}

    @property
    def overridden(self) -> dict[str, Any]:
        """{key: value} that differ from the defaults of the experiment, its preset included."""
        for source in (self.start, self.result):
            if isinstance(overridden := source.get("overridden"), dict):
                return overridden
        return {}

    @property
    def seconds(self) -> dict[str, float]:
        """{part of the run: seconds}, of its end or its newest checkpoint."""
        return self.result.get("seconds") or self.saved.get("note", {}).get("seconds") or {}

    def results(self) -> list[Result]:
        """Returns the last and the best evaluation of each metric."""
        names = [name.removeprefix(EVALUATION) for name in self.curves.of if name.startswith(EVALUATION)]
        return [self._result(name) for name in dict.fromkeys([*names, *self.result.get("final", ())])]

    def _result(self, name: str) -> Result:
        curve = self.curves.of.get(f"{EVALUATION}{name}")
        if curve is not None and name in self.modes:
            return Result(name, curve.latest, curve.lowest if self.modes[name] == "min" else curve.highest)
        last = None if curve is None else curve.latest
        best = [self.result.get(of, {}).get(name) for of in ("best_steps", "best")]
        if last is None and self.result.get("final", {}).get(name) is not None:
            last = (self.result.get("final_step") or self.step, self.result["final"][name])
        return Result(name, last, (best[0], best[1]) if None not in best else None)

    def main_result(self) -> Result | None:
        """Returns the result that the run is judged by: of `checkpoint.best_metric`, else of the first with a best."""
        results = {result.name: result for result in self.results()}
        for key in ("checkpoint.best_metric", "early_stopping.metric"):
            if (name := str(self.config.get(key))) in results:
                return results[name]
        judged = [result for result in results.values() if result.best is not None]
        return next((result for result in judged if "loss" not in result.name), next(iter(judged), None))


def is_run(names: set[str]) -> bool:
    """Returns whether a folder with files of these names is a run folder, perhaps a damaged one."""
    of_runs = {folder.CONFIG, folder.ENVIRONMENT, folder.OVERRIDES, folder.METRICS, folder.RESULT, folder.CHECKPOINTS}
    return folder.LOCK in names or len(names & of_runs) > 1


def read(path: Path, is_short: bool = False, make: type[Curve] = Curve) -> StoredRun:
    """Reads a run folder.

    Args:
      path: the folder.
      is_short: whether evaluations are the only curves, and checkpoints and exports are not opened.
      make: the class of the curves.
    """
    run = StoredRun(path, holder=holder(path / folder.LOCK) or told(path))
    none: tuple[dict[str, Any], list[Change]] = {}, []
    run.config, run.changes = _taken(run, folder.CONFIG, _config, none)
    run.starts = _taken(run, folder.ENVIRONMENT, _starts, [])
    result: dict[str, Any] = _taken(run, folder.RESULT, _result, {})
    try:
        run.curves = curves.read(path / folder.METRICS, b'"eval/' if is_short else b"", make)
    except CorruptError as error:
        run.damages.append(f"{folder.METRICS}: {error}")
    if run.curves.damaged:
        run.damages.append(f"{folder.METRICS}: {run.curves.damaged} damaged lines are left out")
    steps = map(folder.step_of, _names(path / folder.CHECKPOINTS))
    run.checkpoints = sorted(step for step in steps if step is not None)
    if result and _is_of_the_end(run, result):
        run.result = result
    run.failure = _failure(run)
    if not is_short:
        run.exports = _taken(run, f"{folder.EXPORTS}/{folder.REPORT}", _exports, [])
        if run.checkpoints:
            newest = f"{folder.CHECKPOINTS}/{folder.name_of(run.checkpoints[-1])}/{folder.MANIFEST}"
            run.saved = _taken(run, newest, _manifest, {})
    return run


def _taken(run: StoredRun, name: str, take: Callable[[Any], T], default: T) -> T:
    try:
        return take(load_json(run.path / name))
    except FileNotFoundError:
        if name == folder.CONFIG:
            run.damages.append(f"{name} is missing")
    except _DAMAGE as error:
        run.damages.append(f"{name}: {' '.join(str(error).split()) or type(error).__name__}")
    return default


def _config(value: Any) -> tuple[dict[str, Any], list[Change]]:
    """Returns the values, and the changes after step 0: those at it are former keys, or come before all training."""
    values = former.renamed({key: one for key, one in _flat(value).items() if not key.startswith("history")})
    changes = [change for change in value.get("history", ()) if type(change.get("step")) is int and change["step"] > 0]
    return values, [(one["step"], str(one["key"]), one["old"]) for one in changes if {"key", "old"} <= {*one}]


def _flat(value: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, one in value.items():
        flat |= _flat(one, f"{before}{key}.") if isinstance(one, dict) else {f"{before}{key}": one}
    return flat


def _starts(value: Any) -> list[dict[str, Any]]:
    for start in value["starts"]:
        if type(start["step"]) is not int:
            raise CorruptError("a start has no step")
        datetime.datetime.fromisoformat(start["time"])
    return list(value["starts"])


def _facts(start: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yields (name, value) of a start: the framework's commit, packages, hashes of the data, devices."""
    git, packages, data = (
        part if isinstance(part := start.get(name), dict) else {} for name in ("git", "packages", "data")
    )
    if commit := git.get("commit"):
        yield "framework", f"{str(commit)[:_DIGITS]}{' and changes' if git.get('dirty') else ''}"
    for name, version in packages.items():
        yield str(name), str(version)
    for split, sample in data.items():
        yield f"data of '{split}'", " ".join(part[:_DIGITS] for part in str(sample).split())
    for name in ("cpu", "devices"):
        if name in start:
            yield name, str(start[name])


def _result(value: Any) -> dict[str, Any]:
    if type(value["step"]) is not int or type(value["status"]) is not str:
        raise CorruptError("it has no step or no status")
    for name in ("final", "best", "best_steps", "train", "seconds"):
        _check_numbers(name, value.get(name, {}))
    single = ("epochs", "wall_seconds", "parameters", "final_step", "train_step", "examples_per_second", "data_wait")
    _check_numbers("result", {name: value.get(name) for name in single})
    return dict(value)


def _check_numbers(what: str, values: Any) -> None:
    for value in values.values():
        if value is not None and (type(value) not in (int, float) or abs(value) > sys.float_info.max):
            raise CorruptError(f"'{what}' holds what is no number")


def _exports(value: Any) -> list[ExportReport]:
    reports = [ExportReport(**report) for report in value]
    for report in reports:  # of an earlier version, or damaged: what the table reads must be there
        if report.passed and not {"1", "32"} <= {*report.latency_ms} & {*report.throughput}:
            raise CorruptError("an entry lacks its times")
    return reports


def _manifest(value: Any) -> dict[str, Any]:
    _check_numbers("seconds", value["note"].get("seconds", {}))
    if any(type(size) is not int for variable in value["variables"].values() for size in variable["shape"]):
        raise CorruptError("a variable has no shape")
    code = value.get("facts", {}).get("code", {})
    if any(type(text) is not str for pair in code.items() for text in pair):
        raise CorruptError("the code has no hash")
    return dict(value)


def _is_of_the_end(run: StoredRun, result: Mapping[str, Any]) -> bool:
    """Returns whether a result is of the newest start, which may have gone on with a run that had ended."""
    if result["step"] < max(run.curves.last_step, run.start.get("step", 0)):
        return False
    total = run.start.get("total_steps")
    return result["status"] != "finished" or type(total) is not int or result["step"] >= total


def _failure(run: StoredRun) -> str:
    """Returns why the newest start failed, if the newest of the files is about that."""
    failures = [run.path / folder.FAILURE / name for name in _names(run.path / folder.FAILURE)]
    others = (folder.ENVIRONMENT, folder.METRICS, folder.RESULT)
    newest = max(failures, key=_time, default=None)
    if newest is None or _time(newest) < max(_time(run.path / name) for name in others):
        return ""
    if newest.suffix == ".txt":
        try:
            lines = [line for line in curves.lines(newest) if line.strip()]
        except CorruptError:
            return newest.name
        return lines[-1].decode(errors="replace").strip() if lines else newest.name
    step = folder.step_of(newest.name)  # of the state before it
    return newest.name if step is None else f"step {step + 1:,} was not finite"


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except (OSError, ValueError):
        return 0.0


def _names(path: Path) -> list[str]:
    try:
        return sorted(one.name for one in path.iterdir())
    except OSError:
        return []
