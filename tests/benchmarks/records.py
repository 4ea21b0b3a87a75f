"""How many decoded and augmented pictures a second come from arrays, records and tf.data, and how many training takes.

    python tests/benchmarks/records.py --data='cifar10/train-*.tfrecord'

All give shuffled batches of 128 as uint8 [128, 32, 32, 3] with labels, each picture shifted and mirrored at random, as
`experiments/cifar_resnet.py` has it, through `make_batches` at its default settings. `tf.data` is the pipeline that
TensorFlow's guide has: shards interleaved, a shuffle buffer of 10,000, parsing, decoding and `tf.image` in parallel,
batches, prefetching. Then the preset `small` of that experiment trains on arrays in memory, and on ArrayRecord shards.
All take turns, in one process; medians. Without --data, made-up pictures.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf
from ml_collections import ConfigDict

from experiments import cifar_resnet
from framework import config, data, testing
from framework.config.overrides import override
from framework.data import augment, prepare
from framework.data.files.shards import find
from framework.run.environment import environment

BATCH, BLOCK = 128, 32
MADE_UP = 20_000
AUGMENTATION = augment.Chain(augment.PadAndCrop(4, "zeros"), augment.Flip())
TRAINING = {
    "data.batch_size": BATCH,
    "train.block_steps": BLOCK,
    "train.duration": "10000 steps",
    "eval.every": "",
    "checkpoint.best_metric": "",
}
FEATURES = {"image/encoded": tf.io.FixedLenFeature([], tf.string), "label": tf.io.FixedLenFeature([], tf.int64)}


def make_up(folder: Path) -> str:
    """Writes four TFRecord shards of JPEGs, and returns their pattern."""
    generator = np.random.default_rng(0)
    for shard in range(4):
        with tf.io.TFRecordWriter(str(folder / f"made-{shard:05d}-of-00004.tfrecord")) as writer:
            for _ in range(MADE_UP // 4):
                coarse = generator.integers(0, 256, [8, 8, 3], np.uint8)
                picture = tf.io.encode_jpeg(np.kron(coarse, np.ones([4, 4, 1], np.uint8))).numpy()
                feature = {
                    "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[picture])),
                    "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[0])),
                }
                example = tf.train.Example(features=tf.train.Features(feature=feature))
                writer.write(example.SerializeToString())
    return str(folder / "made-*.tfrecord")


def of_source(source: data.IndexedSource, calls: int) -> Callable[[], None]:
    """Returns a function that takes one block of shuffled and augmented batches of a source."""
    values = {"data.batch_size": BATCH, "data.placement": "stream", "data.parallel_calls": calls}
    final = config.finalize(override(config.base_config(), values))
    batches = data.make_batches(source, final, training=True, transform=AUGMENTATION)
    step = iter(range(0, 10**9, BLOCK))

    def block() -> None:
        batches.plan(next(step), BLOCK, BLOCK)

    return block


def of_tf_data(pattern: str) -> Callable[[], None]:
    """Returns a function that takes as many batches of the usual pipeline, with the same decoder and tf.image."""

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, FEATURES)
        image = tf.io.decode_jpeg(example["image/encoded"], channels=3, dct_method="INTEGER_ACCURATE")
        image = tf.image.random_crop(tf.pad(image, [[4, 4], [4, 4], [0, 0]]), [32, 32, 3])
        return {"image": tf.image.random_flip_left_right(image), "label": tf.cast(example["label"], tf.int32)}

    files = tf.data.Dataset.list_files([str(shard) for shard in find(pattern, ".tfrecord")], shuffle=True).repeat()
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
    decoded = records.shuffle(10_000).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    rows = iter(decoded.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    def block() -> None:
        for _ in range(BLOCK):
            next(rows)

    return block


def of_training(source: data.IndexedSource, placement: str, folder: Path) -> Callable[[], float]:
    """Returns a function that trains `small` for a block of steps, and returns the seconds it waited for batches."""

    def make_data(cfg: ConfigDict, split: str) -> data.Batches:
        return data.make_batches(source, cfg, training=split == "train", transform=AUGMENTATION)

    functions = {name: getattr(cifar_resnet, name) for name in ("get_config", "make_model", "make_loss")}
    run = testing.build(functions | {"make_data": make_data}, TRAINING | {"data.placement": placement}, folder)
    run.open()
    return lambda: run.train_block(BLOCK).waited


def main() -> None:
    """Prints the machine and two tables."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="", help="TFRecord shards of pictures of 32 x 32 pixels")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pattern = options.data or make_up(Path(folder))
        prepared = Path(folder) / "prepared"
        prepare.prepare(prepare.Request(pattern, prepared))
        decoder = data.Examples({"label": data.Label(classes=10), "image": data.Image((32, 32))})
        records, array_records = data.tf_records(pattern, decoder), data.array_records(prepared, decoder)
        start = time.perf_counter()
        arrays = data.Source(records.take(np.arange(len(records))), "arrays")
        seconds = time.perf_counter() - start
        default = config.base_config().data.parallel_calls
        ways = {"arrays in memory, nothing to decode": of_source(arrays, default)}
        for calls in sorted({1, default}):
            ways[f"ArrayRecord, `data.parallel_calls={calls}`"] = of_source(array_records, calls)
            ways[f"TFRecord with index, `data.parallel_calls={calls}`"] = of_source(records, calls)
        ways["tf.data over TFRecord"] = of_tf_data(pattern)
        facts = environment()
        print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, TensorFlow {tf.__version__}")
        shards = len(find(pattern, ".tfrecord"))
        print(f"{len(records)} pictures in {shards} shards; one pass in one thread takes {seconds:.1f} s")
        trained = {
            "arrays in memory": of_training(arrays, "resident", Path(folder) / "resident"),
            "ArrayRecord": of_training(array_records, "stream", Path(folder) / "stream"),
        }
        consumed = report_training(trained, options.repetitions)
        report(ways, consumed, options.repetitions)


