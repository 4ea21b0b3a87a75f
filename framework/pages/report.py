"""report.html of a run folder: what a run was, how it went and what came out, from the files alone.

    write(Path("runs/mnist"))                 # of a run that has ended, or is under way
    page(stored.read(Path("runs/mnist")))     # the same as text

The page is made at the end of each run, so it may take a few milliseconds and no more. This project draws the curves
itself, because the import of a plotting library takes 0.5 to 1.5 s.
"""

import base64
import datetime
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework import folder
from framework.config.keys import KEYS
from framework.files import write_text
from framework.pages import charts, exports, html, shown, splits, stored
from framework.pages.curves import Curve, Point
from framework.pages.shown import Shown
from framework.pages.stored import EVALUATION, StoredRun

_STEP = "train, step"  # a line of single steps, which is noisy
MEAN = "mean/"  # before the name of a mean over the steps since the row before
_FIRST = ("learning_rate", "gradient_norm")  # pictures after those of the metrics, before the rest
_FENCE = "```"  # makes TensorBoard keep the columns of a text, as <pre> does
_CONFIG_TEXT = "config"  # name of a text that a run writes; the page has the config already
COUNTS = ("skipped", "empty_terms")  # 0 in a run without trouble: then no picture
_MOST_VARIABLES, _MOST_PICTURES, _MOST_TEXTS = 30, 24, 24
_MOST_BYTES = 4_000_000  # of all pictures together
_MOST_CHARACTERS = 20_000  # of a text
_OF_START = (
    "command",
    "python",
    "cpu",
    "cores",
    "devices",
    "replicas",
    "platform",
    "packages",
    "git",
    "experiment_git",
)
_PARTS = {
    "building": "building: data, model, first traces",
    "tuning": "tuning: which compile mode is fastest",
    "compiling": "compiling, and the first block",
    "steps": "training steps",
    "data_wait": "waiting for streamed data",
    "log": "hook: rows of numbers",
    "histograms": "hook: histograms",
    "evaluate": "hook: evaluations",
    "save": "waiting for checkpoints",
    "other": "other: reading files, closing writers, …",
}
_STYLE = (
    charts.STYLE
    + """\
body { max-width: 90em; margin: 1.5em auto; padding: 0 1em } h1 { overflow-wrap: anywhere } h2 { margin-top: 2em }
.wide { overflow-x: auto } td { white-space: nowrap } td, th { vertical-align: top }
td:first-child, .left td, .failure { white-space: normal; overflow-wrap: break-word; min-width: 7em }
.left td, .left th { text-align: left } .damages { color: #a00 } summary { cursor: pointer; margin: .5em 0 }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: #f5f5f5; padding: .7em; margin: .3em 0 }
.pictures { display: flex; flex-wrap: wrap; gap: 1.5em } .pictures img { max-width: 100%; image-rendering: pixelated }
.bar { display: block; height: .8em; background: #0072b2; min-width: 1px }
"""
)


def write(workdir: Path) -> Path:
    """Writes report.html of a run folder and returns its path.

    Raises:
      OSError: the file cannot be written.
    """
    path = workdir / folder.PAGE
    write_text(path, page(stored.read(workdir), shown.newest(workdir / folder.CURVES)))
    return path


def refresh(workdir: Path) -> None:
    """Writes report.html as `write` does; a fault of the page itself is logged and does not end the run.

    Raises:
      OSError: the file cannot be written.
    """
    try:
        write(workdir)
    except OSError:
        raise
    except Exception as error:
        kind = type(error).__name__
        logging.error("%s of %s is not written: %s: %s", folder.PAGE, workdir, kind, error, exc_info=True)


def page(run: StoredRun, pictures: Shown | None = None) -> str:
    """Returns the page of a run; `pictures` are what its evaluators showed."""
    pictures = pictures or Shown()
    parts = {
        "": _facts(run),
        "Results": _results(run),
        "Curves": _curves(run),
        "Time": _time(run),
        "Data": _data(run),
        "Exports": _exports(run),
        "Pictures": _pictures(pictures),
        "Texts": _texts(pictures),
        "Config": _config(run),
        "Model": _variables(run),
        "Environment": _environment(run),
    }
    body = "".join((f"<h2>{title}</h2>\n" if title else "") + part for title, part in parts.items() if part)
    name = run.path.resolve().name
    return html.document(name, f"<h1>{html.safe(name)}</h1>\n{body}", _STYLE)


