"""Each mode as launch.py calls it, on made-up digits: exit status, what is printed, what is written."""

import json
import shutil

import pytest

import launch
from tests.modes.called import GRAPH, TINY, call


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("modes") / "run"
    assert call(f"--workdir={workdir}") == 0
    return workdir


def test_train_ends_with_where_everything_is(tmp_path, capsys):
    workdir = tmp_path / "run"
    assert call(f"--workdir={workdir}", "--config.train.duration=3 steps", "--seed=3") == 0
    result = json.loads((workdir / "result.json").read_text())
    out = capsys.readouterr().out
    accuracy = result["final"]["test/accuracy"]
    assert f"finished: step 3 in {workdir}\n" in out
    assert f"  test/accuracy            {accuracy:.6g} (best {accuracy:.6g})\n" in out
    assert (
        f"Everything is in {workdir}: report.html, result.json, metrics.jsonl, checkpoints/, exports/. Next:\n" in out
    )
    assert out.endswith(f"  tensorboard --logdir {workdir}\n")
    assert (workdir / "exports" / "saved_model" / "1" / "saved_model.pb").exists()
    assert (workdir / "exports" / "lite" / "model.tflite").exists()
    assert (workdir / "overrides.txt").read_text().splitlines() == [
        GRAPH,
        "--config.train.duration=3 steps",
        "--config.seed=3",
    ]
    assert json.loads((workdir / "config.json").read_text())["seed"] == 3


def test_the_same_command_again_says_that_the_run_is_finished(trained, capsys):
    before = {path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file() and path.name != ".lock"}
    assert call(f"--workdir={trained}") == 0
    assert f"finished: step 40 in {trained}\n" in capsys.readouterr().out
    assert {
        path: path.stat().st_mtime_ns for path in trained.rglob("*") if path.is_file() and path.name != ".lock"
    } == before


def test_another_config_in_the_same_workdir_is_refused(trained, capsys):
    assert call(f"--workdir={trained}", "--config.data.batch_size=64", "--config.seed=1") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --workdir={trained} holds a run of another config (data.batch_size: 128 there, 64 now; seed: 0 there,"
        f" 1 now). Use another folder; there, --config.resume_from={trained} continues this run."
    )


def test_evaluate_prints_the_numbers_of_the_run(trained, capsys):
    assert call(f"--workdir={trained}", "--mode=evaluate") == 0
    final = json.loads((trained / "result.json").read_text())["final"]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{trained}, step 40", *(f"  {name:<24} {value:.6g}" for name, value in final.items())]


def test_evaluate_and_export_need_not_repeat_the_overrides(tmp_path, capsys):
    """The config is that of the run folder; what is typed now goes on top."""
    workdir = tmp_path / "run"
    assert call(f"--workdir={workdir}", "--config.train.duration=3 steps", "--config.model.hidden=16") == 0
    final = json.loads((workdir / "result.json").read_text())["final"]
    capsys.readouterr()
    assert launch.main(["launch.py", TINY, f"--workdir={workdir}", "--mode=evaluate"]) == 0
    assert f"  test/loss                {final['test/loss']:.6g}\n" in capsys.readouterr().out
    arguments = ["--mode=export", "--config.export.checkpoint=best"]
    assert launch.main(["launch.py", TINY, f"--workdir={workdir}", *arguments]) == 0
    assert json.loads((workdir / "config.json").read_text())["export"]["checkpoint"] == "last"


def test_evaluate_and_export_take_the_checkpoint_asked_for(tmp_path, capsys):
    """The last, the best and one in between, each with the numbers that the run logged at that step."""
    workdir = tmp_path / "run"
    settings = ["--config.eval.every=1 step", "--config.checkpoint.every=1 step", "--config.checkpoint.keep=3"]
    ruin = ["--config.schedule.name=piecewise", "--config.schedule.boundaries=('2 steps',)", "--config.model.hidden=8"]
    ruin += ["--config.schedule.factors=(200.0,)", "--config.schedule.warmup=", "--config.train.duration=5 steps"]
    assert call(f"--workdir={workdir}", *settings, *ruin) == 0
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["eval/test/loss"] for row in rows if "eval/test/loss" in row}
    best = json.loads((workdir / "checkpoints" / "best.json").read_text())["step"]
    assert best < 4
    capsys.readouterr()
    for which, step in (("last", 5), ("best", best), ("4", 4)):
        assert call(f"--workdir={workdir}", "--mode=evaluate", f"--checkpoint={which}") == 0
        out = capsys.readouterr().out.splitlines()
        assert out[:2] == [f"{workdir}, step {step}", f"  test/loss                {losses[step]:.6g}"]
    assert call(f"--workdir={workdir}", "--mode=export", "--checkpoint=4") == 0
    assert {report["step"] for report in json.loads((workdir / "exports" / "report.json").read_text())} == {4}
    assert call(f"--workdir={workdir}", "--mode=evaluate", "--checkpoint=9") == 2
    kept = ", ".join(map(str, sorted({3, 4, 5, best})))
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {workdir / 'checkpoints'} has no checkpoint of step 9, but of {kept}. Type e.g. --checkpoint=5."
    )
    (workdir / "checkpoints" / "step-00000004" / "arrays.bin").write_bytes(b"")
    assert call(f"--workdir={workdir}", "--mode=evaluate", "--checkpoint=4") == 2
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith(
        f"error: {workdir / 'checkpoints'}: the checkpoint of step 4 cannot be used: arrays.bin has 0"
    )
    assert err.endswith("Use --checkpoint=last.")


