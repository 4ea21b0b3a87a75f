"""The fields of batches, by name: what a source gives, and what becomes of it in a batch.

    fields = fields_of(source.arrays, "'north'")            # {'x': TensorSpec([4], float32)}, of one example
    arrays = checked(source.take(rows), fields, len(rows), "batch 12 of 'north'")
    batch = Finish(transform, batch_size, first)(examples, padding)

A field keeps its name, dtype and shape from source to source and from read to read; every batch has `weight` [batch]
float32, which is the weight of the example, 1 unless the source has a field of that name, and 0 for padding.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.trace import guards

Batch = dict[str, tf.Tensor]
Transform = Callable[[Batch], Batch]
Fields = dict[str, tf.TensorSpec]

_CHUNK = 2**20  # weights looked at in one piece: those of a memory-mapped file need not fit
_SETTLED = "field_of_batch"  # in the name of the op that holds a field to its shape


def fields_of(arrays: Mapping[str, np.ndarray], what: str) -> Fields:
    """{field: spec of one example} of arrays [examples, ...].

    Args:
      what: of which the arrays are, for errors: "source 'north'".

    Raises:
      UserError: 'weight' is not one number for each example.
    """
    fields = {name: tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype)) for name, array in arrays.items()}
    check_weight_field(fields, what)
    return fields


def check_weight_field(fields: Mapping[str, tf.TensorSpec], what: str) -> None:
    """Raises UserError if there is a field 'weight' that is not one number for each example."""
    spec = fields.get("weight")
    if spec is not None and (spec.shape.rank or not _is_number(spec.dtype)):
        raise UserError(
            f"'weight' of {what} is {_shown(spec, 'examples')}, but it is the weight of each example in losses and"
            " metrics, [examples]. If it is something else, call it otherwise, such as 'token_weight'."
        )


def _is_number(dtype: tf.DType) -> bool:
    return dtype.is_floating or dtype.is_integer or dtype.is_bool


def check_same(fields: Fields, what: str, others: Fields, of_others: str) -> None:
    """Raises UserError unless two sources of a mixture have the same fields."""
    for name in sorted(fields.keys() ^ others.keys()):
        has, lacks = (what, of_others) if name in fields else (of_others, what)
        raise UserError(f"the sources of a mixture differ: {has} has a field '{name}', which {lacks} has not.")
    for name, spec in fields.items():
        if spec != others[name]:
            raise UserError(
                f"the sources of a mixture differ in '{name}': it is {_shown(spec, 'examples')} in {what} and"
                f" {_shown(others[name], 'examples')} in {of_others}."
            )


def checked(taken: Any, fields: Fields | None, rows: int, what: str) -> dict[str, np.ndarray]:
    """What a source's `take` returned, in the byte order of this machine.

    Args:
      taken: {field: array [rows, ...]}.
      fields: those of the source; None for its first read, by which they are known.
      rows: how many were asked for.
      what: was read, for errors: "batch 12 of 'north'".

    Raises:
      UserError: something else than arrays, or other names, dtypes, shapes or numbers of rows.
    """
    if not isinstance(taken, Mapping):
        raise UserError(f"{what}: take returned {type(taken).__name__}, not {{field: array [rows, ...]}}.")
    if fields is not None and taken.keys() != fields.keys():
        name = min(map(str, taken.keys() ^ fields.keys()))
        was, now = ("missing from", "returned it") if name in taken else ("in", "left it out")
        raise UserError(f"{what}: field '{name}' was {was} the first read, and now take {now}. Always return the same.")
    arrays = {}
    for name, array in taken.items():
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise UserError(f"{what}: take returned '{name}' as {type(array).__name__}. Return an np.ndarray.")
        if array.shape[:1] != (rows,):
            raise UserError(f"{what}: take returned '{name}' of shape {array.shape}, but {rows} rows were asked for.")
        spec = tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype))
        if fields is not None and spec != fields[name]:
            raise UserError(
                f"{what}: '{name}' is {_shown(spec, rows)}, but was {_shown(fields[name], 'rows')} in the first read."
                " Every read gives the same dtypes and shapes: cast and pad in take."
            )
        # TensorFlow takes the bytes of what a function returns to be in its own order.
        arrays[name] = array.astype(array.dtype.newbyteorder("="), copy=False)
    return arrays


def check_weights(weight: np.ndarray, origin: str, indices: np.ndarray | None = None) -> None:
    """Raises UserError that names the first weight that is negative, NaN, infinite, or not to be had in float32.

    Args:
      weight: [n], of numbers.
      indices: of the examples; by default they are the first n.
    """
    for first in range(0, len(weight), _CHUNK):
        chunk = np.asarray(weight[first : first + _CHUNK])
        with np.errstate(over="ignore"):
            single = chunk.astype(np.float32)
        is_good = np.isfinite(single) & (single >= 0) & ((single > 0) | (chunk == 0))
        if not is_good.all():
            place = int(np.argmin(is_good))
            index = first + place if indices is None else indices[first + place]
            raise UserError(
                f"'{origin}': the weight of example {index} is {chunk[place]}. Weights are finite float32 numbers of at"
                " least 0, which leaves an example out of losses and metrics."
            )


class Finish:
    """Makes what was read into a batch: gives it `weight`, transforms it, and settles the shapes of its fields.

    Args:
      transform: None for none.
      batch_size: of the global batch.
      first: makes the first batch, eagerly. Called once, while a batch is traced in which a shape is not known, such as
        that of what `tf.numpy_function` returns; all batches must then have the shapes of the first.
    """

    def __init__(self, transform: Transform | None, batch_size: int, first: Callable[[], Mapping[str, tf.Tensor]]):
        self._transform, self._batch_size, self._first = transform, batch_size, first
        self._shapes: dict[str, tf.TensorShape] | None = None

    def __call__(self, examples: Batch, padding: tf.Tensor) -> Batch:
        """The batch, or a replica's part of it.

        Args:
          examples: {field: [places, ...]}.
          padding: float32 [places], 1 for an example and 0 for padding.

        Raises:
          UserError: a transform that returns no batch, drops `weight`, or makes a field another number of rows.
        """
        weight = tf.cast(examples["weight"], tf.float32) * padding if "weight" in examples else padding
        given = {**examples, "weight": weight}
        if self._transform is None:
            return given
        guards.note_batch(given)
        batch = _tensors(self._transform(dict(given)), given)
        batch = self._settled(batch, padding.shape[0])
        for name, tensor in batch.items():
            _check_rows(name, tensor, given, padding.shape[0])
        if batch["weight"] is not weight:
            batch["weight"] = own_weight(batch["weight"], padding)
        return batch

    def _settled(self, batch: Batch, places: int) -> Batch:
        """Fields with the shapes of the first batch, where they are not known."""
        is_known = all(tensor.shape.is_fully_defined() for tensor in batch.values())
        if self._shapes is None and not is_known:
            with tf.init_scope():
                self._shapes = {name: tensor.shape for name, tensor in self._first().items()}
        if self._shapes is None:
            return batch
        return {name: self._held(name, tensor, places) for name, tensor in batch.items()}

    def _held(self, name: str, tensor: tf.Tensor, places: int) -> tf.Tensor:
        assert self._shapes is not None
        shape = self._shapes[name]
        if shape.rank and shape[0] == self._batch_size:
            shape = tf.TensorShape([places, *shape[1:]])
        if not tensor.shape.is_compatible_with(shape):
            raise UserError(_another_shape(name, str(tensor.shape.as_list()), str(shape.as_list())))
        if tensor.shape.is_fully_defined():
            return tensor
        return tf.ensure_shape(tensor, shape, name=f"{_SETTLED}/{re.sub(r'[^A-Za-z0-9_.]', '_', name)}")


@contextlib.contextmanager
def named_shapes() -> Iterator[None]:
    """An error of a field that has not the shape of the first batch becomes a line that names it."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        pattern = rf"(\[[\d,]*\]) is not compatible with expected shape (\[.*?\]).*{_SETTLED}/([\w.]+)"
        found = re.search(pattern, str(error), re.DOTALL)
        if found is None:
            raise
        shape, expected, name = found.groups()
        raise UserError(_another_shape(name, shape, expected)) from error


