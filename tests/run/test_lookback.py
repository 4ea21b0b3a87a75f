"""framework/run/lookback.py: whatever kind of source a split has, other examples of the same shapes are said."""

import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import data, losses, testing
from framework.data import prepare
from framework.run import lookback
from tests.data.files import made

COUNT = 12
LABELS = np.arange(COUNT) % 3
SETTINGS = {
    "train.compile": "eager",
    "train.duration": "2 steps",
    "data.batch_size": 4,
    "eval.batch_size": 4,
    "eval.splits": ("test",),
}
IMAGE = data.Image((made.SIDE, made.SIDE))
FIELDS = data.Examples({"image": IMAGE, "label": data.Label(classes=3)})


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))


# Each writes the pictures [COUNT, side, side, 3] below a folder, and returns a function that opens what is there.


def arrays(folder, pictures):
    return lambda: data.Source({"image": pictures, "label": LABELS}, origin="arrays")


def items(folder, pictures):
    return lambda: [{"image": image, "label": label} for image, label in zip(pictures, LABELS, strict=True)]


def tf_data(folder, pictures):
    return lambda: tf.data.Dataset.from_tensor_slices({"image": pictures, "label": LABELS}).batch(4)


def image_folder(folder, pictures):
    for number, picture in enumerate(pictures):
        path = folder / f"class-{LABELS[number]}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(made.encoded(picture))
    return lambda: data.image_folder(folder, IMAGE)


def tf_records(folder, pictures):
    examples = [made.example(made.encoded(image), label) for image, label in zip(pictures, LABELS, strict=True)]
    made.write_tf_records(folder / "a.tfrecord", examples)
    return lambda: data.tf_records(folder, FIELDS)


def array_records(folder, pictures):
    pytest.importorskip("array_record.python.array_record_module", reason="needs the extra 'data'")
    (folder / "from").mkdir()
    tf_records(folder / "from", pictures)
    assert prepare.main([str(folder / "from"), str(folder / "to")]) == 0
    return lambda: data.array_records(folder / "to", FIELDS)


def columns(folder, pictures):
    pytest.importorskip("pyarrow", reason="needs the extra 'data'")
    lines = [f"{image.mean()},{label}" for image, label in zip(pictures, LABELS, strict=True)]
    (folder / "x.csv").write_text("\n".join(["image,label", *lines]))
    return lambda: data.columns(folder / "x.csv")


def build(opened, workdir):
    def make_data(cfg, split):
        def transform(batch):
            image = tf.cast(batch["image"], tf.float32)
            return {**batch, "image": tf.reshape(image, [tf.shape(image)[0], -1])}

        return data.make_batches(opened(), cfg, training=split == "train", transform=transform)

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["image"], training=training)
            return {"cross_entropy": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    def make_model(cfg):
        return keras.Sequential([keras.layers.Dense(3)])

    functions = {"make_data": make_data, "make_model": make_model, "make_loss": make_loss}
    return testing.build(functions, SETTINGS, workdir)


@pytest.mark.parametrize("kind", [arrays, items, tf_data, image_folder, tf_records, array_records, columns])
def test_other_examples_of_the_same_shapes_are_said(kind, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    pictures = np.stack([made.pixels(number) for number in range(COUNT)])
    built = build(kind(folder, pictures), tmp_path / "run")
    built.open()
    built.checkpoints.save(built.state, {}, built.facts())
    built.checkpoints.close()
    built.write_header([])

    assert lookback.lines(built) == []
    # Pictures 0 and 3 change places: those of a folder have the names, sizes and classes of before.
    other = pictures.copy()
    other[[0, 3]] = pictures[[3, 0]]
    assert len(made.encoded(other[0])) == len(made.encoded(pictures[0]))
    shutil.rmtree(folder)
    folder.mkdir()
    again = build(kind(folder, other), tmp_path / "run")
    again.restore()
    assert lookback.lines(again) == [
        "on other data than the run was trained with: other examples of 'train'; other examples of 'test'"
    ]