def test_evaluate_from_python_takes_a_checkpoint(trained):
    from framework.run import build, evaluation

    built = build.build("tests/tiny.py", {}, trained, from_workdir=True, restore=False)
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    for step in (20, 40):
        logged = next(row for row in rows if row["step"] == step and "eval/test/loss" in row)
        found = evaluation.evaluate(built, checkpoint=step)
        assert {f"eval/{name}": value for name, value in found.items()} == {k: logged[k] for k in logged if k != "step"}
        assert int(built.state.step) == step


NOISY = """
import tensorflow as tf
from framework.data.batches import make_batches
from tests import tiny
from tests.tiny import make_exports, make_loss, make_metrics, make_model, make_schedule


def get_config(arg):
    config = tiny.get_config(arg)
    config.data.noise = 0
    config.model.spare = 1.0
    return config


def make_data(cfg, split):
    source = tiny.digits(split)
    source.arrays["label"][:] = (source.arrays["label"] + cfg.data.noise) % 10
    return make_batches(source, cfg, training=split == "train", transform=tiny.to_float(cfg))
"""


@pytest.mark.parametrize("mode", ["evaluate", pytest.param("export", marks=pytest.mark.slow)])
def test_other_data_than_those_of_the_run_are_said(tmp_path, capsys, mode):
    experiment, workdir = tmp_path / "noisy.py", tmp_path / "run"
    experiment.write_text(NOISY)

    def lines(*arguments):
        launch.main(["launch.py", f"--config={experiment}", f"--workdir={workdir}", *arguments])
        return capsys.readouterr().out.splitlines()

    lines(GRAPH, "--config.train.duration=2 steps", "--config.export.examples=64")
    plain = lines(f"--mode={mode}", "--config.eval.batch_size=100", "--config.train.compile=eager")
    assert not any(" than the run" in line or "not as the run" in line for line in plain)
    shown = "on other data than the run was trained with: "
    found = lines(f"--mode={mode}", "--config.data.noise=1", "--config.model.spare=2", "--config.data.dir=/elsewhere")
    assert found[1:3] == [
        f"  {shown}other examples of 'train'; other examples of 'test'; data.dir='/elsewhere' (the run: '');"
        " data.noise=1 (the run: 0)",
        "  not as the run was trained: model.spare=2.0 (the run: 1.0)",
    ]
    found = lines(f"--mode={mode}", "--config.eval.splits=train_eval")
    assert found[1] == f"  {shown}eval.splits=['train_eval'] (the run: ['test'])"
    experiment.write_text(NOISY.replace("config.data.noise = 0", "config.data.noise = 0  # kept").replace(
        "+ cfg.data.noise", "+ 1"))  # fmt: skip
    assert lines(f"--mode={mode}")[1] == f"  {shown}other examples of 'train'; other examples of 'test'"


def test_export_in_formats_by_name(trained, capsys):
    """They are added to the report, and int8 has its ranges from the training examples of the run."""
    assert call(f"--workdir={trained}", "--mode=export", "--formats=lite_dynamic, lite_int8") == 0
    assert "  lite_int8      exports/lite_int8/model.tflite  " in capsys.readouterr().out
    reports = json.loads((trained / "exports" / "report.json").read_text())
    assert [report["hook"] for report in reports] == ["lite_dynamic", "lite_int8", "saved_model", "lite"]
    assert all(report["passed"] for report in reports)
    sizes = {report["hook"]: report["bytes"] for report in reports}
    assert sizes["lite"] > 3.5 * sizes["lite_int8"]
    assert call(f"--workdir={trained}", "--mode=export", "--formats=tflite") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "error: --formats: there is no format 'tflite'. Did you mean 'lite'? This experiment has saved_model, lite,"
        " saved_model_xla, lite_float16, lite_sparse, lite_dynamic, lite_int8, lite_int8_io, lite_weights8,"
        " lite_weights4."
    )