def check_batch(batch: Mapping[str, tf.TensorSpec], batch_size: int) -> None:
    """Raises UserError unless a batch has `weight`, floating [batch size]: also batches of one's own have it."""
    spec = batch.get("weight")
    if spec is None:
        raise UserError(
            f"the batches have {', '.join(batch) or 'nothing'} and no 'weight', which is 1 for an example and 0 for"
            f" padding. Add e.g. tf.ones([{batch_size}])."
        )
    if not spec.dtype.is_floating or not spec.shape.is_compatible_with([batch_size]):
        raise UserError(
            f"'weight' of the batches is {spec.dtype.name} {spec.shape}, but each of the {batch_size} examples has one,"
            " a floating number."
        )


def _tensors(returned: Any, given: Batch) -> Batch:
    """What a transform returned, as tensors by name."""
    if not isinstance(returned, Mapping):
        raise UserError(
            f"transform returned {type(returned).__name__}. It must return the batch, e.g. {{**batch, 'x': …}}."
        )
    if "weight" not in returned:
        raise UserError(
            f"transform dropped 'weight': it returned {', '.join(map(str, returned)) or 'nothing'}. Begin with what it"
            " was given: {**batch, …}."
        )
    batch: Batch = {}
    for name, value in returned.items():
        if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
            how = "to_tensor()" if isinstance(value, tf.RaggedTensor) else "a tf.sparse.to_dense(…)"
            raise UserError(
                f"transform returned '{name}' as {type(value).__name__}, but fields are dense, of one shape in all"
                f" batches. Pad it, e.g. with {how} of a fixed shape."
            )
        try:
            batch[name] = given[name] if value is given.get(name) else tf.convert_to_tensor(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"transform returned '{name}' as {type(value).__name__}, which is no tensor.") from error
    return batch