def duration(seconds: float) -> str:
    """Returns a time as text: '4.2 s', '3 min 5 s', '2 h 36 min'."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def state(run: StoredRun) -> str:
    """Returns the state of a run in words, 'running since …' or 'stopped at step 400'."""
    if run.state == "running":
        return f"running (process {run.holder})"
    if run.state == "failed":
        return f"failed: {run.failure}"
    return f"stopped at step {run.stopped_at:,}" if run.state == "stopped" else run.state


def seconds_of(run: StoredRun) -> float | None:
    """Returns how long a run took or, as far as files tell, has taken since its newest start; None if none tells."""
    if (known := run.result.get("wall_seconds")) is not None:
        return float(known)
    if not run.starts:
        return None
    try:
        end = time.time() if run.holder else (run.path / folder.METRICS).stat().st_mtime
    except OSError:
        return None
    return max(0.0, end - datetime.datetime.fromisoformat(run.start["time"]).timestamp())


def _facts(run: StoredRun) -> str:
    damages = "".join(f"<li>{html.safe(damage)}</li>" for damage in run.damages)
    total = "" if run.total_steps is None else f" of {run.total_steps:,}"
    facts: dict[str, object] = {
        "state": state(run),
        "step": f"{run.step:,}{total}",
        "epochs": _number(run.result.get("epochs")),
        "started": run.starts[0]["time"] if run.starts else "",
        "time": "" if (spent := seconds_of(run)) is None else duration(spent),
        "examples per second": _number(run.result.get("examples_per_second"), "{:,.0f}"),
        "trained parameters": _number(run.result.get("parameters"), "{:,}"),
        "seed": run.config.get("seed", ""),
        "compile": run.result.get("compile", ""),
        "updates skipped": run.result.get("skipped", ""),
    }
    rows = (html.row(pair) for pair in facts.items() if pair[1] != "")
    warned = f'<ul class="damages">{damages}</ul>\n' if damages else ""
    return f'{warned}<div class="wide left">{html.table((), rows)}</div>\n'


def _results(run: StoredRun) -> str:
    rows = []
    for result in run.results():
        last, best = result.last, result.best
        mode = run.modes.get(result.name, "")
        rows.append(html.row((result.name, *_point(last), *_point(best), mode)))
    means = {name: curve for name, curve in run.curves.of.items() if name.startswith(MEAN)}
    for name, curve in means.items():
        rows.append(html.row((f"train {name.removeprefix(MEAN)} (mean)", *_point(curve.latest), "", "", "")))
    headings = ("metric", "last", "of step", "best", "of step", "better is")
    return f'<div class="wide">{html.table(headings, rows)}</div>\n' if rows else ""


def _point(point: Point | None) -> tuple[str, str]:
    return ("", "") if point is None else (f"{point[1]:.6g}", f"{point[0]:,}")


def _curves(run: StoredRun) -> str:
    figures, zeros = [], [name for name in COUNTS if is_zero(run.curves.of.get(name))]
    for title, names in pictures_of(run.curves.of).items():
        if title not in zeros:
            series = _series(names, run.curves.of)
            figures.append(charts.curves(title, series, is_linear=title == "learning_rate"))
    lost = [f"{name}: {curve.lost:,}" for name, curve in run.curves.of.items() if curve.lost]
    notes = [f"0 in every row: {', '.join(zeros)}."] if zeros else []
    notes += [f"Values that are not finite, dashed in red where they stand: {', '.join(lost)}."] if lost else []
    if not figures:
        return ""
    shown_notes = f"<p>{html.safe(' '.join(notes))}</p>\n" if notes else ""
    return f'<div class="curves">\n{"".join(figures)}</div>\n{shown_notes}'


def is_zero(curve: Curve | None) -> bool:
    """Returns whether a curve is 0 in every row."""
    if curve is None or curve.lowest is None or curve.highest is None or curve.lost:
        return False
    return curve.lowest[1] == curve.highest[1] == 0


def _series(lines: Mapping[str, str], of: Mapping[str, Curve]) -> list[charts.Series]:
    """Returns the lines of a picture: those of training in blue, each split in a colour of its own."""
    series, others = [], 0
    for shown_as, name in lines.items():
        is_training = shown_as.startswith("train") and not name.startswith(EVALUATION)
        others += not is_training
        colour = charts.COLOURS[0 if is_training else 1 + (others - 1) % (len(charts.COLOURS) - 1)]
        curve = of[name]
        series.append(charts.Series(shown_as, curve.segments(), curve.gaps, colour, shown_as == _STEP))
    return series


def pictures_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Returns {picture: {line: name in metrics.jsonl}}: training and evaluations of a metric are in one picture."""
    names = [*names]
    metrics: dict[str, dict[str, str]] = {}
    for name in names:
        if name.startswith(EVALUATION):
            split, _, metric = name.removeprefix(EVALUATION).partition("/")
            metrics.setdefault(metric or split, {})[split] = name
        elif name.startswith(MEAN):
            metrics.setdefault(name.removeprefix(MEAN), {})["train, mean"] = name
    rest = {}
    for name in names:
        if name in metrics:
            metrics[name][_STEP] = name
        elif not name.startswith((EVALUATION, MEAN)):
            rest[name] = {"train": name}
    order = ["loss", *(name for name in metrics if name != "loss"), *_FIRST, *rest]
    together = rest | metrics
    return {name: _ordered(together[name]) for name in dict.fromkeys(order) if name in together}


