"""What people ask for beside a step, each a few lines.

    python launch.py --config=tests/examples/digits.py

At each evaluation of `tests/tiny.py`, whose digits are made up: the confusion matrix and the worst mistakes as
pictures, some predictions as text. All numbers as a CSV file. A hook that counts evaluations that were no better. A
learning rate that is halved if the worst recall does not rise.
"""

import csv

import numpy as np

from framework import Hook, evaluators, optim, writers
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model  # noqa: F401

CLASSES, SHOWN = 10, 9


def get_config(arg):
    config = tiny.get_config(arg)
    config.train.compile = "graph"
    config.eval.every = "10 steps"
    config.checkpoint.every = "10 steps"
    config.checkpoint.best_metric = "digits/worst_recall"
    return config


def make_schedule(cfg, total_steps):
    schedule = optim.make_schedule(cfg, total_steps)
    return optim.ReduceOnPlateau(schedule, "digits/worst_recall", factor=0.5, patience=1, min_delta=0.2)


def make_evaluators(cfg):
    def digits(run):
        batches, outputs = zip(*evaluators.predictions(run), strict=True)
        image, label = (np.concatenate([batch[name] for batch in batches]) for name in ("image", "label"))
        logits = np.concatenate([output["logits"] for output in outputs])  # [examples, classes]
        guess = logits.argmax(axis=1)

        confusion = np.zeros([CLASSES, CLASSES])
        np.add.at(confusion, (label, guess), 1)
        recall = confusion.diagonal() / confusion.sum(axis=1)

        margin = logits[np.arange(len(label)), label] - logits.max(axis=1)  # 0 of a right guess
        worst = margin.argsort(kind="stable")[:SHOWN]

        return evaluators.Report(
            scalars={"worst_recall": recall.min()},
            images={
                "confusion": confusion / confusion.sum(axis=1, keepdims=True),
                "worst": image[worst][..., np.newaxis],
            },
            texts={"predictions": [f"{place}: {label[place]}, guessed {guess[place]}" for place in range(SHOWN)]},
        )

    digits.modes = {"worst_recall": "max"}
    return {"digits": digits}


def make_writers(cfg):
    return [Csv()]


class Csv(writers.Writer):
    """Writes numbers.csv: step, name, value."""

    def open(self, folder, step):
        self._path = folder / "numbers.csv"
        rows = list(csv.reader(self._path.open())) if self._path.exists() else []
        self._write("w", [row for row in rows if int(row[0]) <= step])

    def scalars(self, step, values):
        self._write("a", [[step, name, repr(float(value))] for name, value in values.items()])

    def _write(self, mode, rows):
        with self._path.open(mode, newline="") as file:
            csv.writer(file).writerows(rows)


def make_hooks(cfg, run):
    return [Hook(cfg.eval.every, Waits())]


class Waits:
    """Counts evaluations whose loss was no better than the best before; the count is saved in each checkpoint."""

    def __init__(self):
        self.best, self.count = None, 0

    def __call__(self, context):
        loss = context.results["test/loss"]
        if self.best is None or loss < self.best:
            self.best = loss
        else:
            self.count += 1
        context.writer.scalars(context.step, {"waits": self.count})

    def state(self):
        return {"best": self.best, "count": self.count}

    def load(self, state):
        self.best, self.count = state["best"], state["count"]
