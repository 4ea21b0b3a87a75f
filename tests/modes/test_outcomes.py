"""What a run leads to: a failing export, a refused loss, SIGTERM, a full disk, and the best or an earlier export."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import launch
from tests.modes.called import GRAPH, TINY, call


def test_a_failing_export_shows_in_the_exit_status(tmp_path, monkeypatch, capsys):
    from framework.export.lite import Lite

    good = Lite.load
    monkeypatch.setattr(
        Lite,
        "load",
        lambda self, path: {
            name: lambda inputs, run=run: {key: value + 1e-2 for key, value in run(inputs).items()}
            for name, run in good(self, path).items()
        },
    )
    workdir = tmp_path / "run"
    arguments = (f"--workdir={workdir}", "--config.train.duration=2 steps")
    assert call(*arguments) == 1
    saved_model, lite = json.loads((workdir / "exports" / "report.json").read_text())
    assert (saved_model["passed"], lite["passed"]) == (True, False)
    assert f"  lite           FAILED: {lite['failure']}\n" in capsys.readouterr().out
    assert not (workdir / "exports" / "lite").exists()
    assert call(*arguments) == 1, "a second call must not hide the failure"
    monkeypatch.undo()
    assert call(*arguments) == 0


def test_check_shows_the_whole_pipeline_and_writes_nothing(tmp_path, capsys, monkeypatch):
    assert call("--mode=check", f"--workdir={tmp_path / 'run'}", "--config.model.l2=0.01") == 0
    out = capsys.readouterr().out
    assert not (tmp_path / "run").exists()
    for line in (
        "* train.duration                   '40 steps' = 40  (default '5 epochs')",
        "  eval.every                       '1 epoch' = 20",
        "Training data: 2,560 examples from made-up digits, resident on the device",
        "  label                    int32    [128]  0 … 9",
        "  weight                   float32  [128]  1 … 1",
        "Outputs of the loss (terms: cross_entropy, penalty)",
        "  logits                   float32  [128, 10]",
        "Evaluation split 'test': 500 examples from made-up digits",
        "Parameters: 101,770 trainable, 0 not",
        "Schedule 'cosine' over 40 steps",
        "  update         0  learning rate 0",
        "  update         2  learning rate 0.005",
        "Additivity of the loss",
        "  additive: it is the sum over the examples of the batch",
        "Dry export of the untrained model",
        "Checkpoint, written and read back",
        "Hooks, each called and undone",
    ):
        assert line in out.splitlines(), line
    forecast = (r"The whole run, at these times: 40 steps in .*", r"Disk: .* for the run, .* free")
    for line in (r"  test +4 batches in .*", *forecast):
        assert re.search(rf"^{line}$", out, re.M), line
    assert [*tmp_path.iterdir()] == []
    # Weights and the two slots of Adam, gradients, examples: float32, and uint8 with int32 labels.
    assert f"  {'gradients':<34} {101_770 * 4 / 2**20:>10,.1f} MiB" in out
    assert f"  {'resident examples':<34} {(2560 + 500) * 788 / 2**20:>10,.1f} MiB" in out
    assert "FAILED" not in out


def test_a_loss_that_depends_on_how_many_examples_there_are(tmp_path, capsys, caplog):
    """In a check a failure, in training a warning."""
    file, workdir = tmp_path / "constant.py", tmp_path / "run"
    file.write_text(
        """
from framework import losses
from tests import tiny
from tests.tiny import get_config, make_data, make_metrics, make_model, make_schedule


def make_loss(cfg):
    def loss(model, batch, training):
        terms, outputs = tiny.make_loss(cfg)(model, batch, training)
        of_all = terms["cross_entropy"].weight + 128.0
        return {"mean": losses.Term(terms["cross_entropy"].sum, of_all)}, outputs

    return loss
