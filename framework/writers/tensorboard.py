"""Writes event files for TensorBoard: curves, histograms, pictures, the graph and texts.

    with MultiWriter([TensorBoard('run/tensorboard', start)]) as writer:
        writer.scalars(469, {'loss': 0.2134, 'eval/test/loss': 0.1234})
        writer.histograms(469, {'weights/dense/kernel': kernel})

The events are made here, because tf.summary takes several times as long while training needs the processor.
"""

import itertools
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams.summary_v2 import hparams_pb
from tensorboard.plugins.image import metadata as image_metadata
from tensorboard.plugins.scalar import metadata as scalar_metadata
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.util.tensor_util import make_tensor_proto

from framework.files import CorruptError, read_bytes, write_bytes
from framework.writers.base import Writer

# An event file is a sequence of TFRecords: length and its checksum, the event, its checksum.
_RECORD_HEAD = struct.Struct("<QI")
_RECORD_TAIL_BYTES = 4
# How TensorBoard knows what to show of a value.
_SCALAR = scalar_metadata.create_summary_metadata(None, None)
_HISTOGRAM = histogram_metadata.create_summary_metadata(None, None)
_IMAGE = image_metadata.create_summary_metadata(None, None)
_TEXT = text_metadata.create_summary_metadata(None, None)
_VERSION = "brain.Event:2"  # of the files; TensorBoard wants it in the first event
_FILES = itertools.count()  # of this process
_BUCKETS = 30  # as many as TensorBoard makes
_CHUNK = 2**14  # values that are put into buckets at once


class TensorBoard(Writer):
    """Writes event files, with one TensorBoard run for training and one for each evaluation split.

    'loss' is the tag 'loss' of the run 'train', and 'eval/test/loss' the tag 'loss' of the run 'eval/test': two curves
    of one chart. Histograms, pictures, texts and the graph are in the run 'train', hyperparameters in the folder.

    Args:
      folder: the log directory.
      resume_step: events of later steps are dropped, all events at 0; None keeps the files. An open TensorBoard shows
        dropped events until it is started again.
    """

    def __init__(self, folder: str | os.PathLike[str], resume_step: int | None = None) -> None:
        self._folder = Path(folder)
        if resume_step is not None:
            _drop_events(self._folder, resume_step)
        self._runs: dict[str, tf.io.TFRecordWriter] = {}

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        rows: dict[str, Summary] = {}
        for name, value in values.items():
            run, tag = _run_and_tag(name)
            row = rows.setdefault(run, Summary()).value.add(tag=tag, metadata=_SCALAR)
            row.tensor.dtype = tf.float32.as_datatype_enum
            row.tensor.tensor_shape.SetInParent()  # that of a scalar
            row.tensor.float_val.append(value)
        for run, row in rows.items():
            self._write(run, step, summary=row)

    def histograms(self, step: int, arrays: Mapping[str, np.ndarray]) -> None:
        row = Summary()
        for name, array in arrays.items():
            values = _finite(array)
            if values.size:
                row.value.add(tag=name, metadata=_HISTOGRAM, tensor=make_tensor_proto(buckets(values)))
        if row.value:
            self._write("train", step, summary=row)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        for name, pictures in images.items():
            if len(pictures):
                grid = image_grid(pictures)[0]
                height, width, _ = grid.shape
                png = tf.io.encode_png(tf.image.convert_image_dtype(grid, tf.uint8, saturate=True)).numpy()
                tensor = make_tensor_proto([str(width).encode(), str(height).encode(), png])
                self._write("train", step, summary=Summary(value=[{"tag": name, "metadata": _IMAGE, "tensor": tensor}]))

    def graph(self, graph: tf.Graph) -> None:
        self._write("train", 0, graph_def=graph.as_graph_def(add_shapes=True).SerializeToString())

    def texts(self, step: int, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            tensor = make_tensor_proto(text.encode())
            self._write("train", step, summary=Summary(value=[{"tag": name, "metadata": _TEXT, "tensor": tensor}]))

    def layers(self, table: str) -> None:
        self.texts(0, {"layers": f"```\n{table}\n```"})

    def hyperparameters(self, values: Mapping[str, bool | float | str]) -> None:
        # The time of the start is that of the event: a run that resumes from scratch writes the same bytes again.
        made = hparams_pb(dict(sorted(values.items())), start_time_secs=0.0)
        self._write(".", 0, summary=Summary.FromString(made.SerializeToString()))

    def flush(self) -> None:
        for writer in self._runs.values():
            writer.flush()

    def close(self) -> None:
        for writer in self._runs.values():
            writer.close()
        self._runs.clear()

    def _write(self, run: str, step: int, **what: Summary | bytes) -> None:
        if run not in self._runs:
            self._runs[run] = self._new_file(self._folder / run)
        self._runs[run].write(Event(wall_time=time.time(), step=step, **what).SerializeToString())
        self._runs[run].flush()  # an open TensorBoard sees the event at once

    @staticmethod
    def _new_file(folder: Path) -> tf.io.TFRecordWriter:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}.{os.getpid()}.{next(_FILES)}.v2"
        writer = tf.io.TFRecordWriter(str(folder / name))
        writer.write(Event(wall_time=time.time(), file_version=_VERSION).SerializeToString())
        return writer


