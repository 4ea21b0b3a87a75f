"""Augmentations of pictures: functions of a batch that draw for each example, and chains of them.

    augmentation = Chain(PadAndCrop(4), Flip(), Normalise(mean, std))
    batches = data.make_batches(source, cfg, training=True, transform=augmentation)

An augmentation first draws, in exact integer arithmetic, and then changes pixels. Its draws depend on (seed, step,
place in the global batch), so they have the same bits in every compile mode and on any number of replicas.
"""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import tensorflow as tf

from framework import rng
from framework.compile import is_in_xla, jit
from framework.data.fields import Batch, Transform
from framework.errors import UserError

_local = threading.local()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A function of a batch that changes one field of pictures; subclasses write `draw` and `change`.

    Attributes:
      field: the pictures, uint8 (0 to 255) or floating (0 to 1) [batch, height, width, channels].
    """

    field: str = "image"
    takes_levels: ClassVar[bool] = False  # whether it is wrong for pictures that are no more from black to white
    normalises: ClassVar[bool] = False  # whether it makes such pictures

    @property
    def name(self) -> str:
        """Returns the name of the augmentation, which is also that of its random stream."""
        return type(self).__name__

    @property
    def stream(self) -> str:
        """Returns the random stream of the augmentation; a second one of the same kind draws other numbers."""
        return f"augment/{self.name}"

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns what is drawn for each example, tensors [batch, ...]."""
        return ()

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        """Returns the changed pictures; XLA compiles this function, also inside of a graph."""
        raise NotImplementedError

    def __call__(self, batch: Batch) -> Batch:
        images = pictures_of(batch, self.field, self.name)
        return {**batch, self.field: program(self.change)(images, *self.draw(batch))}


class Chain:
    """Applies functions of a batch one after the other: augmentations, and an experiment's own transforms.

    Attributes:
      members: the functions.
      needs: the fields of the data order that a member reads: 'index', 'epoch', see `make_batches`.
    """

    def __init__(self, *members: Transform) -> None:
        for member in members:
            if not callable(member):
                raise UserError(f"augment.Chain was given a {type(member).__name__}, not a function of the batch.")
        _check_order(members)
        self.members = members
        self.needs = _needs_of(members)

    def __call__(self, batch: Batch) -> Batch:
        _record("source", batch)
        for member in self.members:
            batch = member(dict(batch))
            _record(str(getattr(member, "name", getattr(member, "__name__", type(member).__name__))), batch)
        return batch

    def to_pictures(self, batch: Mapping[str, tf.Tensor]) -> Batch:
        """Returns a batch that the chain made, with its pictures as they look: normalisations are undone."""
        shown = dict(batch)
        for member in reversed(self.members):
            if hasattr(member, "to_pictures"):
                shown = member.to_pictures(shown)
        return shown


def _needs_of(members: Sequence[Transform]) -> tuple[str, ...]:
    return tuple(sorted({field for member in members for field in getattr(member, "needs", ())}))


def _check_order(members: Sequence[Transform], before: Mapping[str, Augmentation] | None = None) -> dict[str, Any]:
    """Returns {field: the member that normalises it}.

    Raises:
      UserError: a member that takes values from black to white comes after one that normalises the same field.
    """
    normalised = dict(before or {})
    for member in members:
        if isinstance(member, Chain):
            normalised = _check_order(member.members, normalised)
        elif isinstance(member, OneOf):
            for each in member.members:
                _check_order([each], normalised)
        elif isinstance(member, Augmentation):
            if member.takes_levels and member.field in normalised:
                raise UserError(
                    f"augment.Chain: {member.name} comes after {normalised[member.field].name}, but takes values of"
                    f" '{member.field}' from black to white. Put {member.name} before it."
                )
            if member.normalises:
                normalised[member.field] = member
    return normalised


