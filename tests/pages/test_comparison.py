"""framework/pages/comparison.py: groups of seeds, their means and bands, the keys that differ."""

import csv
import json
import math
import re

import numpy as np
import pytest

import launch
from framework.pages import comparison, curves, listing, report, stored
from framework.pages.comparison import grouped, over_seeds
from framework.pages.curves import Averaged
from tests.modes.test_compare import call
from tests.pages.browser import needs_chromium, opened
from tests.pages.cells import Cells
from tests.pages.folders import BAD, RESULT, ROWS, SECONDS, evaluation, make, start
from tests.pages.test_charts import close, drawn, expected

LAST = {("a", 0): 0.5, ("a", 1): 0.75, ("a", 2): 0.625, ("b", 0): 0.25, ("b", 1): 0.375}
BEST = {("a", 0): 0.875, ("a", 1): 0.75, ("a", 2): 1.0, ("b", 0): 0.25, ("b", 1): 0.5}


def make_five(folder):
    """Three seeds of a rate and two of another."""
    for (kind, seed), last in LAST.items():
        config = {"seed": seed, "schedule": {"learning_rate": 0.5 if kind == "a" else 0.125}}
        rows = [evaluation(100, 2.0 + seed, BEST[kind, seed]), evaluation(400, 1.0 + seed, last)]
        make(folder / f"{kind}{seed}", rows, RESULT, config=config)
    return [folder / f"{kind}{seed}" for kind, seed in LAST]


def read(paths):
    return grouped([stored.read(path, make=Averaged) for path in paths])