def image_grid(images: np.ndarray) -> np.ndarray:
    """Returns the pictures as one picture: row by row in ceil(sqrt(n)) columns, the rest black.

    Args:
      images: [n, height, width] or [n, height, width, channels], n > 0.

    Returns:
      [1, rows * height, columns * width, channels] of the same dtype.
    """
    images = np.asarray(images)
    if images.ndim == 3:
        images = images[..., np.newaxis]
    n, height, width, channels = images.shape
    columns = math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    grid = np.zeros((rows * columns, height, width, channels), images.dtype)
    grid[:n] = images
    grid = grid.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(1, rows * height, columns * width, channels)


def buckets(values: np.ndarray) -> np.ndarray:
    """Returns the histogram of the values, equal to that of TensorBoard's `histogram_pb`.

    `histogram_pb` and tf.summary.histogram make a one-hot of every value, which takes gigabytes for a large layer and
    ten times as long.

    Args:
      values: [n], finite, n > 0; of a dtype whose range float64 can hold.

    Returns:
      float64 [buckets, 3]: left edge, right edge, count. Equal values are all in the last bucket.
    """
    low, high = np.float64(values.min()), np.float64(values.max())
    edges = np.linspace(low, high, _BUCKETS + 1)
    counts = np.zeros(_BUCKETS + 1, np.int64)
    if low == high:
        counts[-1] = values.size
    else:
        width = (high - low) / _BUCKETS
        is_other = values != 0
        zeros = values.size - np.count_nonzero(is_other)
        if 2 * zeros > values.size:  # the gradient of a table, of which a batch looks up few rows
            counts[int((0 - low) / width)] = zeros
            values = values[is_other]
        offsets, indices = np.empty(_CHUNK, np.float64), np.empty(_CHUNK, np.int64)
        for start in range(0, values.size, _CHUNK):  # in the same place, which stays in the cache
            chunk = values[start : start + _CHUNK]
            here, index = offsets[: chunk.size], indices[: chunk.size]
            here[:] = chunk
            here -= low
            here /= width
            index[:] = here
            counts += np.bincount(index, minlength=_BUCKETS + 1)
    counts[-2] += counts[-1]  # the right edge of the last one belongs to it
    return np.stack([edges[:-1], edges[1:], counts[:-1]], axis=1)


def _finite(array: np.ndarray) -> np.ndarray:
    """Returns the finite values, [n] float32; their range always splits into float64 buckets."""
    with np.errstate(over="ignore"):
        values = np.asarray(array).astype(np.float32, copy=False).reshape(-1)
    is_finite = np.isfinite(values)
    return values if is_finite.all() else values[is_finite]


def _run_and_tag(name: str) -> tuple[str, str]:
    """'eval/test/loss' -> ('eval/test', 'loss'); 'loss' -> ('train', 'loss')."""
    kind, _, rest = name.partition("/")
    split, _, tag = rest.partition("/")
    return (f"eval/{split}", tag) if kind == "eval" and tag else ("train", name)


def _drop_events(folder: Path, resume_step: int) -> None:
    """Rewrites the event files without events of later steps, and without damaged events."""
    for path in sorted(folder.rglob("*.tfevents.*")):
        try:
            data = read_bytes(path)
        except (CorruptError, FileNotFoundError) as error:
            logging.warning("%s cannot be read (%s): it is left alone", path, error)
            continue
        kept, lost = [], 0
        for record, event in _records(data, _is_sound(path)):
            step = _step_of(event)
            if step is None:
                lost += 1
            elif step <= resume_step:
                kept.append(record)
        if lost:
            logging.warning("%s: %d damaged events are dropped", path, lost)
        if resume_step == 0 or not kept:
            path.unlink()
        elif sum(map(len, kept)) != len(data):
            write_bytes(path, b"".join(kept))


def _step_of(event: bytes | None) -> int | None:
    try:
        return None if event is None else Event.FromString(event).step
    except DecodeError:
        return None


def _records(data: bytes, is_sound: bool) -> Iterator[tuple[bytes, bytes | None]]:
    """Yields each TFRecord as it is in the file, with its content; the content of a damaged record is None.

    Unless `is_sound`, each checksum is checked. A record that is torn at the end of the file is left out.
    """
    start = 0
    while start + _RECORD_HEAD.size <= len(data):
        length, _ = _RECORD_HEAD.unpack_from(data, start)
        content = start + _RECORD_HEAD.size
        end = content + length + _RECORD_TAIL_BYTES
        if is_sound or _has_length(data, start):
            if end > len(data):
                return
            is_whole = is_sound or _masked(data[content : content + length]) == data[end - _RECORD_TAIL_BYTES : end]
            yield data[start:end], data[content : content + length] if is_whole else None
        else:  # the next record is where a length has its checksum again
            end = next((place for place in range(start + 1, len(data)) if _has_length(data, place)), len(data))
            yield data[start:end], None
        start = end


def _is_sound(path: Path) -> bool:
    """Returns whether all checksums are right, by TensorFlow's reader; a hundred times as fast as `_masked`."""
    try:
        tf.data.TFRecordDataset(str(path)).reduce(np.int64(0), lambda count, _: count + 1)
    except tf.errors.OpError:
        return False
    return True


def _has_length(data: bytes, start: int) -> bool:
    head = data[start : start + _RECORD_HEAD.size]
    return len(head) == _RECORD_HEAD.size and _masked(head[:8]) == head[8:]


def _masked(data: bytes) -> bytes:
    """Returns the masked CRC-32C of the length or content of a TFRecord, as it is in the file."""
    return masked_crc32c(data).to_bytes(4, "little")
