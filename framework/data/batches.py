"""Batches whose order is a pure function of (seed, step): the data cursor of a run is its step.

    batches = make_batches(source, config, training=True, transform=to_float)
    batches.at(1_000_000)                 # {'image': …, 'label': …, 'weight': …}; computes no earlier step

Every batch has `weight` [batch] float32: the weight of the example (the source's field `weight`, else 1), and 0 for
padding. The contract is `at`. The step calls its two halves, `plan` once for a block of steps and `take` once for each
step, so that the indices of a whole block are computed at once. Resident batches plan inside the compiled block,
streamed batches on the host, through tf.data.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework.data.bucketed import Bucketed, orders_of
from framework.data.buckets import Buckets
from framework.data.dataset import from_dataset
from framework.data.fields import Batch, Fields, Transform, check_same, check_weights, checked
from framework.data.mixture import check_repeatable, classes_of, fingerprint_of, origin_of, shares_of
from framework.data.order import Order, check_order, cycle_of
from framework.data.reading import RetryingReader
from framework.data.resident import Resident, on_device
from framework.data.sources import IndexedSource, arrays_of, element_spec_of
from framework.data.streaming import Streamed
from framework.data.timetable import BucketOrder
from framework.distribute.memory import host_memory
from framework.errors import UserError

# Batches of a whole block are read ahead if they take no more bytes than this.
_READ_AHEAD_BYTES = 2**26


class Batches(Protocol):
    """Gives the step its batches: the protocol of a data split.

    Batches that keep threads or files may have a method `close()`: the end of a run calls it, and the next read opens
    them again.

    Attributes:
      batch_size: examples of the global batch.
      steps_per_epoch: steps in which each example is seen once; infinity if their number is not known.
      is_resident: whether `plan` may be called inside a compiled function.
      origin: where the examples come from, for result.json.
    """

    batch_size: int
    is_resident: bool
    origin: dict[str, Any]

    @property
    def steps_per_epoch(self) -> float: ...

    @property
    def ahead(self) -> int | None:
        """Returns how many batches are made while earlier steps are trained; None means that there is no limit."""
        ...

    def at(self, step: Any) -> Batch:
        """Returns the batch of a step: tensors [batch, ...], with 'weight'."""
        ...

    def indices(self, step: int) -> dict[str, np.ndarray]:
        """Returns {'source', 'index', 'weight'}, each [batch]: which examples a step has, and their weights."""
        ...

    def plan(self, first_step: Any, steps: Any, size: int) -> Batch:
        """Returns what `take` needs for `steps` steps from `first_step`: tensors [size, ...], filled up at the end."""
        ...

    def take(self, plan: Batch, index: tf.Tensor) -> Batch:
        """Returns the batch of row `index` of a plan. Call it in the `rng.scope` of its step."""
        ...

    def shard(self, first: int, count: int) -> "Batches":
        """Returns the batches of one replica: places first … first + count - 1 of each global batch."""
        ...


def make_batches(
    sources: Any,
    config: ConfigDict,
    *,
    training: bool,
    transform: Transform | None = None,
    buckets: Buckets | None = None,
) -> Batches:
    """Returns the batches of a source, or of a weighted mixture of sources with the same fields.

    Args:
      sources: one source or map-style data set (`data/items.py`), or (source, weight) pairs; the weights are the shares
        of the examples that are seen. Or a tf.data.Dataset of batches (`data/dataset.py`).
      config: a finalized config; reads `seed` and `data.*`, and `eval.batch_size` when not training.
      training: True for shuffled batches without end, False for file order with a padded last batch.
      transform: {field: [batch, ...]} -> the same with other tensors; it is traced and compiled, and draws by `rng`.
        If it has an attribute `needs`, such as ("index", "epoch"), it gets these fields too, int64 [batch] each: the
        number of each example among those of all sources, and how often its source has been passed over before. If it
        has a method `to_pictures(batch)`, TensorBoard shows what that returns (`data/augment/`).
      buckets: of the examples of one source, for batches of several shapes (`data/buckets.py`). They decide the sizes
        of the batches in place of `data.batch_size` and `eval.batch_size`.

    Raises:
      UserError: a batch is larger than the data, weights cannot be met, a mixture cannot have the remainder, a mixture
        is not for training, the buckets are not of the source, or an example of a repeatable run is another one when it
        is read again.
    """
    if transform is not None and not callable(transform):
        raise UserError(f"make_batches: transform is of type {type(transform).__name__}, not a function of the batch.")
    to_pictures = getattr(transform, "to_pictures", dict)
    if isinstance(sources, tf.data.Dataset):
        if buckets is not None:
            raise UserError("make_batches: buckets need a source that is read by index, not a tf.data.Dataset.")
        stream = from_dataset(sources, config, training, transform)
        stream.to_pictures = to_pictures
        return stream
    pairs = shares_of(sources)
    members = [source for source, _ in pairs]
    make_reader = functools.partial(RetryingReader, config.data.retries, config.data.retry_seconds)
    fields = _fields(members, make_reader)
    if len(members) > 1 and not training:
        names = ", ".join(repr(member.origin) for member in members)
        raise UserError(
            f"a mixture ({names}) has no end, so it cannot be an evaluation split."
            " Name each source in eval.splits and return it from make_data."
        )
    shuffle = training and config.data.shuffle
    remainder = config.data.remainder if training else "pad"
    orders: list[BucketOrder] = []
    if buckets is None:
        order = Order(
            sizes=tuple(len(member) for member in members),
            shares=cycle_of([weight for _, weight in pairs]),
            batch_size=config.data.batch_size if training else config.eval.batch_size,
            seed=config.seed,
            shuffle=shuffle,
            remainder=remainder,
        )
        check_order(order)
    else:
        _check_buckets(buckets, members, fields, make_reader)
        orders = orders_of(buckets, config.seed, shuffle, remainder)
    check_repeatable(members, make_reader(), config.runtime.deterministic)
    fingerprint = fingerprint_of(members, make_reader())
    if buckets is not None:
        fingerprint = " ".join(filter(None, [fingerprint, buckets.fingerprint()]))
    is_resident = _is_resident(members, config)
    origin = origin_of(members, "resident" if is_resident else "stream", fingerprint)
    make = _maker(members, is_resident, origin, transform, fields, config, make_reader)
    batches = make(order) if buckets is None else Bucketed(make, orders, buckets, origin)
    batches.training = training
    batches.classes = classes_of(members)
    batches.to_pictures = to_pictures
    return batches


def _maker(
    sources: Sequence[IndexedSource],
    is_resident: bool,
    origin: dict[str, Any],
    transform: Transform | None,
    fields: Fields,
    config: ConfigDict,
    make_reader: Callable[[], RetryingReader],
) -> Callable[..., Any]:
    """Returns a function (order, lengths) -> batches of one shape; resident ones share their examples."""
    if is_resident:
        examples = on_device([_whole(source, fields, make_reader) for source in sources])
        return functools.partial(Resident, origin, transform, examples, copies={})

    def make(order: Order, lengths: Mapping[str, int] | None = None) -> Streamed:
        calls, ahead = config.data.parallel_calls, _ahead(sources, order, config)
        return Streamed(sources, origin, transform, fields, calls, make_reader, order, ahead, lengths)

    return make


def _fields(sources: Sequence[IndexedSource], make_reader: Callable[[], RetryingReader]) -> Fields:
    """Returns the fields that all sources have."""
    fields: list[Fields] = []
    for source in sources:
        what = f"'{source.origin}'"
        if len(source) == 0 or len(source) >= 2**31:
            raise UserError(f"{what} has {len(source)} examples; a source has between 1 and 2**31 - 1.")
        fields.append(make_reader().learn(source, element_spec_of))
        if "weight" in (arrays := arrays_of(source) or {}):
            check_weights(arrays["weight"], source.origin)
        check_same(fields[0], f"'{sources[0].origin}'", fields[-1], what)
    return fields[0]


def _check_buckets(
    buckets: Buckets, sources: Sequence[IndexedSource], fields: Fields, make_reader: Callable[[], RetryingReader]
) -> None:
    """Raises UserError unless the buckets are those of the source; logs their number and what they leave out."""
    if len(sources) > 1:
        raise UserError(f"make_batches: buckets are of one source, and the mixture has {len(sources)}.")
    source, reader = sources[0], make_reader()
    buckets.check(fields, len(source), source.origin)
    most = 16 if arrays_of(source) is None else 2**17  # reading may be slow
    buckets.check_padding(lambda rows: reader.read(source, rows, 0), most, source.origin)
    logging.info(
        "'%s': batches of %d shapes, from %s to %s; they decide the sizes, and no batch_size does",
        sources[0].origin,
        len(buckets.shapes),
        dict(buckets.shapes[0]),
        dict(buckets.shapes[-1]),
    )
    if buckets.left_out:
        logging.info(
            "'%s': %d of %d examples are longer than the last bucket and left out",
            sources[0].origin,
            buckets.left_out,
            len(sources[0]),
        )


def _whole(
    source: IndexedSource, fields: Fields, make_reader: Callable[[], RetryingReader]
) -> Mapping[str, np.ndarray]:
    """Returns all examples of a source."""
    arrays = arrays_of(source)
    if arrays is not None:
        return arrays
    arrays = checked(make_reader().read(source, np.arange(len(source)), 0), fields, len(source), f"'{source.origin}'")
    if "weight" in arrays:
        check_weights(arrays["weight"], source.origin)
    return arrays


def _ahead(sources: Sequence[IndexedSource], order: Order, config: ConfigDict) -> int:
    """Returns how many batches to read ahead; if a block of them is small, the whole block, to save calls."""
    size = order.batch_size * sum(source.nbytes for source in sources) / sum(len(source) for source in sources)
    return max(config.data.prefetch_batches, min(config.train.block_steps, int(_READ_AHEAD_BYTES / max(1, size))))


def _is_resident(sources: Sequence[IndexedSource], config: ConfigDict) -> bool:
    """Returns whether the examples are to lie on the device; 'auto' decides by size and memory, and logs the decision.

    The decision is the same at each start on a machine.
    """
    if config.data.placement != "auto":
        return config.data.placement == "resident"
    if any(arrays_of(source) is None for source in sources):
        return False  # `take` may be slow, and give far more than `nbytes`
    size, memory, limit = sum(source.nbytes for source in sources), host_memory(), config.data.resident_limit_mb
    if size > limit * 2**20:
        why = f"streamed: more than data.resident_limit_mb={limit}"
    elif memory is not None and 4 * size > memory:  # the arrays are concatenated, then copied to the device
        why = f"streamed: more than a quarter of the {memory / 2**20:,.0f} MB of memory"
    else:
        why = "resident"
    names = " + ".join(source.origin for source in sources)
    logging.info("data.placement=auto: %s, %.0f MB, %s", names, size / 2**20, why)
    return why == "resident"


def epoch_steps(batches: Batches) -> int:
    """Returns the number of steps of one pass over an evaluation split."""
    return math.ceil(batches.steps_per_epoch)