def figures(text):
    found = re.findall(r"<figure><figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text, re.DOTALL)
    return {title: drawn(svg) for title, svg in found}


def test_runs_that_differ_in_the_seed_alone_are_a_group(tmp_path):
    groups = read(make_five(tmp_path))
    assert [(group.label, [run.path.name for run in group.runs]) for group in groups] == [
        ("learning_rate=0.5 (3 seeds)", ["a0", "a1", "a2"]),
        ("learning_rate=0.125 (2 seeds)", ["b0", "b1"]),
    ]
    assert [group.values for group in groups] == [
        {"schedule.learning_rate": "0.5"},
        {"schedule.learning_rate": "0.125"},
    ]


def test_keys_of_the_same_last_part_have_their_whole_name_in_the_label(tmp_path):
    """Else 'name=adam name=cosine' would say neither which is which nor what differs."""
    for optimizer, schedule in (("adam", "cosine"), ("sgd", "constant")):
        config = {"optimizer": {"name": optimizer}, "schedule": {"name": schedule, "learning_rate": len(schedule)}}
        make(tmp_path / optimizer, config=config)
    labels = [group.label.partition(": ")[2] for group in read([tmp_path / "adam", tmp_path / "sgd"])]
    assert labels == [
        "optimizer.name=adam learning_rate=6 schedule.name=cosine",
        "optimizer.name=sgd learning_rate=8 schedule.name=constant",
    ]


def test_a_run_that_was_made_longer_is_no_seed_of_one_that_was_long_from_the_beginning(tmp_path):
    change = {"step": 200, "key": "train.duration", "old": "200 steps", "new": "400 steps"}
    begun = {"step": 0, "key": "data.remainder", "old": "carry", "new": "wrap"}
    for seed, history in enumerate(([], [begun], [change], [change, {"step": "3"}])):
        make(tmp_path / str(seed), config={"seed": seed, "history": history})
    groups = read([tmp_path / str(seed) for seed in range(4)])
    assert [[run.path.name for run in group.runs] for group in groups] == [["0", "1"], ["2", "3"]]
    key = "train.duration until step 200"
    assert [group.values for group in groups] == [{key: "absent"}, {key: "200 steps"}]
    shown = [f"<p>{key.replace(' until', ' was 200 steps until')}.</p>" in report.page(g.runs[0]) for g in groups]
    assert shown == [False, True]


def test_other_code_is_another_group(tmp_path):
    for seed in range(2):
        folder = make(tmp_path / str(seed), config={"seed": seed})
        manifest = {"note": {}, "variables": {}, "facts": {"code": {"mnist.py": f"sha {seed}"}}}
        (folder / "checkpoints" / "step-00000400" / "manifest.json").write_text(json.dumps(manifest))
    groups = read([tmp_path / "0", tmp_path / "1"])
    assert [group.label for group in groups] == [str(tmp_path / "0"), str(tmp_path / "1")]
    assert [group.values for group in groups] == [{"code": "mnist.py sha 0"}, {"code": "mnist.py sha 1"}]


def test_other_code_is_another_group_before_the_first_checkpoint(tmp_path):
    for seed, text in enumerate(("a = 1", "a = 1", "a = 2")):
        folder = make(tmp_path / str(seed), config={"seed": seed}, saved=())
        (folder / "code").mkdir()
        (folder / "mnist.py").write_text("import helpers")
        (folder / "code" / "helpers.py").write_text(text)
    groups = read([tmp_path / str(seed) for seed in range(3)])
    assert [len(group.runs) for group in groups] == [2, 1]
    assert [re.findall(r"(\S+\.py) \w{8}", group.values["code"]) for group in groups] == 2 * [
        ["code/helpers.py", "mnist.py"]
    ]


def test_runs_without_a_config_are_no_group(tmp_path):
    for name in ("a", "b"):
        (make(tmp_path / name) / "config.json").write_text("{")
    assert [len(group.runs) for group in read([tmp_path / "a", tmp_path / "b"])] == [1, 1]


def test_the_same_seed_twice_is_not_two_seeds(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        make(tmp_path / name, config={"seed": seed})
    paths = [tmp_path / name for name in ("a", "b", "c")]
    assert [group.label for group in read(paths)] == [f"{paths[0]} (3 runs of 2 seeds)"]
    assert [group.label for group in read(paths[:2])] == [f"{paths[0]} (2 runs of 1 seed)"]


def test_the_table_has_mean_and_deviation_of_numpy(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    paths = make_five(tmp_path)
    out = tmp_path / "compare.html"
    assert launch.main(["launch.py", "--mode=compare", *map(str, paths), f"--out={out}"]) == 0
    printed = capsys.readouterr().out.splitlines()
    rows = {(row[0], row[1]): row[2:] for row in Cells(out.read_text()).rows if len(row) == 6}
    written = {
        (row["metric"], row["group"]): row
        for row in csv.DictReader((tmp_path / "compare.csv").read_text().splitlines())
    }
    for kind, label in (("a", "learning_rate=0.5 (3 seeds)"), ("b", "learning_rate=0.125 (2 seeds)")):
        last = np.array([value for key, value in LAST.items() if key[0] == kind])
        best = np.array([value for key, value in BEST.items() if key[0] == kind])
        shown = [f"{values.mean():.6g} ± {values.std(ddof=1):.2g}" for values in (last, best)]
        assert rows["test/accuracy", label] == [str(len(last)), "400", *shown]
        assert [line for line in printed if label in line and shown[0] in line and shown[1] in line]
        row = written["test/accuracy", label]
        numbers = [float(row[name]) for name in ("last_mean", "last_sd", "best_mean", "best_sd")]
        assert numbers == pytest.approx([last.mean(), last.std(ddof=1), best.mean(), best.std(ddof=1)], rel=1e-12)
        assert row["runs"] == str(len(last)) and row["schedule.learning_rate"] in label
        assert row["folders"].split() == [str(path) for path in paths if path.name[0] == kind]
    assert printed[0] == "test/accuracy"
    assert printed[1].split() == ["last", "at", "step", "best", "runs", "group"]
    assert printed[-1] == f"{out}, {tmp_path / 'compare.csv'}"


def test_the_line_is_the_mean_and_the_band_goes_from_the_least_to_the_greatest(tmp_path):
    lines, svg = figures(comparison.page(read(make_five(tmp_path))))["test/loss"]
    low, high = 1.0, 4.0  # of all
    assert close(lines["learning_rate=0.5 (3 seeds)"][0], expected([(100, 3.0), (400, 2.0)], 400, low, high))
    assert close(lines["learning_rate=0.125 (2 seeds)"][0], expected([(100, 2.5), (400, 1.5)], 400, low, high))
    bands = [
        [tuple(map(float, point.split(","))) for point in polygon.get("points").split()]
        for polygon in svg.iter("polygon")
    ]
    assert close(bands[0], expected([(100, 4.0), (400, 3.0), (400, 1.0), (100, 2.0)], 400, low, high))
    assert close(bands[1], expected([(100, 3.0), (400, 2.0), (400, 1.0), (100, 2.0)], 400, low, high))


def test_means_over_seeds_of_many_rows_are_those_of_bins():
    rng = np.random.default_rng(5)
    values = [rng.normal(size=4000), rng.normal(size=1500)]  # one seed stopped early
    values[0][777] = 50.0
    averaged = [Averaged(), Averaged()]
    for curve, own in zip(averaged, values, strict=True):
        for number, value in enumerate(own):
            curve.add(10 * (number + 1), float(value))
    line, band = over_seeds(averaged)
    assert len(line) == len(band) <= 250
    width = max(curve.width for curve in averaged)
    steps = [10 * np.arange(1, own.size + 1) for own in values]
    for (step, mean), (at, low, high), place in zip(line, band, np.unique(steps[0] // width), strict=True):
        inside = [
            own[of // width == place] for own, of in zip(values, steps, strict=True) if (of // width == place).any()
        ]
        assert mean == pytest.approx(np.mean([own.mean() for own in inside]), abs=1e-12) and step == at
        assert (low, high) == (min(own.min() for own in inside), max(own.max() for own in inside))
    assert max(high for *_, high in band) == 50.0


def test_few_rows_are_averaged_step_by_step():
    averaged = [Averaged(), Averaged()]
    for curve, shift in zip(averaged, (0.0, 1.0), strict=True):
        for step in (100, 200):
            curve.add(step, step + shift)
    averaged[1].add(300, 7.0)  # the other seed has not come to it
    assert over_seeds(averaged) == (
        [(100, 100.5), (200, 200.5), (300, 7.0)],
        [(100, 100.0, 101.0), (200, 200.0, 201.0), (300, 7.0, 7.0)],
    )


def test_a_value_that_a_seed_lacks_gives_no_mean(tmp_path):
    paths = make_five(tmp_path)[:2]
    with (paths[0] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "eval/test/late": null}\n')
    with (paths[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 400, "eval/test/late": 3.0}\n')
    late = [line for line in comparison.lines(read(paths)) if line.metric == "test/late"]
    assert [(line.runs, line.last, line.best) for line in late] == [(2, None, None)]


def test_a_seed_that_never_evaluated_gives_no_mean(tmp_path, capsys):
    paths = make_five(tmp_path)[:3]
    (paths[1] / "result.json").unlink()
    (paths[1] / "metrics.jsonl").write_text('{"step": 100, "loss": 1.0}\n')
    lines = [line for line in comparison.lines(read(paths)) if line.metric == "test/accuracy"]
    assert [(line.runs, line.last, line.best) for line in lines] == [(2, None, None)]
    assert call(*paths, f"--out={tmp_path / 'x.html'}") == 0
    why = f"No last value of {paths[0]} (3 seeds): {paths[1]} never evaluated it."
    assert why in capsys.readouterr().out.splitlines()


def test_line_and_band_of_seeds_have_a_gap_where_one_is_not_finite(tmp_path):
    for seed in range(2):
        values = {10: 1.0, 20: None if seed else 1.0, 30: 2.0, 40: 3.0}
        rows = [{"step": step, "mean/loss": value} for step, value in values.items()]
        make(tmp_path / str(seed), rows, None, config={"seed": seed})
    lines, svg = figures(comparison.page(read([tmp_path / "0", tmp_path / "1"])))["train loss (mean)"]
    (segments,) = lines.values()
    assert [len(segment) for segment in segments] == [1, 2]
    assert [len(band.get("points").split()) for band in svg.iter("polygon")] == [2, 4]


def test_where_a_seed_is_not_finite_there_is_no_mean_of_the_others():
    averaged = [Averaged(), Averaged()]
    for step in (100, 200, 300):
        averaged[0].add(step, 1.0)
        averaged[1].add(step, math.nan if step == 200 else 2.0)
    averaged[0].add(400, 1.0)  # the other one has not come to it
    assert over_seeds(averaged) == (
        [(100, 1.5), (300, 1.5), (400, 1.0)],
        [(100, 1.0, 2.0), (300, 1.0, 2.0), (400, 1.0, 1.0)],
    )


def test_the_last_number_of_a_seed_that_broke_is_not_one_before(tmp_path):
    paths = make_five(tmp_path)[:3]
    (paths[1] / "result.json").unlink()
    with (paths[1] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 500, "eval/test/loss": null, "eval/test/accuracy": null}\n')
    groups = read(paths)
    (line,) = (line for line in comparison.lines(groups) if line.metric == "test/accuracy")
    assert (line.runs, line.steps, line.last, line.best) == (3, (400, 500), None, None)
    assert f"(3 seeds): {paths[1]} not trained to the end.\n" in comparison.summary(groups, 0)
    broken = groups[0].runs[1]
    assert "nan @500" in listing.table(tmp_path, [broken])
    assert ["test/accuracy", "nan", "500", "0.75", "100", "max"] in Cells(report.page(broken)).rows


def test_a_seed_that_was_killed_half_way_gives_no_mean(tmp_path):
    paths = make_five(tmp_path)[:3]
    (paths[1] / "result.json").unlink()
    rows = [evaluation(100, 3.0, 0.75), evaluation(200, 2.5, 0.875)]
    (paths[1] / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (line,) = (line for line in comparison.lines(read(paths)) if line.metric == "test/accuracy")
    assert (line.runs, line.steps, line.last, line.best) == (3, (200, 400), None, None)
    assert comparison.summary(read(paths[1:2]), 0).endswith(
        f"\nNot trained to the end: {paths[1]} (stopped at step 400)."
    )
    (paths[1] / "result.json").write_text(json.dumps(RESULT | {"status": "stopped early", "step": 200}))
    (line,) = (line for line in comparison.lines(read(paths)) if line.metric == "test/accuracy")
    assert line.last.mean == pytest.approx(np.mean([0.5, 0.875, 0.625])) and line.steps == (200, 400)


def test_how_a_run_is_handled_makes_no_other_group(tmp_path):
    handled = {"log": {"console": "plain"}, "profile": {"steps": "10:15"}, "checkpoint": {"keep": 9, "best_metric": ""}}
    a = make(tmp_path / "a", config={"checkpoint": {"best_metric": ""}})
    b = make(tmp_path / "b", config={"seed": 1, **handled})
    assert [len(group.runs) for group in read([a, b])] == [2]
    c = make(tmp_path / "c", config={"seed": 2, **handled, "data": {"dir": "elsewhere"}})
    assert [group.values for group in read([a, b, c])] == [{"data.dir": "''"}, {"data.dir": "elsewhere"}]


def test_other_commits_packages_and_data_are_told(tmp_path, capsys):
    def begun(commit, dirty=False, data="1234567890 abcdef1234", **packages):
        git = {"commit": commit, "dirty": dirty}
        return start(git=git, data={"train": data}, packages={"tensorflow": "2.21.0"} | packages, cpu="x")

    one, other = "a" * 40, "b" * 40
    a = make(tmp_path / "a", starts=[begun(one), begun(other, dirty=True)])
    b = make(tmp_path / "b", starts=[begun(one)], config={"seed": 1})
    c = make(tmp_path / "c", starts=[begun(one, data="0000000011 abcdef1234")], config={"k": 1})
    bare = make(tmp_path / "bare", config={"seed": 2})  # of an early version
    groups = read([a, b, c, bare])
    assert [len(group.runs) for group in groups] == [3, 1]
    assert [group.values for group in groups] == [
        {"k": "absent", "data of 'train'": "12345678 abcdef12 / unknown", "framework": f"{both} / {one[:8]} / unknown"}
        for both in ["aaaaaaaa, bbbbbbbb and changes"]
    ] + [{"k": "1", "data of 'train'": "00000000 abcdef12", "framework": "aaaaaaaa"}]
    assert [group.label for group in groups] == ["k=absent (3 seeds)", f"{c}: k=1"]
    warned = "The runs also differ in data of 'train', framework: numbers may differ for that alone."
    assert comparison.unlike_in_words(groups) == warned and warned in html_text(comparison.page(groups))
    assert call(a, b, c, f"--out={tmp_path / 'x.html'}") == 0
    assert f"{warned} They are in the page." in capsys.readouterr().out
    assert comparison.unlike_in_words(read([b, bare])) == ""


def html_text(page):
    return page.replace("&#x27;", "'")


def test_a_group_without_a_metric_has_no_line_of_it(tmp_path):
    a, b = (
        make(tmp_path / "a", [evaluation(1, 1.0, 0.5), {"step": 2, "eval/own/late": 3.0}]),
        make(tmp_path / "b", config={"k": 1}),
    )
    assert [line.group.runs[0].path for line in comparison.lines(read([a, b])) if line.metric == "own/late"] == [a]


def test_single_runs_show_their_spikes_and_gaps(tmp_path):
    rows = [{"step": 10, "mean/loss": 1.0}, {"step": 20, "mean/loss": None}, {"step": 30, "mean/loss": 2.0}]
    a, b = (
        make(tmp_path / "a", rows, None),
        make(tmp_path / "b", rows[:1], None, config={"train": {"duration": "9 steps"}}),
    )
    lines, _ = figures(comparison.page(read([a, b])))["train loss (mean)"]
    assert [len(points) for points in lines[f"{a}: duration=400 steps"]] == [1, 1]


def test_all_that_others_wrote_is_escaped(tmp_path):
    for number in range(3):
        rows = [{"step": 1, f"loss{BAD}": 1.0, f"eval/{BAD}/{BAD}": 2.0}, *ROWS]
        config = {"seed": f"{BAD}{number}", f"k{BAD}": BAD if number else "x"}
        result = RESULT | {"status": BAD, "seconds": SECONDS}
        make(tmp_path / f"{number}{BAD.replace('/', '')}", rows, result, [start(command=BAD)], config)
    paths = sorted(tmp_path.iterdir())
    (paths[0] / "result.json").write_text(f'{{"step": 1, "status": "x", "best": {{"{BAD[:7]}": []}}}}')
    groups = read(paths)
    text = comparison.page(groups)
    cells = Cells(text)
    assert len(groups) == 2 and cells.tags.isdisjoint({"script", "link", "iframe", "a", "img"})
    assert cells.attributes.isdisjoint({"href", "src", "onload"}) and text.count("&lt;script") > 20
    assert "default-src 'none'" in text
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        drawn(svg)
    assert {row["group"] for row in csv.DictReader(comparison.csv_text(groups).splitlines())} == {
        one.label for one in groups
    }


def test_curves_without_evaluations_are_compared_too(tmp_path):
    a = make(tmp_path / "a", [{"step": 1, "loss": 1.0}], None)
    b = make(tmp_path / "b", [], None, config={"seed": 1})
    groups = read([a, b])
    assert comparison.lines(groups) == [] and "None yet." in comparison.page(groups)
    assert "learning" not in comparison.summary(groups, 80) and curves.Curves().of == groups[0].runs[1].curves.of


@pytest.mark.slow
@needs_chromium
def test_the_browser_shows_a_comparison(tmp_path):
    out = tmp_path / "compare.html"
    assert call(*make_five(tmp_path), f"--out={out}") == 0
    document, errors = opened(out, tmp_path / "profile")
    assert errors == [] and document.count("<polygon") == 4
    rows = {(row[0], row[1]): row[2:] for row in Cells(document).rows if len(row) == 6}
    assert rows["test/accuracy", "learning_rate=0.125 (2 seeds)"] == ["2", "400", "0.3125 ± 0.088", "0.375 ± 0.18"]