def _ordered(lines: Mapping[str, str]) -> dict[str, str]:
    """Returns training first, so that it has the same colours in each picture."""
    first = {name: lines[name] for name in ("train, mean", _STEP, "train") if name in lines}
    return first | dict(lines)


def _time(run: StoredRun) -> str:
    spent = {part: seconds for part, seconds in run.seconds.items() if seconds is not None}
    total = sum(spent.values())
    if total <= 0:
        return ""
    rows = []
    for part, seconds in sorted(spent.items(), key=lambda pair: -pair[1]):
        name = _PARTS.get(part, part.replace("hooks/", "hook: "))
        share = max(0.0, seconds / total)
        bar = f'<td style="width:12em"><i class="bar" style="width:{100 * share:.1f}%"></i></td>'
        rows.append(html.row((name, f"{seconds:,.3f}", f"{share:.1%}")).replace("</tr>", f"{bar}</tr>"))
    steps = spent.get("steps", 0.0) + spent.get("data_wait", 0.0)
    rows.append(html.row(("all", f"{total:,.3f}", "")))
    of = "" if run.result else f" Up to the checkpoint of step {run.saved.get('step', 0):,}."
    note = f"<p>The steps after the first block took {steps / total:.1%} of the time.{of}</p>\n"
    return f'<div class="wide">{html.table(("part", "seconds", "share", ""), rows)}</div>\n{note}'


def _data(run: StoredRun) -> str:
    try:
        return splits.section(run.result.get("data", {}))
    except (AttributeError, LookupError, TypeError, ValueError):
        return f'<p class="damages">data of {folder.RESULT} is damaged.</p>\n'


def _exports(run: StoredRun) -> str:
    if not run.exports:
        return ""
    try:
        parts = exports.table(run.exports), exports.chart([one for one in run.exports if one.passed])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        return f'<p class="damages">{folder.EXPORTS}/{folder.REPORT} is damaged.</p>\n'
    return f'<div class="wide">{parts[0]}</div>\n<p>{exports.NOTE}</p>\n<div class="wide">{parts[1]}</div>\n'


def _pictures(found: Shown) -> str:
    figures: list[str] = []
    room = _MOST_BYTES
    for name, (step, png) in found.pictures.items():
        room -= len(png)
        if room < 0 or len(figures) == _MOST_PICTURES:
            break
        source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
        figures.append(
            f'<figure><figcaption>{html.safe(name)}, step {step:,}</figcaption><img alt="" src="{source}"></figure>\n'
        )
    left = len(found.pictures) - len(figures)
    note = f"<p>{left} more are in TensorBoard.</p>\n" if left else ""
    return f'<div class="pictures">\n{"".join(figures)}</div>\n{note}' if found.pictures else ""


