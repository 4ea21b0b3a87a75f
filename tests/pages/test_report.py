"""framework/pages/report.py: the page of a run has the numbers of its files, and nothing of them is markup."""

import dataclasses
import json
import re
import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest

import launch
from framework import evaluators
from framework.pages import html, report, shown, stored
from framework.run.hooks import Hook
from framework.run.loop import train
from framework.writers import TensorBoard
from tests.export.test_page import report as export_report
from tests.pages.cells import Cells
from tests.pages.folders import BAD, RESULT, ROWS, SECONDS, evaluation, fail, make, start
from tests.pages.test_charts import close, drawn, expected
from tests.small import build

PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452000000010000000108000000003a7e9b55")


def figures(text):
    """{title: lines by name} of all pictures of a page."""
    found = re.findall(r"<figure><figcaption>(.*?)</figcaption>(<svg.*?</svg>)", text, re.DOTALL)
    return {title: drawn(svg)[0] for title, svg in found}


def rows_of(text):
    return {row[0]: row[1:] for row in Cells(text).rows if row}


def test_the_page_has_the_numbers_of_the_files(tmp_path):
    text = report.page(stored.read(make(tmp_path / "a run")))
    rows = rows_of(text)
    assert rows["state"] == ["finished"] and rows["step"] == ["400 of 400"] and rows["time"] == ["10.0 s"]
    assert rows["trained parameters"] == ["101,770"] and rows["started"] == ["2026-11-29T04:00:00+00:00"]
    assert rows["test/loss"] == ["1.5", "400", "1.25", "200", "min"]
    assert rows["test/accuracy"] == ["0.625", "400", "0.75", "200", "max"]
    assert rows["train accuracy (mean)"] == ["0.875", "400", "", "", ""]
    assert rows["training steps"] == ["4.500", "45.0%", ""] and rows["all"] == ["10.000", ""]
    assert "0 in every row: skipped." in text


def test_the_page_has_the_splits_and_their_buckets(tmp_path):
    bucket = {"source": 7, "target": 9, "size": 1056, "examples": 6000, "batches": 6}
    data = {
        "train": {"source": BAD, "examples": 6003, "placement": "stream", "buckets": [bucket], "left_out": 3},
        "test": {"source": "b", "examples": 500, "placement": "resident"},
    }
    text = report.page(stored.read(make(tmp_path / "a", result=RESULT | {"data": data})))
    rows = [row for row in Cells(text).rows if row and row[0] in data]
    assert rows == [
        ["train", BAD, "6,003", "3", "stream"],
        ["test", "b", "500", "", "resident"],
        ["train", "source 7, target 9", "1,056", "6,000", "6"],
    ]
    assert BAD not in text
    for damaged in ({"train": 3}, [1], {"train": {"source": "a"}}):
        text = report.page(stored.read(make(tmp_path / str(id(damaged)), result=RESULT | {"data": damaged})))
        assert "data of result.json is damaged." in text


def test_training_and_evaluations_of_a_metric_are_in_one_picture(tmp_path):
    found = figures(report.page(stored.read(make(tmp_path / "a"))))
    assert [*found] == ["loss", "accuracy", "learning_rate"]
    assert {name: [*lines] for name, lines in found.items()} == {
        "loss": ["train, step", "train, mean", "test"],  # in the order in which they cover each other
        "accuracy": ["train, mean", "test"],
        "learning_rate": ["train"],
    }
    lines = found["loss"]
    assert close(lines["test"][0], expected([(100, 2.25), (200, 1.25), (400, 1.5)], 400, 0.5, 2.5))
    assert close(lines["train, mean"][0], expected([(100, 2.5), (200, 1.5), (400, 0.75)], 400, 0.5, 2.5))
    assert close(lines["train, step"][0], expected([(100, 2.0), (200, 1.0), (400, 0.5)], 400, 0.5, 2.5))


def test_a_page_of_lost_values_says_so(tmp_path):
    rows = [*ROWS[:3], {"step": 300, "loss": None, "mean/loss": None}, *ROWS[3:]]
    text = report.page(stored.read(make(tmp_path / "a", rows=rows)))
    assert [len(points) for points in figures(text)["loss"]["train, mean"]] == [2, 1]
    assert "dashed in red where they stand: loss: 1, mean/loss: 1." in text and text.count('class="lost"') == 2