"""
    )
    command = ["launch.py", f"--config={file}", GRAPH]
    assert launch.main([*command, "--mode=check"]) == 1
    assert "  FAILED: term 'mean' of the loss is " in capsys.readouterr().out
    assert launch.main([*command, f"--workdir={workdir}", "--config.train.duration=2 steps"]) == 0
    assert sum(line.startswith("term 'mean' of the loss is ") for line in caplog.messages) == 1


def test_sigterm_finishes_the_step_saves_and_the_same_command_goes_on(tmp_path):
    """A real process: stopped by SIGTERM with exit status 0, resumed to the end."""
    workdir = tmp_path / "run"
    arguments = [
        sys.executable,
        "launch.py",
        TINY,
        GRAPH,
        f"--workdir={workdir}",
        "--config.train.duration=200000 steps",
    ]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    log = workdir / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    result = json.loads((workdir / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert "SIGTERM: finishing the block and saving; once more ends at once" in err
    assert out.startswith(
        f"stopped at step {result['step']} of 200000 and saved; the same command goes on from there:\n"
    )
    command = out.splitlines()[1].strip()
    assert command.startswith(f"python launch.py {TINY} --workdir={workdir} ")
    assert "'--config.train.duration=200000 steps'" in command
    assert (workdir / "checkpoints" / f"step-{result['step']:08d}" / "manifest.json").exists()
    assert not os.path.exists(workdir / "exports")


def test_a_full_disk_is_one_line_and_status_1(tmp_path, monkeypatch, capsys):
    """The device that is always full, in the place of the file."""
    from framework.checkpoint import storage

    workdir = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_ARRAYS", "/dev/full")
        assert call(f"--workdir={workdir}", "--config.train.duration=2 steps") == 1
    assert capsys.readouterr().err.splitlines()[-1] == (
        f"error: {workdir / 'checkpoints'}: the checkpoint of step 2 could not be saved: [Errno 28] No space left on"
        " device; there is no complete one. Mend that and type the same command again."
    )
    assert list((workdir / "checkpoints").iterdir()) == []
    assert call(f"--workdir={workdir}", "--config.train.duration=2 steps") == 0


def test_the_best_model_is_what_export_best_exports(tmp_path):
    """At a learning rate that ruins it again, the best step is not the last."""
    import numpy as np
    import tensorflow as tf

    from framework.checkpoint.checkpoints import read_arrays

    workdir = tmp_path / "run"
    ruin = ["--config.eval.every=5 steps", "--config.export.checkpoint=best", "--config.schedule.name=piecewise"]
    ruin += ["--config.schedule.boundaries=('20 steps',)", "--config.schedule.factors=(200.0,)"]
    assert call(f"--workdir={workdir}", "--config.schedule.warmup=", *ruin) == 0
    best = json.loads((workdir / "checkpoints" / "best.json").read_text())["step"]
    assert best < 40
    reports = json.loads((workdir / "exports" / "report.json").read_text())
    assert [report["step"] for report in reports] == [best, best]
    saved = read_arrays(workdir / "checkpoints" / f"step-{best:08d}")
    image = np.linspace(0, 1, 784, dtype=np.float32).reshape(1, 28, 28)
    hidden = np.maximum(image.reshape(1, 784) @ saved["model/dense/kernel"] + saved["model/dense/bias"], 0)
    logits = hidden @ saved["model/dense_1/kernel"] + saved["model/dense_1/bias"]
    served = tf.saved_model.load(str(workdir / "exports" / "saved_model" / "1")).signatures["serving_default"]
    np.testing.assert_allclose(served(image=tf.constant(image))["logits"], logits, rtol=1e-4, atol=1e-4)


def test_an_export_of_an_earlier_step_does_not_stand_for_the_end(tmp_path):
    from framework.run import build, exporting

    workdir = tmp_path / "run"
    built = build.build("tests/tiny.py", {"train.compile": "graph", "train.duration": "20 steps"}, workdir)
    built.open()
    built.write_header([])
    built.train_block(1)
    built.checkpoints.save(built.state, {})
    built.checkpoints.close()
    exporting.export_run(built)
    assert call(f"--workdir={workdir}", "--config.train.duration=20 steps") == 0
    reports = json.loads((workdir / "exports" / "report.json").read_text())
    assert [report["step"] for report in reports] == [20, 20]


def test_a_metric_without_a_number_is_shown_as_such(tmp_path, monkeypatch, capsys):
    """NaN in an evaluation is null in result.json, and never the best."""
    from framework.evaluators import Report
    from framework.run import evaluation

    real = evaluation.report
    monkeypatch.setattr(evaluation, "report", lambda run: Report({**real(run).scalars, "test/odd": float("nan")}))
    workdir = tmp_path / "run"
    assert call(f"--workdir={workdir}", "--config.train.duration=2 steps") == 0
    assert "  test/odd                 nan (best nan)\n" in capsys.readouterr().out
    result = json.loads((workdir / "result.json").read_text())
    assert result["final"]["test/odd"] is None and "test/odd" not in result["best"]
