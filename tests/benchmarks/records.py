"""How many decoded pictures a second come from arrays, ArrayRecord and TFRecord, beside a tf.data pipeline.

    python tests/benchmarks/records.py --data='cifar10/train-*.tfrecord'

All give shuffled batches of 128 as uint8 [128, height, width, 3] with labels, through `make_batches` at its default
settings; `tf.data` is the pipeline that TensorFlow's guide has: shards interleaved, a shuffle buffer of 10,000, parsing
and decoding in parallel, batches, prefetching. They take turns, in one process; medians. Without --data, made-up
pictures of 32 x 32 pixels.
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

from framework import config, data
from framework.config.overrides import override
from framework.data import prepare
from framework.data.files.shards import find
from framework.run.environment import environment

BATCH, BLOCK = 128, 32
MADE_UP = 20_000
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
    """Returns a function that takes one block of shuffled batches of a source."""
    values = {"data.batch_size": BATCH, "data.placement": "stream", "data.parallel_calls": calls}
    final = config.finalize(override(config.base_config(), values))
    batches, step = data.make_batches(source, final, training=True), iter(range(0, 10**9, BLOCK))

    def block() -> None:
        batches.plan(next(step), BLOCK, BLOCK)

    return block


def of_tf_data(pattern: str) -> Callable[[], None]:
    """Returns a function that takes as many batches of the usual pipeline, with the same decoder."""

    def decode(record: tf.Tensor) -> dict[str, tf.Tensor]:
        example = tf.io.parse_single_example(record, FEATURES)
        image = tf.io.decode_jpeg(example["image/encoded"], channels=3, dct_method="INTEGER_ACCURATE")
        return {"image": image, "label": tf.cast(example["label"], tf.int32)}

    files = tf.data.Dataset.list_files(pattern, shuffle=True).repeat()
    records = files.interleave(tf.data.TFRecordDataset, cycle_length=4, num_parallel_calls=tf.data.AUTOTUNE)
    decoded = records.shuffle(10_000).map(decode, num_parallel_calls=tf.data.AUTOTUNE)
    rows = iter(decoded.batch(BATCH, drop_remainder=True).prefetch(tf.data.AUTOTUNE))

    def block() -> None:
        for _ in range(BLOCK):
            next(rows)

    return block


def main() -> None:
    """Prints the machine and a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", default="", help="TFRecord shards of pictures of one size")
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pattern = options.data or make_up(Path(folder))
        prepared = Path(folder) / "prepared"
        prepare.prepare(prepare.Request(pattern, prepared))
        decoder = data.Examples({"label": data.Label(classes=2**31 - 1), "image": data.Image((32, 32))})
        records, array_records = data.tf_records(pattern, decoder), data.array_records(prepared, decoder)
        start = time.perf_counter()
        arrays = data.Source(records.take(np.arange(len(records))), "arrays")
        seconds = time.perf_counter() - start
        default = config.base_config().data.parallel_calls
        ways = {"arrays in memory": of_source(arrays, default)}
        for calls in sorted({1, default}):
            ways[f"ArrayRecord, data.parallel_calls={calls}"] = of_source(array_records, calls)
            ways[f"TFRecord with index, data.parallel_calls={calls}"] = of_source(records, calls)
        ways["tf.data over TFRecord"] = of_tf_data(pattern)
        facts = environment()
        print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}, TensorFlow {tf.__version__}")
        shards = len(find(pattern, ".tfrecord"))
        print(f"{len(records)} pictures in {shards} shards; one pass in one thread takes {seconds:.1f} s")
        report(ways, options.repetitions)


def report(ways: dict[str, Callable[[], None]], repetitions: int) -> None:
    """Prints pictures a second of each way, and of the processor's own time."""
    took: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for repetition in range(repetitions + 1):
        for name in list(ways) if repetition % 2 else reversed(list(ways)):
            ways[name]()  # what was read ahead while others had their turn
            wall, own = time.perf_counter(), time.process_time()
            for _ in range(3):
                ways[name]()
            if repetition:
                took[name].append((time.perf_counter() - wall, time.process_time() - own))
    print("| source | pictures a second | of tf.data | pictures a second of one processor's own time |")
    print("|---|---|---|---|")
    pictures = 3 * BLOCK * BATCH
    speeds = {name: [pictures / statistics.median(t[kind] for t in took[name]) for kind in (0, 1)] for name in ways}
    for name, (wall, own) in speeds.items():
        print(f"| {name} | {wall:,.0f} | {wall / speeds['tf.data over TFRecord'][0]:.2f} | {own:,.0f} |")


if __name__ == "__main__":
    main()