def test_the_config_says_what_differs(tmp_path):
    config = {"optimizer": {"name": "sgd"}, "data": {"own": "x"}, "schedule": {"learning_rate": 0.5}}
    folder = make(tmp_path / "a", config=config, starts=[start(overridden={"schedule.learning_rate": 0.5})])
    text = report.page(stored.read(folder))
    differing, _, every = text[text.index("<h2>Config") :].partition("<details>")
    few, all_rows = rows_of(differing), rows_of(every)
    assert few["schedule.learning_rate"][0] == "0.5" and few["schedule.learning_rate"][2] == "yes"
    assert few["data.own"] == ["x", "key of the experiment", ""] and few["optimizer.name"][0] == "sgd"
    assert all_rows["init_from"] == ["''", "''", ""]
    assert "log.every" in all_rows and "log.every" not in few


def test_a_run_under_way_has_a_page(tmp_path):
    note = {
        "step": 200,
        "note": {"seconds": SECONDS},
        "variables": {"model/kernel": {"shape": [784, 128], "dtype": "float32"}},
    }
    folder = make(tmp_path / "a", rows=ROWS[:4], result=None, saved=[200])
    (folder / "checkpoints" / "step-00000200" / "manifest.json").write_text(json.dumps(note))
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 300, "lo')  # a row that is being written
    text = report.page(stored.read(folder))
    rows = rows_of(text)
    assert rows["state"] == ["stopped at step 200"] and rows["test/loss"] == ["1.25", "200", "1.25", "200", "min"]
    assert "Up to the checkpoint of step 200." in text and rows["kernel"] == ["[784, 128]", "float32", "100,352"]
    assert 'class="damages"' not in text


def planted(folder):
    """A run whose files have a script everywhere."""
    rows = [{"step": 1, f"loss{BAD}": 1.0, f"eval/{BAD}/{BAD}": 2.0, "mean/loss": 1.0}, *ROWS]
    begun = start(command=BAD, overridden={BAD: BAD}, modes={f"{BAD}/{BAD}": BAD}, packages={BAD: BAD}, devices=[BAD])
    result = RESULT | {"status": BAD, "compile": BAD, "seconds": {f"hooks/{BAD}": 3.0}, "data": {BAD: {"source": BAD}}}
    made = make(folder / BAD.replace("/", ""), rows, result, [begun, begun], {BAD: BAD, "seed": BAD})
    fail(made, BAD)
    (made / "exports").mkdir()
    bad = (
        export_report(BAD, 10, 0.1, metrics={BAD: {"trained": 1.0, "exported": 1.0}}),
        export_report(BAD, 1, 0.1, passed=False, failure=BAD),
    )
    (made / "exports" / "report.json").write_text(json.dumps([dataclasses.asdict(one) for one in bad]))
    note = {"step": 400, "note": {}, "variables": {f"model/{BAD}": {"shape": [1], "dtype": BAD}}}
    (made / "checkpoints" / "step-00000400" / "manifest.json").write_text(json.dumps(note))
    return made


def test_all_that_others_wrote_is_escaped(tmp_path):
    folder = planted(tmp_path)
    pictures = shown.Shown({BAD: (3, PNG)}, {BAD: (3, f"# {BAD}\n\x00\ud800")})
    text = report.page(stored.read(folder), pictures)
    cells = Cells(text)
    assert cells.tags.isdisjoint({"script", "link", "iframe", "a", "object", "form"})
    assert cells.attributes.isdisjoint({"href", "onload", "onerror"})
    assert set(re.findall(r'src="([^"]{0,22})', text)) == {"data:image/png;base64,"}
    assert "<script" not in text and text.count("&lt;script") > 30
    assert "default-src 'none'" in text and text.encode()
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        drawn(svg)  # well-formed


def test_pictures_and_texts_are_those_of_the_newest_step(tmp_path):
    writer = TensorBoard(tmp_path / "tensorboard", 0)
    for step, value in [(1, 0.0), (2, 1.0)]:
        writer.images(step, {"eval/digits/wrong": np.full([1, 2, 3], value)})
        writer.texts(step, {"eval/digits/worst": f"step *{step}*"})
        writer.histograms(step, {"weights": np.arange(3.0)})
        writer.scalars(step, {"loss": 1.0})
    writer.close()
    found = shown.newest(tmp_path / "tensorboard")
    assert found.texts == {"eval/digits/worst": (2, "step *2*")}
    step, png = found.pictures["eval/digits/wrong"]
    assert step == 2 and png[:8] == PNG[:8] and [*found.pictures] == ["eval/digits/wrong"]
    (path,) = (tmp_path / "tensorboard" / "train").iterdir()
    whole = path.read_bytes()
    for end in range(0, len(whole), 7):  # a file that is being written
        path.write_bytes(whole[:end])
        shown.newest(tmp_path / "tensorboard")
    path.write_bytes(b"\xff" * 500)
    assert shown.newest(tmp_path / "tensorboard") == shown.Shown()