def test_export_adds_a_version(trained, capsys):
    assert call(f"--workdir={trained}", "--mode=export") == 0
    assert f"exporting step 40 of {trained}\n" in capsys.readouterr().out
    names = sorted(path.name for path in (trained / "exports" / "saved_model").iterdir())
    assert names == ["1", "2", "batching.config", "manifest.json", "models.config", "monitoring.config"]


@pytest.mark.parametrize("mode", ["evaluate", "export"])
def test_a_workdir_without_a_checkpoint_is_refused(tmp_path, mode, capsys):
    assert call(f"--workdir={tmp_path / 'empty'}", f"--mode={mode}") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: --workdir={tmp_path / 'empty'} has no checkpoint. Train first: --mode=train."
    )


def contents(folder):
    """{path: (bytes, time of change)} of a folder's files, and its folders' times."""
    return {
        path: (path.read_bytes() if path.is_file() else b"", path.stat().st_mtime_ns)
        for path in (folder, *folder.rglob("*"))
    }


def test_replay_shows_a_step_as_it_was_logged(trained, capsys):
    """Also without the overrides that the run had; with a line for each number, variable and example."""
    before = contents(trained)
    assert launch.main(["launch.py", TINY, f"--workdir={trained}", "--mode=replay", "--step=25", "--eager"]) == 0
    out = capsys.readouterr().out
    assert contents(trained) == before
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 25 and "loss" in row)
    lines = out.splitlines()
    assert lines[0] == f"step 25 of {trained}, re-run from the checkpoint of step 20: applied"
    for name, value in row.items():
        if name not in ("step", "examples_per_second") and not name.startswith("mean/"):
            assert f"  {name:<24} {value!r:<24} {value!r}" in lines
    assert "  batch, layers, terms and gradients of the eager run are all finite" in lines
    (begin,) = [
        number for number, line in enumerate(lines) if line.endswith("relative difference from the compiled step")
    ]
    for name, line in zip(("loss", "gradient_norm"), lines[begin + 1 :], strict=False):
        shown, eager, difference = line.split()
        assert (shown, float(eager)) == (name, pytest.approx(row[name], rel=1e-5))
        assert float(difference) == pytest.approx(abs(float(eager) - row[name]) / row[name], rel=0.1)
    assert sum(line.startswith("  dense") for line in lines) == 4
    examples = out[out.index("as source:index") :].split("*weight where it is not 1")[1].split("exactly")[0].split()
    assert len(examples) == 128 and all(example.startswith("0:") for example in examples)
    assert lines[-1] == "exactly the row of metrics.jsonl"


def test_replay_of_a_step_without_a_row(trained, capsys):
    assert call(f"--workdir={trained}", "--mode=replay", "--step=1") == 0
    out = capsys.readouterr().out
    assert f"step 1 of {trained}, re-run from scratch: applied\n" in out
    assert out.endswith("metrics.jsonl has no row of this step\n")


def test_replay_that_differs_is_status_1_under_the_same_config(trained, tmp_path, capsys):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    log = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    for row in rows:
        if "loss" in row:
            row["loss"] = row["loss"] * (1 + 1e-12)
    log.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert call(f"--workdir={workdir}", "--mode=replay", "--step=40") == 1
    out = capsys.readouterr().out
    assert out.count("  DIFFERS\n") == 1
    assert out.endswith("NOT the row of metrics.jsonl, in loss: on another machine or by another version?\n")
    assert call(f"--workdir={workdir}", "--mode=replay", "--step=40", "--config.seed=1") == 0
    out = capsys.readouterr().out
    assert "NOT the row of metrics.jsonl, in loss, " in out and out.endswith(": under another config?\n")


@pytest.mark.parametrize(
    ("step", "expected"), [(41, "--step=41 is out of range: {} has steps 1 to 40."), (40, "")], ids=["over", "last"]
)
def test_replay_past_the_end(trained, capsys, step, expected):
    assert call(f"--workdir={trained}", "--mode=replay", f"--step={step}") == (2 if expected else 0)
    err = capsys.readouterr().err.splitlines()
    assert not expected or err[-1] == f"error: {expected.format(trained)}"
