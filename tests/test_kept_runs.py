"""Run folders written before the framework was rearranged, in `tests/kept_runs`: each goes on to the end it had.

`run` was stopped after step 10 of 20, `end` is the checkpoint of the run that was not. Each keeps the experiment as it
was, with the names that the framework had.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import framework
from framework import export, paths
from framework.checkpoint.storage import read_arrays
from framework.run import exporting
from framework.run.environment import environment

KEPT = Path(__file__).parent / "kept_runs"
# float32 sums in another order, over ten updates; counters are whole.
ELSEWHERE = 1e-4


def is_made_here():
    """Whether the CPU is the one of the kept runs; another one adds in another order."""
    made = json.loads((KEPT / "pair/run/environment.json").read_text())["starts"][0]["cpu"]
    return environment()["cpu"] == made


@pytest.mark.parametrize("name", ["averaged", "half", "pair", "buffer"])
def test_a_run_of_an_older_framework_ends_in_the_same_bits(name, tmp_path, monkeypatch):
    workdir = tmp_path / name
    shutil.copytree(KEPT / name / "run", workdir)
    experiment = next(workdir.glob("*.py"))
    preset = f":{name}" if experiment.stem == "points" else ""
    run = framework.build(f"{experiment}{preset}", workdir=workdir)
    framework.train(run)
    arrays = read_arrays(KEPT / name / "end")
    state = {path: variable.numpy() for path, variable in paths.variables(run.state).items()}
    assert state.keys() == arrays.keys()
    assert int(state["step"]) == 20 and run.note["evaluated_step"] == 10
    for path, value in arrays.items():
        if is_made_here():
            assert state[path].tobytes() == value.tobytes(), path
        np.testing.assert_allclose(state[path], value, rtol=ELSEWHERE, atol=ELSEWHERE, err_msg=path)
    rows = [json.loads(line) for line in (KEPT / name / "evaluation.jsonl").read_text().splitlines()]
    ended = {key.removeprefix("eval/"): value for key, value in rows[-1].items() if key != "step"}
    assert framework.evaluate(run) == pytest.approx(ended, rel=0 if is_made_here() else ELSEWHERE)
    # Its exports are loaded by this process: a fresh one imports TensorFlow; tests/export/test_processes.py has them.
    own = {"is_fresh": False}
    monkeypatch.setattr(exporting, "export_all", lambda *args, **named: export.export_all(*args, **{**named, **own}))
    assert all(report.passed for report in framework.export_run(run))