def test_the_marks_by_which_tensorboard_keeps_columns_are_left_out():
    texts = {"layers": (0, "```\nlayer  class\n```"), "note": (3, "a ``` of its own")}
    text = report._texts(shown.Shown(texts=texts))
    assert "<pre>layer  class</pre>" in text and "<pre>a ``` of its own</pre>" in text


def slow_hooks(cfg, run):
    def wait(context):
        report.time.sleep(0.15)

    return [Hook(5, wait)]


class Shows:
    modes: ClassVar = {"answer": "max"}

    def __call__(self, run):
        return evaluators.Report({"answer": 42.0}, texts={"note": f"the text {BAD}"})


def test_a_run_ends_with_a_page_that_knows_a_wait(tmp_path):
    functions = {"make_hooks": slow_hooks, "make_evaluators": lambda cfg: {"own": Shows()}}
    built = build(tmp_path / "run", functions=functions, **{"eval.every": "5 steps"})
    result = train(built)
    spent = result["seconds"]
    assert spent["hooks/wait"] >= 0.3 and spent["evaluate"] > 0 and spent["save"] > 0
    assert sum(spent.values()) == pytest.approx(result["wall_seconds"], abs=1e-3) and min(spent.values()) >= 0
    text = (tmp_path / "run" / "report.html").read_text()
    rows = rows_of(text)
    assert rows["hook: wait"][0] == f"{spent['hooks/wait']:.3f}" and rows["state"] == ["finished"]
    assert "the text &lt;script" in text and "<script" not in text
    run = stored.read(tmp_path / "run")
    assert run.damages == [] and (run.step, run.total_steps) == (10, 10)
    assert {one.name: one.last[1] for one in run.results()} == result["final"]
    assert {one.name: one.best[1] for one in run.results() if one.best} == result["best"]
    assert {one.name: one.best[0] for one in run.results() if one.best} == result["best_steps"]


def call(*arguments):
    return launch.main(["launch.py", "--mode=report", *arguments])


def test_a_fault_of_the_page_does_not_end_a_run(tmp_path, monkeypatch, caplog):
    def broken(run, pictures):
        raise ZeroDivisionError("of the page")

    monkeypatch.setattr(report, "page", broken)
    result = train(build(tmp_path, **{"train.duration": "4 steps", "train.compile": "eager"}))
    assert result["status"] == "finished" and json.loads((tmp_path / "result.json").read_text()) == result
    assert f"report.html of {tmp_path} is not written: ZeroDivisionError: of the page" in caplog.text
    assert not (tmp_path / "report.html").exists()


def test_the_mode_writes_the_page_without_tensorflow(tmp_path, capsys):
    folder = make(tmp_path / "a")
    code = (
        "import sys, launch; status = launch.main(['launch.py', '--mode=report', '--workdir=' + sys.argv[1]]);"
        "assert 'tensorflow' not in sys.modules; sys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{folder / 'report.html'}\n" and "<h1>a</h1>" in (folder / "report.html").read_text()
    (folder / "result.json").write_text("{")
    assert call(f"--workdir={folder}") == 0
    assert "  damaged: result.json: " in capsys.readouterr().out


def test_the_mode_refuses_what_is_no_run(tmp_path, capsys):
    assert call(f"--workdir={tmp_path}") == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path} is no run folder: it has no config.json. Type a run folder, e.g. runs/mnist.\n"
    )
    assert call(f"--workdir={tmp_path}/nowhere") == 2
    assert "cannot be read: No such file or directory" in capsys.readouterr().err
    assert call() == 2 and "needs the --workdir" in capsys.readouterr().err
    assert call(f"--workdir={tmp_path}", "--seed=1") == 2
    assert capsys.readouterr().err == (
        "error: --seed has no effect with --mode=report, which takes the files of --workdir. Leave it out.\n"
    )


def test_control_characters_and_names_that_are_no_text_are_shown():
    assert html.safe("a\x00b\udcffc\n\t<") == "a\ufffdb\ufffdc\n\t&lt;"


def test_more_metrics_than_a_row_has(tmp_path):
    """A metric that was added later, with one point, beside evaluations of earlier steps."""
    text = report.page(
        stored.read(make(tmp_path / "a", rows=[evaluation(5, 1.0, 0.5), {"step": 7, "eval/test/late": 3.0}]))
    )
    assert figures(text)["late"]["test"] == [[(388.0, 98.0)]]