def _check_rows(name: str, tensor: tf.Tensor, given: Batch, places: int) -> None:
    """A field that a source gave, and the weight, keep the number of rows; a new one may be a table."""
    if name in given and (tensor.shape.rank == 0 or tensor.shape[0] != places):
        raise UserError(
            f"transform made '{name}' of shape {tensor.shape}, but a batch has {places} rows. It may change examples,"
            " not how many there are: give those to be left out a weight of 0."
        )
    if name == "weight" and tensor.shape.rank != 1:
        raise UserError(f"transform made 'weight' of shape {tensor.shape}, but each of {places} examples has one.")


def own_weight(weight: tf.Tensor, padding: tf.Tensor) -> tf.Tensor:
    """A weight that was made on the way: of padding it is 0, and what is negative is NaN, at which the step stops.

    float64 stays, as a run in float64 computes in it; all else becomes float32.
    """
    if not _is_number(weight.dtype):
        raise UserError(f"transform made 'weight' {weight.dtype.name}, but it is a number for each example.")
    weight = tf.cast(weight, tf.float64 if weight.dtype == tf.float64 else tf.float32)
    weight = tf.where(weight >= 0, weight, tf.constant(float("nan"), weight.dtype))
    return tf.where(padding > 0, weight, tf.zeros_like(weight))


def _another_shape(name: str, shape: str, expected: str) -> str:
    shape, expected = shape.replace(" ", ""), expected.replace(" ", "")
    return (
        f"transform made '{name}' of shape {shape}, but {expected} in the first batch: fields have one shape in all"
        " batches. Pad or cut it in the transform."
    )


def _shown(spec: tf.TensorSpec, rows: Any) -> str:
    """'float32 [8, 3]'."""
    return f"{spec.dtype.name} [{', '.join(map(str, [rows, *spec.shape]))}]"
