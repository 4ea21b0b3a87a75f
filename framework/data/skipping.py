"""Reading a tf.data pipeline by number: forward batch after batch, backward by opening it again.

reading = Reading("the pipeline", opened, check, kept=16)
reading.join(finish)                                # 0, the place of this shard
reading.get(7).raw, reading.get(7).shards[0]        # opens the pipeline, skips 7 batches
reading.get(8)                                      # the next one; the newest 16 are kept
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from absl import logging

from framework.data.fields import Batch, named_shapes
from framework.errors import DataError

Finish = Callable[[tf.Tensor, Batch], Batch]


class Global(NamedTuple):
    """A global batch.

    Attributes:
      raw: as the pipeline has it.
      shards: as each replica takes it.
    """

    raw: Batch
    shards: Sequence[Batch]


class Reading:
    """Reads the batches of a pipeline for shards that share them.

    Args:
      name: names the pipeline in messages.
      opened: (first, prepare) -> the pipeline from batch `first` on, mapped by prepare(step, raw).
      check: (step, raw) raises an error if a batch cannot be taken.
      kept: how many of the newest batches are kept, at least a block and what is read ahead of it.
    """

    def __init__(
        self,
        name: str,
        opened: Callable[[int, Callable[..., Any]], tf.data.Dataset],
        check: Callable[[int, Batch], None],
        kept: int,
    ) -> None:
        self._name = name
        self._opened = opened
        self._finish: list[Finish] = []
        self._check = check
        self._most = kept
        self._kept: dict[int, Global] = {}
        self._iterator: Iterator[Global] | None = None
        self._next = 0

    def join(self, finish: Finish) -> int:
        """Adds a shard, whose batch `finish(step, raw)` makes; returns its place in `Global.shards`."""
        self._finish.append(finish)
        self._iterator = None
        self._kept = {}
        return len(self._finish) - 1

    def get(self, step: int) -> Global:
        """Returns the batch of a step.

        Raises:
          DataError: the pipeline raises, or ends before the step.
          UserError: the batch cannot be taken.
        """
        if step in self._kept:
            return self._kept[step]
        if self._iterator is None or step < self._next:
            return self._open(step)
        while True:
            batch = self._read()
            if self._next > step:
                return batch

    def close(self) -> None:
        """Ends the pipeline; the newest batches stay."""
        self._iterator = None

    def _open(self, step: int) -> Global:
        """Opens the pipeline at a step and returns its batch."""
        start = time.monotonic()
        self._iterator = iter(self._opened(step, self._prepare))
        self._next = step
        batch = self._read()
        if step:
            logging.info("%s: read from its start to batch %d in %.1f s", self._name, step, time.monotonic() - start)
        return batch

    def _read(self) -> Global:
        assert self._iterator is not None
        step = self._next
        try:
            with named_shapes():
                batch = next(self._iterator)
        except StopIteration:
            self._iterator = None
            raise DataError(f"{self._name} ended before batch {step}.") from None
        except tf.errors.OpError as error:
            self._iterator = None
            line = error.message.strip().partition("\n")[0]
            raise DataError(f"batch {step} of {self._name} could not be read: {line}") from error
        self._check(step, batch.raw)
        self._next += 1
        self._kept[step] = batch
        while len(self._kept) > self._most:
            del self._kept[next(iter(self._kept))]
        return batch

    def _prepare(self, step: tf.Tensor, raw: Mapping[str, tf.Tensor]) -> Global:
        """Returns a batch for all shards; traced into the pipeline."""
        return Global(dict(raw), tuple(finish(step, dict(raw)) for finish in self._finish))


def hash_of(raw: Mapping[str, tf.Tensor]) -> str:
    """Returns the SHA-256 of a batch: names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(raw.items()):
        array = tensor.numpy()
        digest.update(f"{name} {array.dtype} {array.shape} ".encode())
        digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes())
    return digest.hexdigest()
