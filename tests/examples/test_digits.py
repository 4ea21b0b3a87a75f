"""tests/examples/digits.py: what it shows is what NumPy makes of the same predictions."""

import csv
import json
import math

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.compat.proto.event_pb2 import Event

import framework
from framework import evaluators
from framework.writers.tensorboard import image_grid

STEPS = [10, 20, 30, 40]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was interrupted after the third evaluation and resumed."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    run = framework.build("tests/examples/digits.py", workdir=folder)
    save = run.checkpoints.save

    def dies(state, note, facts):
        save(state, note, facts)
        if int(state.step) == 30:
            run.checkpoints.steps()  # waits for the checkpoint to be whole
            raise KeyboardInterrupt

    run.checkpoints.save = dies
    with pytest.raises(KeyboardInterrupt):
        framework.train(run)
    run = framework.build("tests/examples/digits.py", workdir=folder)
    framework.train(run)
    return run


@pytest.fixture(scope="module")
def shown(trained):
    """{(step, tag): value} of all pictures and texts in the event files."""
    found = {}
    for path in trained.workdir.rglob("*.tfevents.*"):
        for record in tf.data.TFRecordDataset(str(path)):
            event = Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name in ("images", "text"):
                    found[event.step, value.tag] = value.tensor.string_val
    return found


@pytest.fixture(scope="module")
def predicted(trained):
    """(pictures, labels, logits) of the whole test split, after the last step."""
    pairs = list(evaluators.predictions(trained))
    images, labels = (np.concatenate([batch[name] for batch, _ in pairs]) for name in ("image", "label"))
    return images, labels, np.concatenate([outputs["logits"] for _, outputs in pairs])


def picture(shown, step, tag):
    """A picture of an event file: uint8 [height, width, channels]."""
    return tf.io.decode_png(shown[step, tag][2]).numpy()


def test_the_confusion_matrix_is_numpys(trained, shown, predicted):
    _, labels, logits = predicted
    guesses = logits.argmax(axis=1)
    wanted = np.array([[np.mean(guesses[labels == label] == guess) for guess in range(10)] for label in range(10)])
    assert len(labels) == 500 and 0.5 < wanted.diagonal().mean() < 1
    assert np.abs(picture(shown, 40, "eval/digits/confusion")[..., 0] - 255 * wanted).max() <= 1
    rows = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    recalls = {row["step"]: row["eval/digits/worst_recall"] for row in rows if "eval/digits/worst_recall" in row}
    assert [*recalls] == STEPS and recalls[40] == wanted.diagonal().min()
    best = max(recalls, key=lambda step: (recalls[step], -step))
    assert int(trained.state.best.step) == best


def test_the_worst_mistakes_are_those_furthest_from_their_label(shown, predicted):
    images, labels, logits = predicted
    lost = [max(logit) - logit[label] for logit, label in zip(logits.tolist(), labels, strict=True)]
    worst = sorted(range(500), key=lambda place: (-lost[place], place))[:9]
    wanted = image_grid(images[worst])[0, ..., 0]
    assert wanted.shape == (84, 84)
    assert np.abs(picture(shown, 40, "eval/digits/worst")[..., 0] - 255 * wanted).max() <= 1


def test_predictions_are_paragraphs_of_a_text(shown, predicted):
    _, labels, logits = predicted
    lines = [f"{place}: {labels[place]}, guessed {np.argmax(logits[place])}" for place in range(9)]
    assert shown[40, "eval/digits/predictions"] == ["\n\n".join(lines).encode()]
    assert sorted(step for step, tag in shown if tag == "eval/digits/predictions") == STEPS


def test_the_csv_has_the_numbers_of_metrics_jsonl(trained):
    rows = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    wanted = [(row["step"], name, value) for row in rows for name, value in row.items() if name != "step"]
    with (trained.workdir / "numbers.csv").open() as file:
        found = [(int(step), name, float(value)) for step, name, value in csv.reader(file)]
    assert [(step, name, value if math.isfinite(value) else None) for step, name, value in found] == wanted


def test_the_hook_counts_on_after_a_resume(trained):
    rows = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    losses = [row["eval/test/loss"] for row in rows if "eval/test/loss" in row]
    counts = [row["waits"] for row in rows if "waits" in row]
    assert counts == [
        sum(loss >= min(losses[:place]) for place, loss in enumerate(losses[:end], 0) if place) for end in range(1, 5)
    ]


def test_the_rate_is_halved_at_each_evaluation_without_a_gain(trained):
    rows = [json.loads(line) for line in (trained.workdir / "metrics.jsonl").read_text().splitlines()]
    recalls = [row["eval/digits/worst_recall"] for row in rows if "eval/digits/worst_recall" in row]
    best, halvings = -1.0, 0
    for recall in recalls:
        if recall > best + 0.2:
            best = recall
        else:
            halvings += 1
    assert 0 < halvings < 4 and float(trained.state.schedule.scale) == 0.5**halvings