def report_training(ways: dict[str, Callable[[], float]], repetitions: int) -> float:
    """Prints pictures a second that `small` trains on, and its share of waiting; returns those of arrays in memory."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name in list(ways) if repetition % 2 else reversed(list(ways)):
            ways[name]()  # what was read ahead while the other trained
            start = time.perf_counter()
            waited = ways[name]()
            if repetition:
                took[name].append((time.perf_counter() - start, waited))
    print("\n| `small` trains on | pictures a second | share of the time that it waits for data |\n|---|---|---|")
    speeds = {}
    for name, times in took.items():
        speeds[name] = BLOCK * BATCH / statistics.median(seconds for seconds, _ in times)
        share = sum(waited for _, waited in times) / sum(seconds for seconds, _ in times)
        print(f"| {name} | {speeds[name]:,.0f} | {share:.2%} |")
    return speeds["arrays in memory"]


def report(ways: dict[str, Callable[[], None]], consumed: float, repetitions: int) -> None:
    """Prints pictures a second of each way, beside those that `small` consumes, and of the processor's own time."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name in list(ways) if repetition % 2 else reversed(list(ways)):
            ways[name]()  # what was read ahead while others had their turn
            wall, own = time.perf_counter(), time.process_time()
            for _ in range(3):
                ways[name]()
            if repetition:
                took[name].append((time.perf_counter() - wall, time.process_time() - own))
    print("\n| source | pictures a second | of what `small` takes | of tf.data | of own time |\n|---|---|---|---|---|")
    pictures = 3 * BLOCK * BATCH
    speeds = {name: [pictures / statistics.median(t[kind] for t in took[name]) for kind in (0, 1)] for name in ways}
    of_tf_data = speeds["tf.data over TFRecord"][0]
    for name, (wall, own) in speeds.items():
        print(f"| {name} | {wall:,.0f} | {wall / consumed:.1f} | {wall / of_tf_data:.2f} | {own:,.0f} |")


if __name__ == "__main__":
    main()
