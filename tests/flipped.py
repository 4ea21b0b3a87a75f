"""A small experiment with everything that a run folder may hold, and what a single flipped bit in one does to it.

python -m tests.flipped --flips=3000 --seed=0          # counts by file; ends with the first flip that is not harmless
"""

import argparse
import collections
import contextlib
import dataclasses
import io
import json
import logging
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tensorflow as tf
import tf_keras as keras
from tensorboard.compat.proto.event_pb2 import Event

from framework import build, config, layers, losses, paths
from framework.checkpoint.checkpoints import digest
from framework.config import RunError, UserError
from framework.data.batches import make_batches
from framework.data.sources import Source
from framework.export.base import Signature
from framework.modes import train
from framework.optim import make_schedule as schedule_of
from framework.run import evaluation
from framework.run.replay import replay_step
from framework.writers import tensorboard

FEATURES, STEPS, KILLED_AT = 4, 8, 6
SETTINGS = {
    "data.batch_size": 8,
    "eval.batch_size": 16,
    "eval.every": "2 steps",
    "eval.splits": ("test", "test@ema"),
    "ema.decay": 0.9,
    "train.duration": f"{STEPS} steps",
    "train.block_steps": 2,
    "train.compile": "graph",
    "log.every": "1 step",
    "log.histograms_every": "4 steps",
    "log.images": 0,
    "checkpoint.every": "2 steps",
    "checkpoint.best_metric": "test/loss",
    "export.examples": 16,
    "schedule.learning_rate": 0.05,
    "schedule.warmup": "1 step",
}


def get_config(arg):
    return config.base_config()


def make_data(cfg, split):
    rng = np.random.default_rng(0 if split == "train" else 1)
    x = rng.normal(size=(32, FEATURES)).astype(np.float32)
    source = Source({"x": x, "y": x.sum(axis=1, keepdims=True)}, origin="sums")
    return make_batches(source, cfg, training=split == "train")


def make_model(cfg):
    return keras.Sequential([layers.Dropout(0.25, name="drop"), keras.layers.Dense(1, name="last")])


def make_loss(cfg):
    def loss(model, batch, training):
        outputs = model(batch["x"], training=training)
        values = tf.square(outputs - batch["y"])[:, 0]
        return {"square": losses.Term(tf.reduce_sum(values * batch["weight"]), tf.reduce_sum(batch["weight"]))}, {
            "y": outputs
        }

    return loss


def make_schedule(cfg, total_steps):
    return schedule_of(cfg, total_steps)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """Kernel and bias as text: the bytes of the artefact are a function of the weights."""

    name: str = "numbers"
    bound: float = 1e-5

    @property
    def signatures(self):
        inputs = {"x": tf.TensorSpec([None, FEATURES], tf.float32)}
        return {"serving_default": Signature(lambda model, given: {"y": model(given["x"], training=False)}, inputs)}

    def target(self, folder):
        return folder / "numbers.json"

    def write(self, model, path):
        path.write_text(json.dumps([variable.numpy().tolist() for variable in model.variables]))

    def load(self, path):
        kernel, bias = (np.array(values, np.float32) for values in json.loads(path.read_text()))
        return {"serving_default": lambda inputs: {"y": inputs["x"] @ kernel + bias}}


def make_exports(cfg):
    return [Numbers()]


# --- the folders, and what must be the same ---------------------------------------------------------------------------


