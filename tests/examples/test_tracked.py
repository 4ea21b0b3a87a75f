"""tests/examples/tracked.py: a tracker has the rows of metrics.jsonl, across an interruption.

The packages are no requirement. The writers are always tested with a stand-in of the same calls, and with the package
itself if it is installed.
"""

import contextlib
import importlib.util
import json
import math
import sqlite3
import subprocess
import sys
from types import SimpleNamespace

import pytest

from framework import writers
from framework.run import loop
from tests import small
from tests.documentation import ROOT
from tests.examples import tracked
from tests.run import tiny_runs


def rows(workdir):
    """{(step, name): value} of what is finite in metrics.jsonl."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return {
        (line["step"], name): line[name] for line in lines for name in line.keys() - {"step"} if line[name] is not None
    }


def finite(triples):
    return {(step, name): value for step, name, value in triples if math.isfinite(value)}


class FakeMLflow:
    """A stand-in of the module, which knows one tracking folder."""

    def __init__(self):
        self.runs, self.parameters, self.metrics, self.uris = [], [], [], []
        self.set_tracking_uri = self.uris.append

    def search_runs(self, output_format):
        assert output_format == "list"
        return [self._run(name) for name in reversed(self.runs)]

    @contextlib.contextmanager
    def start_run(self, run_id, run_name):
        if run_id is None:
            self.runs.append(f"{run_name}-{len(self.runs)}")
        yield self._run(run_id or self.runs[-1])

    def log_params(self, values, run_id):
        self.parameters.append((run_id, values))

    def log_metrics(self, values, step, run_id):
        self.metrics += [(run_id, step, name, value) for name, value in values.items()]

    @staticmethod
    def _run(name):
        return SimpleNamespace(info=SimpleNamespace(run_id=name))


class FakeWandB:
    """A stand-in of the module, in which a step that does not rise is lost, as in the real one."""

    def __init__(self):
        self.inits, self.config, self.metrics, self.finished = [], {}, [], 0

    def init(self, mode, dir, project, id, resume):
        self.inits.append((mode, dir, project, id, resume))
        return self

    def log(self, values, step):
        if not self.metrics or step >= self.metrics[-1][0]:
            self.metrics += [(step, name, value) for name, value in values.items()]

    def finish(self):
        self.finished += 1


def interrupted_and_resumed(workdir, make_writer):
    def build():
        make_writers = {"make_writers": lambda cfg: [writers.AsyncWriter(make_writer())]}
        settings = {
            "train.block_steps": 2,
            "log.every": "2 steps",
            "eval.every": "4 steps",
            "eval.splits": ("test@ema",),
        }
        return small.build(workdir, functions=make_writers, **settings, **{"ema.decay": 0.5, "train.compile": "eager"})

    first = build()
    tiny_runs.interrupt_at(first, 5)
    assert loop.train(first)["status"] == "interrupted"
    assert loop.train(build())["status"] == "finished"
    assert {step for step, _ in rows(workdir)} == {2, 4, 6, 8, 10}


def test_mlflow_stand_in(tmp_path, monkeypatch):
    fake = FakeMLflow()
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    interrupted_and_resumed(tmp_path / "run", tracked.MLflow)
    assert fake.uris == [f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}"] * 2
    assert fake.runs == ["run-0"]  # one, of both processes
    assert {run for run, *_ in fake.metrics} == {"run-0"}
    expected = {(step, name.replace("@", ".")): value for (step, name), value in rows(tmp_path / "run").items()}
    assert finite(row[1:] for row in fake.metrics) == expected
    ((run, values),) = fake.parameters
    assert (run, values["seed"], values["ema.decay"]) == ("run-0", 0, 0.5)


def test_wandb_stand_in(tmp_path, monkeypatch):
    fake = FakeWandB()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    interrupted_and_resumed(tmp_path / "run", tracked.WandB)
    assert fake.inits == [("offline", tmp_path / "run", "tracked", "run", "allow")] * 2
    assert finite(fake.metrics) == rows(tmp_path / "run")
    assert (fake.config["seed"], fake.config["ema.decay"], fake.finished) == (0, 0.5, 2)


# In a process of its own: both packages leave threads.
TRAINED = """
import sys
from pathlib import Path
from tests.examples import test_tracked, tracked

test_tracked.interrupted_and_resumed(Path(sys.argv[1]), getattr(tracked, sys.argv[2]))
"""
# The file of an offline run: the log format of LevelDB, blocks of 32 KiB, after seven bytes of its own.
READ = """
import json, struct, sys
from pathlib import Path
from wandb.proto.wandb_internal_pb2 import Record

BLOCK = 2**15
for file in sorted(Path(sys.argv[1]).glob("wandb/offline-run-*/*.wandb")):
    data, place, content = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        content += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record, content = Record.FromString(content), b""
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                print(json.dumps([record.history.step.num, items]))
"""


def run(script, *arguments):
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def package(name):
    installed = importlib.util.find_spec(name) is not None
    return pytest.mark.skipif(not installed, reason=f"pip install {name} to test the example with the package itself")


@package("mlflow")
def test_mlflow_itself(tmp_path):
    run(TRAINED, tmp_path / "run", "MLflow")
    with contextlib.closing(sqlite3.connect(tmp_path / "run" / "mlflow.db")) as store:
        metrics = store.execute("select step, key, value from metrics where not is_nan").fetchall()
        parameters = dict(store.execute("select key, value from params").fetchall())
        names = store.execute("select name from runs").fetchall()
    assert names == [("run",)]
    expected = {(step, name.replace("@", ".")): value for (step, name), value in rows(tmp_path / "run").items()}
    assert finite(metrics) == expected
    assert (parameters["seed"], parameters["ema.decay"]) == ("0", "0.5")


@package("wandb")
def test_wandb_itself(tmp_path):
    run(TRAINED, tmp_path / "run", "WandB")
    found = []
    for line in run(READ, tmp_path / "run").splitlines():
        step, items = json.loads(line)
        found += [(step, name, json.loads(value)) for name, value in items.items() if not name.startswith("_")]
    assert finite(found) == rows(tmp_path / "run")