class OneOf:
    """Applies one of several functions of a batch to each example, such as either MixUp or CutMix.

    All of them are computed for the whole batch, and each example keeps the result of the one drawn for it.

    Args:
      members: functions of a batch that return the same fields.
      shares: how often each is drawn, relative to the sum; by default all equally.
    """

    name = "OneOf"

    def __init__(self, *members: Transform, shares: tuple[float, ...] | None = None) -> None:
        self.members = members
        self.shares = (1.0,) * len(members) if shares is None else shares
        for member in members:
            Chain(member)  # refuses what is no function of the batch
        self.needs = _needs_of(members)
        if len(self.shares) != len(members) or not members or min(self.shares) < 0 or sum(self.shares) <= 0:
            raise UserError(f"augment.OneOf: shares={self.shares} must be a number of at least 0 for each member.")

    def __call__(self, batch: Batch) -> Batch:
        results = [member(dict(batch)) for member in self.members]
        for result in results[1:]:
            if result.keys() != results[0].keys():
                field = min(result.keys() ^ results[0].keys())
                raise UserError(f"augment.OneOf: only some of its functions return '{field}'. All must.")
        word = rng.random_bits(f"augment/{self.name}", count(batch["weight"]), 1)[:, 0]
        chosen = dict(results[0])
        start = 0.0
        for share, result in zip(self.shares, results, strict=True):
            is_chosen = word >= tf.constant(min(round(start / sum(self.shares) * 2**32), 2**32 - 1), tf.uint32)
            start += share
            if result is not results[0] and share > 0:
                chosen = {name: _choose_field(is_chosen, value, chosen[name]) for name, value in result.items()}
        return chosen


def _choose_field(is_first: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns `choose` of a field, which may be of texts; pictures are chosen by an XLA program."""
    is_large = first is not second and first.shape.rank == 4 and first.dtype != tf.string
    return (program(choose) if is_large else choose)(is_first, first, second)


def program(fn: Callable[..., tf.Tensor]) -> Callable[..., tf.Tensor]:
    """Returns `fn`; in a graph, as an XLA program, which takes a quarter of the time that its operations take there."""
    return fn if tf.executing_eagerly() or is_in_xla() else jit(fn)


def pictures_of(batch: Mapping[str, tf.Tensor], field: str, name: str) -> tf.Tensor:
    """Returns the pictures of a batch.

    Args:
      field: their name.
      name: the augmentation, for errors.

    Raises:
      UserError: there is no such field, or it does not hold pictures of one known size.
    """
    if field not in batch:
        raise UserError(
            f"augment.{name}: the batch has the fields {', '.join(batch)} and no '{field}'. Name the one with the"
            " pictures: field='…'."
        )
    images = batch[field]
    if images.shape.rank != 4 or None in images.shape[1:]:
        raise UserError(
            f"augment.{name}: '{field}' has shape {images.shape}, but pictures are [batch, height, width, channels] of"
            " one size. Add the channels by images[..., tf.newaxis], or resize before."
        )
    if images.dtype != tf.uint8 and not images.dtype.is_floating:
        raise UserError(
            f"augment.{name}: '{field}' is {images.dtype.name}, but pictures are uint8 (0 to 255) or floating (0 to 1)."
            " Cast them before."
        )
    return images


def count(tensor: tf.Tensor) -> Any:
    """Returns how many examples a tensor has; an int if the trace knows it."""
    return tf.shape(tensor)[0] if tensor.shape[0] is None else int(tensor.shape[0])


def choose(is_first: tf.Tensor, first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    """Returns [batch, ...]: for each example `first` if `is_first` [batch] holds, else `second`."""
    return first if first is second else tf.where(column(is_first, first.shape.rank), first, second)


def column(values: tf.Tensor, rank: int) -> tf.Tensor:
    """Returns [batch] values as [batch, 1, …] of a rank."""
    return tf.reshape(values, [-1, *[1] * (rank - 1)])


def levels(images: tf.Tensor) -> tuple[tf.Tensor, float]:
    """Returns pictures as floating numbers in at least float32, and the number that stands for white."""
    if images.dtype == tf.uint8:
        return tf.cast(images, tf.float32), 255.0
    return (images if images.dtype == tf.float64 else tf.cast(images, tf.float32)), 1.0


def of_levels(values: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns pictures of floating numbers: rounded and clipped to 0 … 255 if `dtype` is uint8."""
    if dtype == tf.uint8:
        values = tf.clip_by_value(tf.round(values), 0, 255)
    return tf.cast(values, dtype)


@contextlib.contextmanager
def recorded() -> Iterator[list[tuple[str, Batch]]]:
    """Collects (name, batch) of the source and of each member of the chains that are called while it is open."""
    before = getattr(_local, "stages", None)
    _local.stages = []
    try:
        yield _local.stages
    finally:
        _local.stages = before


def _record(name: str, batch: Batch) -> None:
    stages = getattr(_local, "stages", None)
    if stages is not None and tf.executing_eagerly():
        stages.append((name, dict(batch)))