class Bench:
    """Two folders, of a run that has ended and of one that was killed, and one built run to enter copies of them with.

    Args:
      root: an empty folder.
    """

    def __init__(self, root):
        self.experiment = root / "flipped.py"
        shutil.copyfile(__file__, self.experiment)
        self.folders = {"ended": root / "ended", "killed": root / "killed"}
        self._root, self._number = root, 0
        whole = self.folders["ended"]
        first = build(str(self.experiment), SETTINGS, workdir=whole)
        self._fresh = {path: variable.numpy() for path, variable in paths.variables(first.state).items()}
        self.run = first
        self.entered(whole)
        self._killed(self.folders["killed"])
        self.digests = {step: self._digest_at(whole, step) for step in first.checkpoints.steps()}
        self.expected = self._outcome(whole)
        self.rows, self.events = rows(whole), events(whole)

    def _killed(self, folder):
        """As `kill -9` after step 7 would have left it; with an export of an earlier step, and a tuning.json."""
        shutil.copytree(self.folders["ended"], folder)
        (folder / "result.json").unlink()
        for step in range(KILLED_AT + 1, STEPS + 1):
            shutil.rmtree(folder / "checkpoints" / f"step-{step:08d}", ignore_errors=True)
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        (folder / "metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] < STEPS))
        report = json.loads((folder / "exports/report.json").read_text())
        (folder / "exports/report.json").write_text(json.dumps([{**report[0], "step": 4}]))

    def _digest_at(self, workdir, step):
        self._enter(workdir)
        self.run.checkpoints.restore(self.run.state, step)
        return digest(self.run.state)

    def _enter(self, workdir):
        run = self.run
        for path, variable in paths.variables(run.state).items():
            variable.assign(self._fresh[path])
        run.workdir, run.note, run.choice, run.started = workdir, {}, None, time.monotonic()
        run.__dict__.pop("checkpoints", None)

    def entered(self, workdir):
        """`--mode=train` in a folder."""
        self._enter(workdir)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            return train.main(self.run, ["--config.log.images=0"])

    def _outcome(self, workdir):
        """All that is trained, evaluated, selected and exported, after a start has come to its end."""
        found = {"trained": digest(self.run.state)}
        result = json.loads((workdir / "result.json").read_text())
        found |= {name: result[name] for name in ("status", "step", "updates")}
        found["artefact"] = (workdir / "exports/numbers/numbers.json").read_text()
        found["report"] = [(of["hook"], of["step"], of["passed"]) for of in json.loads(reported(workdir))]
        found["evaluated"] = evaluation.evaluate(self.run)
        self.run.restore("best")
        found["best"] = digest(self.run.state)
        shown = replay_step(self.run, STEPS)
        found["replayed"] = shown.scalars
        return found

    def flip(self, form, name, bit):
        """What happens to a copy of a folder with one flipped bit: 'same', or the line that is said instead.

        Raises:
          AssertionError: it ends in other numbers; any other error is a traceback that a user would see.
        """
        self._number += 1
        workdir = self._root / f"copy-{self._number}"
        shutil.copytree(self.folders[form], workdir)
        try:
            content = bytearray((workdir / name).read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            (workdir / name).write_bytes(content)
            said = io.StringIO()
            handler = logging.StreamHandler(said)
            handler.setLevel(logging.WARNING)
            logging.getLogger("absl").addHandler(handler)
            try:
                return self._looked_at(form, name, workdir, said)
            except (UserError, RunError) as error:
                assert "\n" not in str(error), error
                return str(error)
            finally:
                logging.getLogger("absl").removeHandler(handler)
        finally:
            shutil.rmtree(workdir)

    def _looked_at(self, form, name, workdir, said):
        if name == "config.json" or name.endswith(".py"):
            self._same_config(workdir)
        assert self.entered(workdir) == 0
        found = self._outcome(workdir)
        assert found == self.expected, {
            key: (found[key], self.expected[key]) for key in found if found[key] != self.expected[key]
        }
        if form == "killed":  # what is only shown may be missing where it was damaged; it is never made up
            flipped = 1 if name == "metrics.jsonl" else 0
            assert len([row for row in rows(workdir) if row not in self.rows]) <= flipped
            odd = [event for event in events(workdir) if event not in self.events]
            assert not odd, odd
        return said.getvalue().strip() or "same"

    def _same_config(self, workdir):
        """Who looks back gets the config that the run was trained with."""
        looked = build(str(self.experiment), (), workdir=workdir, from_workdir=True)
        ours, theirs = config.flatten(self.run.config), config.flatten(looked.config)
        assert ours == theirs, {key: (ours[key], theirs[key]) for key in ours if ours[key] != theirs[key]}

    def flips(self, count, seed):
        """(form, file, bit): half of them of any file, half of any byte."""
        rng = np.random.default_rng(seed)
        places = [
            (form, path.relative_to(folder).as_posix(), path.stat().st_size)
            for form, folder in self.folders.items()
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.stat().st_size
        ]
        sizes = np.array([size for *_, size in places], float)
        for number in range(count):
            chances = sizes / sizes.sum() if number % 2 else None
            form, name, size = places[rng.choice(len(places), p=chances)]
            yield form, name, int(rng.integers(8 * size))


def reported(workdir):
    return (workdir / "exports/report.json").read_text()


def rows(workdir):
    """Those of metrics.jsonl, without how fast they were computed."""
    lines = (workdir / "metrics.jsonl").read_bytes().splitlines()
    return [{key: value for key, value in json.loads(line).items() if "per_second" not in key} for line in lines]


def events(workdir):
    """(run, step, tag, value) of all curves and histograms."""
    found = []
    for path in sorted((workdir / "tensorboard").rglob("*.tfevents.*")):
        for _, content in tensorboard._records(path.read_bytes(), True):
            event = Event.FromString(content)
            of = path.parent.relative_to(workdir).as_posix()
            found += [
                (of, event.step, value.tag, value.tensor.SerializeToString())
                for value in event.summary.value
                if "per_second" not in value.tag
            ]
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--flips", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts, failures = collections.Counter(), 0
    with tempfile.TemporaryDirectory() as root:
        bench = Bench(Path(root))
        begin = time.monotonic()
        for number, (form, name, bit) in enumerate(bench.flips(arguments.flips, arguments.seed), 1):
            try:
                said = bench.flip(form, name, bit)
            except Exception as error:
                failures += 1
                text = " ".join(f"{type(error).__name__}: {error}".split())
                print(f"NOT harmless: {form} {name} bit {bit}: {text[:600]}", flush=True)
                continue
            counts[name, "same" if said == "same" else "said"] += 1
            if number % 100 == 0:
                print(f"{number} flips, {failures} not harmless, {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{arguments.flips} flips of seed {arguments.seed}: {failures} not harmless")
    for (name, how), count in sorted(counts.items()):
        print(f"  {name:<60} {how:<5} {count}")
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