def _texts(found: Shown) -> str:
    parts, texts = [], {name: text for name, text in found.texts.items() if name != _CONFIG_TEXT}
    for name, (step, text) in [*texts.items()][:_MOST_TEXTS]:
        words = text.removeprefix(f"{_FENCE}\n").removesuffix(f"\n{_FENCE}")
        cut = " …" if len(words) > _MOST_CHARACTERS else ""
        shown_words = html.safe(words[:_MOST_CHARACTERS] + cut)
        parts.append(
            f"<details open><summary>{html.safe(name)}, step {step:,}</summary><pre>{shown_words}</pre></details>\n"
        )
    left = len(texts) - len(parts)
    return "".join(parts) + (f"<p>{left} more are in TensorBoard.</p>\n" if left else "")


def _config(run: StoredRun) -> str:
    """Returns the keys that differ from the defaults, then all; what was typed is marked."""
    if not run.config:
        return ""
    rows, all_rows = [], []
    for key, value in sorted(run.config.items()):
        default = KEYS[key].default if key in KEYS else None
        is_own = key not in KEYS
        cells = (key, as_text(value), "key of the experiment" if is_own else as_text(default))
        typed = "yes" if key in run.overridden else ""
        all_rows.append(html.row((*cells, typed)))
        if is_own or typed or as_text(value) != as_text(default):
            rows.append(all_rows[-1])
    headings = ("key", "value", "default of the framework", "differs from the experiment's")
    differing, everything = html.table(headings, rows), html.table(headings, all_rows)
    was = [f"{key} was {as_text(before)} until step {step:,}." for step, key, before in run.changes]
    changed = f"<p>{html.safe(' '.join(was))}</p>\n" if was else ""
    return changed + (
        f'<div class="wide left">{differing}</div>\n'
        f'<details><summary>All {len(all_rows)} keys</summary><div class="wide left">{everything}</div></details>\n'
    )


def as_text(value: Any) -> str:
    """Returns a value of a config as text; a tuple is a list, as in JSON, and an empty text is seen."""
    return (value or "''") if isinstance(value, str) else json.dumps(value)


def _variables(run: StoredRun) -> str:
    sizes = {}
    for path, variable in run.saved.get("variables", {}).items():
        if path.startswith("model/"):
            size = 1
            for extent in variable["shape"]:
                size *= extent
            sizes[path.removeprefix("model/")] = (size, variable["shape"], str(variable.get("dtype", "")))
    if not sizes:
        return ""
    largest = sorted(sizes.items(), key=lambda pair: -pair[1][0])
    rows = [html.row((path, shape, dtype, f"{size:,}")) for path, (size, shape, dtype) in largest[:_MOST_VARIABLES]]
    total = sum(size for size, _, _ in sizes.values())
    more = f", the largest {_MOST_VARIABLES}" if len(sizes) > _MOST_VARIABLES else ""
    summary = f"{len(sizes)} variables of the model, {total:,} numbers{more}"
    table = html.table(("variable", "shape", "dtype", "numbers"), rows)
    return f'<details><summary>{html.safe(summary)}</summary><div class="wide">{table}</div></details>\n'


def _environment(run: StoredRun) -> str:
    """Returns what a start recorded; environment variables, which may hold secrets, are not among it."""
    rows = [html.row((name, _flat(run.start[name]))) for name in _OF_START if name in run.start]
    data = run.result.get("data")
    for split, origin in data.items() if isinstance(data, dict) else ():
        if isinstance(origin, dict):
            facts = (f"{origin[name]}" for name in ("source", "placement") if name in origin)
            rows.append(html.row((f"data: {split}", f"{origin.get('examples', '?')} examples; {'; '.join(facts)}")))
    starts = [html.row((one["time"], f"{one['step']:,}", one.get("command", ""))) for one in run.starts]
    if not rows:
        return ""
    many = (
        f"<details><summary>{len(starts)} starts</summary>{html.table(('time', 'step', 'command'), starts)}</details>\n"
    )
    return f'<div class="wide left">{html.table((), rows)}</div>\n' + (
        f'<div class="wide left">{many}</div>' if len(starts) > 1 else ""
    )


def _flat(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_flat(one)}" for name, one in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return str(value)


def _number(value: float | None, form: str = "{:.4g}") -> str:
    return "" if value is None else form.format(value)
