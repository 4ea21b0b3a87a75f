"""Run folders that were never trained, for tests of what is read of them."""

import json
import os

BAD = '<script src="http://x/">alert(1)</script>&"\''
MODES = {"test/loss": "min", "test/accuracy": "max"}
TIME = "2026-11-29T04:00:00+00:00"


def row(step, **values):
    return {"step": step, **values}


def evaluation(step, loss, accuracy):
    return {"step": step, "eval/test/loss": loss, "eval/test/accuracy": accuracy}


ROWS = [
    {"step": 100, "loss": 2.0, "learning_rate": 0.1, "skipped": 0.0, "mean/loss": 2.5, "mean/accuracy": 0.25},
    evaluation(100, 2.25, 0.5),
    {"step": 200, "loss": 1.0, "learning_rate": 0.05, "skipped": 0.0, "mean/loss": 1.5, "mean/accuracy": 0.5},
    evaluation(200, 1.25, 0.75),
    {"step": 400, "loss": 0.5, "learning_rate": 0.0, "skipped": 0.0, "mean/loss": 0.75, "mean/accuracy": 0.875},
    evaluation(400, 1.5, 0.625),
]
SECONDS = {"building": 1.0, "compiling": 2.0, "steps": 4.5, "evaluate": 2.0, "other": 0.5}
RESULT = {
    "status": "finished",
    "step": 400,
    "final": {"test/loss": 1.5, "test/accuracy": 0.625},
    "final_step": 400,
    "best": {"test/loss": 1.25, "test/accuracy": 0.75},
    "best_steps": {"test/loss": 200, "test/accuracy": 200},
    "wall_seconds": 10.0,
    "seconds": SECONDS,
    "parameters": 101770,
    "examples_per_second": 1234.5,
}


def start(step=0, total=400, **values):
    return {
        "time": TIME,
        "step": step,
        "total_steps": total,
        "modes": MODES,
        "overridden": {},
        "command": "python",
    } | values


def make(folder, rows=ROWS, result=RESULT, starts=None, config=None, saved=(200, 400)):
    """Writes a run folder; a result of None leaves it out."""
    folder.mkdir(parents=True)
    whole = {"seed": 0, "train": {"duration": "400 steps"}, "checkpoint": {"best_metric": "test/accuracy"}}
    files = {"config.json": whole | (config or {}), "environment.json": {"starts": starts or [start()]}}
    for name, value in (files | ({"result.json": result} if result else {})).items():
        (folder / name).write_text(json.dumps(value))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    for step in saved:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    (folder / ".lock").write_text("1 on nowhere\n")
    return folder


def fail(folder, text="ValueError: a shape\n"):
    """Adds the traceback of a start that failed just now."""
    path = folder / "failure" / "traceback.txt"
    path.parent.mkdir()
    path.write_text(f"Traceback (most recent call last):\n  …\n{text}")
    for name in ("environment.json", "metrics.jsonl"):
        os.utime(folder / name, (1e9, 1e9))
