"""Several runs beside each other: what differs in their configs, what came out, and their curves in one picture.

    groups = grouped([stored.read(path, make=Averaged) for path in paths])
    page(groups), csv_text(groups), summary(groups)

Runs whose config differs in the seed alone, and whose code is the same, are a group: one line, the mean over the seeds,
with a band from the least to the greatest value of any seed. Keys of `config.handling` do not count. A run that was
made longer had another schedule before, so its group are those that were made longer at the same step. What else
numbers depend on, such as the framework's commit and the data, makes no group of its own; it is shown if it differs.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from framework import folder
from framework.config.handling import HANDLING
from framework.files import CorruptError, read_bytes
from framework.pages import charts, html, listing, report
from framework.pages.curves import Averaged, parted
from framework.pages.stored import EVALUATION, Result, StoredRun

_LONGEST_LABEL = 80  # characters
_STYLE = (
    charts.STYLE
    + """\
body { max-width: 90em; margin: 1.5em auto; padding: 0 1em } h2 { margin-top: 2em }
.wide { overflow-x: auto } td, th { vertical-align: top; text-align: left }
td { overflow-wrap: break-word; max-width: 40em } .damages { color: #a00 }
"""
)


@dataclasses.dataclass(frozen=True)
class Group:
    """Holds runs that differ in the seed alone, or not even in that.

    Attributes:
      label: what differs from the other groups, or the name of the run.
      runs: at least one.
      values: {key: value} of the keys that differ between groups; 'code' is a hash of the experiment's files. Then of
        the facts that differ between runs, such as 'framework'.
    """

    label: str
    runs: tuple[StoredRun, ...]
    values: dict[str, str]


@dataclasses.dataclass(frozen=True)
class Figure:
    """A mean over runs, and their standard deviation (that of a sample, n - 1); NaN for fewer than two runs."""

    mean: float
    deviation: float

    def __str__(self) -> str:
        spread = "" if math.isnan(self.deviation) else f" ± {self.deviation:.2g}"
        return f"{self.mean:.6g}{spread}"


@dataclasses.dataclass(frozen=True)
class Line:
    """A metric of a group: over how many runs, at which last steps, its last and its best values, None without any."""

    metric: str
    group: Group
    runs: int
    steps: tuple[int, ...]
    last: Figure | None
    best: Figure | None


def grouped(runs: Sequence[StoredRun]) -> list[Group]:
    """Returns the groups of runs, in the order of their first runs."""
    kinds: dict[str, list[StoredRun]] = {}
    for run in runs:
        kinds.setdefault(json.dumps(_identity(run), sort_keys=True), []).append(run)
    members = [*kinds.values()]
    identities = [_identity(group[0]) for group in members]
    keys = [
        key
        for key in sorted({key for one in identities for key in one})
        if _is_mixed(one.get(key) for one in identities)
    ]
    facts = unlike(runs)
    groups = []
    for group, identity in zip(members, identities, strict=True):
        values = {key: report.as_text(identity[key]) if key in identity else "absent" for key in keys}
        label = _label(group, values)
        values |= {name: " / ".join(dict.fromkeys(run.facts.get(name, "unknown") for run in group)) for name in facts}
        groups.append(Group(label, tuple(group), values))
    return groups


def unlike(runs: Iterable[StoredRun]) -> list[str]:
    """Returns the names of the facts that differ between runs: 'framework', "data of 'train'"."""
    found: dict[str, set[str]] = {}
    for run in runs:
        for name, value in run.facts.items():
            found.setdefault(name, set()).add(value)
    return sorted(name for name, values in found.items() if len(values) > 1)


def _identity(run: StoredRun) -> dict[str, Any]:
    """Returns what the runs of a group have in common: config but for the seed and HANDLING, its changes, the code."""
    if not run.config:
        return {"config": f"{folder.CONFIG} of {run.path} is missing or damaged"}
    code = run.saved.get("facts", {}).get("code") or _copies(run)
    known = {"code": ", ".join(f"{name} {digest[:8]}" for name, digest in sorted(code.items()))} if code else {}
    changes = {f"{key} until step {step}": before for step, key, before in run.changes if key not in HANDLING}
    return {key: value for key, value in run.config.items() if key not in ("seed", *HANDLING)} | changes | known


def _copies(run: StoredRun) -> dict[str, str]:
    """Returns {name: SHA-256} of the code in a run folder, as checkpoints name it, of a run that has none yet."""
    found = [*run.path.glob("*.py"), *run.path.glob("code/**/*.py")]
    known = {}
    for path in sorted(found):
        with contextlib.suppress(CorruptError, FileNotFoundError):
            known[path.relative_to(run.path).as_posix()] = hashlib.sha256(read_bytes(path)).hexdigest()
    return known


def _is_mixed(values: Iterable[Any]) -> bool:
    return len({json.dumps(value) for value in values}) > 1


def _label(group: Sequence[StoredRun], values: dict[str, str]) -> str:
    names = [str(run.path) for run in group]
    shown = listing.short_names(values)
    differing = " ".join(f"{shown[key]}={value}" for key, value in values.items() if key != "code")
    label = differing if 0 < len(differing) <= _LONGEST_LABEL else ""
    if len(group) == 1:
        return f"{names[0]}: {label}" if label else names[0]
    seeds = len({run.config.get("seed") for run in group})
    runs = "" if seeds == len(group) else f"{len(group)} runs of "  # the same seed twice is not two draws
    return f"{label or names[0]} ({runs}{seeds} {'seed' if seeds == 1 else 'seeds'})"


def lines(groups: Sequence[Group]) -> list[Line]:
    """Returns a line for each metric and each group that evaluated it, metric by metric."""
    metrics = dict.fromkeys(result.name for group in groups for run in group.runs for result in run.results())
    every = (_line(metric, group) for metric in metrics for group in groups)
    return [line for line in every if line.runs]


def _line(metric: str, group: Group) -> Line:
    results = [result for run in group.runs for result in run.results() if result.name == metric]
    steps = tuple(sorted({result.last[0] for result in results if result.last}))
    if len(results) < len(group.runs) or _is_half_trained(group, steps):
        return Line(metric, group, len(results), steps, None, None)
    return Line(metric, group, len(results), steps, _figure(results, "last"), _figure(results, "best"))


def _is_half_trained(group: Group, steps: Sequence[int]) -> bool:
    """Returns whether the last values of runs are of several steps because some have not ended."""
    return len(steps) > 1 and not all(run.has_ended for run in group.runs)


def _figure(results: Sequence[Result], which: str) -> Figure | None:
    points = [getattr(result, which) for result in results]
    values = [point[1] for point in points if point is not None and math.isfinite(point[1])]
    if not values or len(values) < len(points):  # a mean over some of the seeds would pass for that of all
        return None
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return Figure(mean, math.sqrt(squares / (len(values) - 1)) if len(values) > 1 else math.nan)


def summary(groups: Sequence[Group], width: int) -> str:
    """Returns a short table for the terminal: the metric that the first run is judged by.

    Args:
      groups: of all runs.
      width: columns that lines have, if the numbers leave some for the names of the groups.
    """
    main = groups[0].runs[0].main_result()
    if main is None:
        return listing.aligned([("runs", "group"), *((str(len(one.runs)), one.label) for one in groups)], width)
    found = [_line(main.name, group) for group in groups]
    rows = [
        (_shown(line.last), _steps(line.steps), _shown(line.best), str(len(line.group.runs)), line.group.label)
        for line in found
    ]
    table = listing.aligned([("last", "at step", "best", "runs", "group"), *rows], width)
    whys = [f"No last value of {line.group.label}: {_why_not(line)}." for line in found if line.last is None]
    left = [f"{run.path} ({report.state(run)})" for one in groups for run in one.runs if not run.has_ended]
    return "\n".join([main.name, table, *whys, *([f"Not trained to the end: {', '.join(left)}."] if left else [])])


def _why_not(line: Line) -> str:
    """Returns why a group has no last value of a metric: which of its runs lack what."""
    values = {
        run.path: result.last for run in line.group.runs for result in run.results() if result.name == line.metric
    }
    lacking = [str(run.path) for run in line.group.runs if values.get(run.path) is None]
    if lacking:
        return f"{', '.join(lacking)} never evaluated it"
    if _is_half_trained(line.group, line.steps):
        return f"{', '.join(str(run.path) for run in line.group.runs if not run.has_ended)} not trained to the end"
    broken = [str(path) for path, last in values.items() if last is not None and not math.isfinite(last[1])]
    return f"that of {', '.join(broken)} is not finite"


def unlike_in_words(groups: Sequence[Group]) -> str:
    """Returns a sentence about the facts that differ between the runs; '' if none does."""
    names = unlike(run for group in groups for run in group.runs)
    return f"The runs also differ in {', '.join(names)}: numbers may differ for that alone." if names else ""


def csv_text(groups: Sequence[Group]) -> str:
    """Returns the table as CSV: a row for each metric and group, with a column for each key that differs."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    keys = [*groups[0].values]
    figures = ("last_mean", "last_sd", "best_mean", "best_sd")
    writer.writerow(["group", *keys, "metric", "runs", "last_step", *figures, "folders"])
    for line in lines(groups):
        numbers = [number for figure in (line.last, line.best) for number in _numbers(figure)]
        folders = " ".join(str(run.path) for run in line.group.runs)
        own = [line.group.values[key] for key in keys]
        writer.writerow([line.group.label, *own, line.metric, line.runs, _steps(line.steps), *numbers, folders])
    return out.getvalue().encode(errors="backslashreplace").decode()


def _numbers(figure: Figure | None) -> tuple[str, str]:
    if figure is None:
        return "", ""
    return repr(figure.mean), "" if math.isnan(figure.deviation) else repr(figure.deviation)


def page(groups: Sequence[Group]) -> str:
    """Returns the page."""
    count = sum(len(group.runs) for group in groups)
    title = f"{count} runs in {len(groups)} groups"
    damages = [f"{run.path}: {damage}" for group in groups for run in group.runs for damage in run.damages]
    shown = "".join(f"<li>{html.safe(damage)}</li>" for damage in damages)
    warned = f'<ul class="damages">{shown}</ul>\n' if shown else ""
    body = (
        f"<h1>{title}</h1>\n{warned}{_runs(groups)}<h2>What differs</h2>\n{_differing(groups)}"
        f"<h2>Results</h2>\n{_results(groups)}<h2>Curves</h2>\n{_curves(groups)}"
    )
    return html.document(title, body, _STYLE)


def _runs(groups: Sequence[Group]) -> str:
    rows = [
        html.row((group.label, run.path, report.state(run), f"{run.step:,}", run.config.get("seed", "")))
        for group in groups
        for run in group.runs
    ]
    return f'<div class="wide">{html.table(("group", "run", "state", "step", "seed"), rows)}</div>\n'


def _differing(groups: Sequence[Group]) -> str:
    keys = [*groups[0].values]
    if not keys:
        return "<p>Nothing but the seed.</p>\n"
    rows = [html.row((key, *(group.values[key] for group in groups))) for key in keys]
    note = f"<p>{html.safe(warning)}</p>\n" if (warning := unlike_in_words(groups)) else ""
    return f'<div class="wide">{html.table(("key", *(group.label for group in groups)), rows)}</div>\n{note}'


def _results(groups: Sequence[Group]) -> str:
    rows = [
        html.row((one.metric, one.group.label, one.runs, _steps(one.steps), _shown(one.last), _shown(one.best)))
        for one in lines(groups)
    ]
    note = (
        "Mean ± standard deviation (n - 1) over the runs of a group. A run without the value, whose value is not"
        " finite, or that has not ended while others are at another step, leaves the cell empty."
    )
    headings = ("metric", "group", "runs", "last at step", "last", "best")
    return f'<div class="wide">{html.table(headings, rows)}</div>\n<p>{note}</p>\n' if rows else "<p>None yet.</p>\n"


def _steps(steps: Sequence[int]) -> str:
    return "" if not steps else f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"


def _shown(figure: Figure | None) -> str:
    return "" if figure is None else str(figure)


def _curves(groups: Sequence[Group]) -> str:
    names = [*dict.fromkeys(name for group in groups for run in group.runs for name in run.curves.of)]
    means = {name for name in names if f"{report.MEAN}{name}" in names}  # single steps would hide each other
    curves_of = {name: [run.curves.of.get(name) for group in groups for run in group.runs] for name in report.COUNTS}
    zeros = {name for name, curves in curves_of.items() if all(map(report.is_zero, filter(None, curves)))}
    order = sorted((name for name in names if name not in means | zeros), key=_rank)
    figures = (
        charts.curves(_title(name), [*_series(groups, name)], is_linear=name == "learning_rate") for name in order
    )
    note = (
        "Of a group of seeds, the line is the mean and the band goes from the least to the greatest value of any seed."
        " At a step they are of the seeds that have come to it, and there is no point where one of these has no"
        " finite value. Of many rows, neighbours share a point."
    )
    return f'<div class="curves">\n{"".join(figures)}</div>\n<p>{note}</p>\n' if order else ""


def _rank(name: str) -> int:
    return 0 if name.startswith(EVALUATION) else 1 if name.startswith(report.MEAN) else 2


def _title(name: str) -> str:
    return (
        f"train {name.removeprefix(report.MEAN)} (mean)"
        if name.startswith(report.MEAN)
        else name.removeprefix(EVALUATION)
    )


def _series(groups: Sequence[Group], name: str) -> Iterator[charts.Series]:
    for number, group in enumerate(groups):
        colour = charts.COLOURS[number % len(charts.COLOURS)]
        curves = [run.curves.of[name] for run in group.runs if name in run.curves.of]
        averaged = [curve for curve in curves if isinstance(curve, Averaged)]
        if len(averaged) < 2:
            for curve in curves:
                yield charts.Series(group.label, curve.segments(), curve.gaps, colour)
            continue
        lost = sorted({step for curve in curves for step in curve.gaps})
        line, band = over_seeds(averaged)
        yield charts.Series(group.label, parted(line, lost), lost, colour, bands=parted(band, lost))


def over_seeds(curves: Sequence[Averaged]) -> tuple[list[tuple[float, float]], list[tuple[float, float, float]]]:
    """Returns points (step, mean over the seeds) and (step, least, greatest value of any seed), in order of steps.

    A seed counts up to its last value. Where one that counts has no finite value there is no point: a mean over the
    others would pass for that of all.
    """
    width = max(curve.width for curve in curves)
    bins: dict[int, list[tuple[float, float, float, float]]] = {}
    for curve in curves:
        for place, one in curve.bins(width).items():
            bins.setdefault(place, []).append(one)
    ends = [curve.latest[0] // width for curve in curves if curve.latest is not None]
    line, band = [], []
    for place, found in sorted(bins.items()):
        if len(found) < sum(end >= place for end in ends):
            continue
        step = sum(one[0] for one in found) / len(found)
        line.append((step, sum(one[1] for one in found) / len(found)))
        band.append((step, min(one[2] for one in found), max(one[3] for one in found)))
    return line, band
