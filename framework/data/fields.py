"""Fields of batches by name: the arrays that a source gives become the tensors of a batch.

    fields = fields_of(source.arrays, "'north'")            # {'x': TensorSpec([4], float32)}, of one example
    arrays = checked(source.take(rows), fields, len(rows), "batch 12 of 'north'")
    batch = Finish(transform, batch_size, first)(examples, padding)

A field has the same name, dtype and shape in every source and every read. Every batch has `weight` [batch] float32: the
weight of each example (the source's field `weight`, else 1), and 0 for padding.
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.data.draws import refuse_constant_draws
from framework.errors import UserError
from framework.trace import guards

Batch = dict[str, tf.Tensor]
Transform = Callable[[Batch], Batch]
Fields = dict[str, tf.TensorSpec]

# Fields of the data order that a transform with the attribute `needs` reads: the number of the example among those of
# all sources, and how often its source has been passed over before; int64 [batch] each.
ORDER_FIELDS = ("index", "epoch")

_CHUNK = 2**20  # weights checked at a time: a memory-mapped field need not fit memory
_SHAPE_CHECK = "field_of_batch"  # name scope of the ops that check the shapes of fields


def fields_of(arrays: Mapping[str, np.ndarray], what: str) -> Fields:
    """Returns {field: spec of one example} of arrays [examples, ...].

    Args:
      arrays: {field: array}.
      what: names the owner of the arrays in errors: "source 'north'".

    Raises:
      UserError: 'weight' is not one number for each example.
    """
    fields = {name: tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype)) for name, array in arrays.items()}
    check_weight_field(fields, what)
    return fields


def check_weight_field(fields: Mapping[str, tf.TensorSpec], what: str) -> None:
    """Raises UserError if a field 'weight' is not one number for each example."""
    spec = fields.get("weight")
    if spec is not None and (spec.shape.rank or not _is_number(spec.dtype)):
        raise UserError(
            f"'weight' of {what} is {_shown(spec, 'examples')}, but 'weight' is the weight of each example in losses"
            " and metrics, [examples]. If the field is something else, give it another name, such as 'token_weight'."
        )


def _is_number(dtype: tf.DType) -> bool:
    return dtype.is_floating or dtype.is_integer or dtype.is_bool


def check_same(fields: Fields, what: str, others: Fields, of_others: str) -> None:
    """Raises UserError unless two sources of a mixture have the same fields."""
    for name in sorted(fields.keys() ^ others.keys()):
        has, lacks = (what, of_others) if name in fields else (of_others, what)
        raise UserError(f"the sources of a mixture differ: {has} has a field '{name}', and {lacks} does not.")
    for name, spec in fields.items():
        if spec != others[name]:
            raise UserError(
                f"the sources of a mixture differ in '{name}': {_shown(spec, 'examples')} in {what},"
                f" {_shown(others[name], 'examples')} in {of_others}."
            )


def checked(taken: Any, fields: Fields | None, rows: int, what: str) -> dict[str, np.ndarray]:
    """Returns the arrays that a source's `take` returned, in the byte order of this machine.

    Args:
      taken: the value that `take` returned: {field: array [rows, ...]}.
      fields: the `element_spec` of the source; None for the read that defines it.
      rows: how many rows `take` was asked for.
      what: names the read in errors: "batch 12 of 'north'".

    Raises:
      UserError: `taken` is not a dict of arrays, or has other names, dtypes, shapes or numbers of rows.
    """
    if not isinstance(taken, Mapping):
        raise UserError(f"{what}: take returned {type(taken).__name__}, not {{field: array [rows, ...]}}.")
    if fields is not None and taken.keys() != fields.keys():
        name = min(map(str, taken.keys() ^ fields.keys()))
        is_in, did = ("is not in", "returned it") if name in taken else ("is in", "left it out")
        raise UserError(
            f"{what}: field '{name}' {is_in} element_spec, but take {did}. Return the same fields each time."
        )
    arrays = {}
    for name, array in taken.items():
        if not isinstance(array, np.ndarray) or isinstance(array, np.ma.MaskedArray):
            raise UserError(f"{what}: take returned '{name}' as {type(array).__name__}. Return an np.ndarray.")
        if array.shape[:1] != (rows,):
            raise UserError(f"{what}: take returned '{name}' of shape {array.shape}, but {rows} rows were asked for.")
        spec = tf.TensorSpec(array.shape[1:], tf.as_dtype(array.dtype))
        if fields is not None and spec != fields[name]:
            raise UserError(
                f"{what}: '{name}' is {_shown(spec, rows)}, but {_shown(fields[name], 'rows')} in element_spec."
                " Every read gives the same dtypes and shapes: cast and pad in take."
            )
        # TensorFlow reads the bytes of a NumPy function's result in the order of this machine, and texts as ASCII.
        arrays[name] = array.astype(object if array.dtype.kind == "U" else array.dtype.newbyteorder("="), copy=False)
    return arrays


def check_weights(weight: np.ndarray, origin: str, indices: np.ndarray | None = None) -> None:
    """Raises UserError for the first weight that is negative or NaN, or that float32 rounds to infinity or 0.

    Args:
      weight: numbers [n].
      origin: the name of their source.
      indices: int [n], the examples of the source; by default its first n.
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
                " least 0; 0 leaves an example out of losses and metrics."
            )


class Finish:
    """Makes a batch of the examples that were read: adds `weight`, transforms, and fixes the shapes of its fields.

    Args:
      transform: the experiment's function of a batch, or None; its attribute `needs` names ORDER_FIELDS that it reads.
      batch_size: examples of the global batch.
      first: returns the first batch, eagerly. `Finish` calls it once, and only if a trace does not know the shape of a
        field, such as that of a `tf.numpy_function`. All batches must then have the shapes of the first.
      lengths: {field: length} to which the second axis of fields is cut, see `buckets.py`.
    """

    def __init__(
        self,
        transform: Transform | None,
        batch_size: int,
        first: Callable[[], Mapping[str, tf.Tensor]],
        lengths: Mapping[str, int] | None = None,
    ):
        self.needs = needs_of(transform)
        self._transform = transform
        self._batch_size = batch_size
        self._first = first
        self._lengths = lengths or {}
        self._shapes: dict[str, tf.TensorShape] | None = None
        self._are_draws_checked = False

    def __call__(
        self, examples: Batch, padding: tf.Tensor, order_fields: Mapping[str, tf.Tensor] | None = None
    ) -> Batch:
        """Returns the batch, or a replica's shard of it.

        Args:
          examples: {field: [places, ...]}.
          padding: float32 [places], 1 for an example and 0 for padding.
          order_fields: those of ORDER_FIELDS in `needs`; the batch that is returned does not have them.

        Raises:
          UserError: the transform returns no batch, drops `weight`, or changes the number of rows of a field.
        """
        examples = {**examples, **{name: examples[name][:, :length] for name, length in self._lengths.items()}}
        weight = tf.cast(examples["weight"], tf.float32) * padding if "weight" in examples else padding
        given = {**examples, **self._order_fields(examples, order_fields or {}), "weight": weight}
        if self._transform is None:
            return given
        guards.note_batch(given)
        self._check_draws(given)
        batch = _tensors(self._transform(dict(given)), given)
        batch = {name: tensor for name, tensor in batch.items() if name not in self.needs}
        batch = self._with_known_shapes(batch, padding.shape[0])
        for name, tensor in batch.items():
            _check_rows(name, tensor, given, padding.shape[0])
        if batch["weight"] is not weight:
            batch["weight"] = own_weight(batch["weight"], padding)
        return batch

    def _order_fields(self, examples: Batch, order_fields: Mapping[str, tf.Tensor]) -> Batch:
        """Returns the fields of the data order that the transform needs."""
        for name in self.needs:
            if name in examples:
                raise UserError(
                    f"the source has a field '{name}', and the transform needs the '{name}' of the data order. Give the"
                    " field of the source another name."
                )
            if name not in order_fields:
                raise UserError(
                    f"the transform needs the '{name}' of each example, which a tf.data pipeline does not have. Leave"
                    " out what needs it, such as augment.AlternatingFlip, or give make_batches a source with an index."
                )
        return {name: order_fields[name] for name in self.needs}

    def _check_draws(self, given: Batch) -> None:
        """Refuses, at the first trace, a transform that draws by NumPy: the same numbers would come at every step."""
        if not self._are_draws_checked and self._transform is not None and not tf.executing_eagerly():
            self._are_draws_checked = True
            refuse_constant_draws("transform", self._transform, given)

    def _with_known_shapes(self, batch: Batch, places: int) -> Batch:
        """Returns the batch; fields of unknown shape get a check that they have the shapes of the first batch."""
        is_known = all(tensor.shape.is_fully_defined() for tensor in batch.values())
        if self._shapes is None and not is_known:
            with tf.init_scope():
                self._shapes = {name: tensor.shape for name, tensor in self._first().items()}
        if self._shapes is None:
            return batch
        return {name: self._checked(name, tensor, places) for name, tensor in batch.items()}

    def _checked(self, name: str, tensor: tf.Tensor, places: int) -> tf.Tensor:
        """Returns the field with the shape that it has in the first batch, which is checked now or when it runs."""
        assert self._shapes is not None
        shape = self._shapes[name]
        if shape.rank and shape[0] == self._batch_size:
            shape = tf.TensorShape([places, *shape[1:]])
        if not tensor.shape.is_compatible_with(shape):
            raise UserError(_wrong_shape(name, str(tensor.shape.as_list()), str(shape.as_list())))
        if tensor.shape.is_fully_defined():
            return tensor
        return tf.ensure_shape(tensor, shape, name=f"{_SHAPE_CHECK}/{re.sub(r'[^A-Za-z0-9_.]', '_', name)}")


def needs_of(transform: Transform | None) -> tuple[str, ...]:
    """Returns the fields of the data order that a transform reads.

    Raises:
      UserError: `transform.needs` has another name.
    """
    needs = tuple(getattr(transform, "needs", ()))
    for name in needs:
        if name not in ORDER_FIELDS:
            raise UserError(f"transform.needs has '{name}', but the data order has {' and '.join(ORDER_FIELDS)} alone.")
    return needs


@contextlib.contextmanager
def named_shapes() -> Iterator[None]:
    """Turns the error about a field whose shape is not that of the first batch into one line that names the field."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        pattern = rf"(\[[\d,]*\]) is not compatible with expected shape (\[.*?\]).*{_SHAPE_CHECK}/([\w.]+)"
        match = re.search(pattern, str(error), re.DOTALL)
        if match is None:
            raise
        shape, expected, name = match.groups()
        raise UserError(_wrong_shape(name, shape, expected)) from error


def check_batch(batch: Mapping[str, tf.TensorSpec], batch_size: int) -> None:
    """Raises UserError unless a batch has a floating `weight` [batch size]; an experiment's own batches need it too."""
    spec = batch.get("weight")
    if spec is None:
        raise UserError(
            f"the batches have the fields {', '.join(batch) or '(none)'} and no 'weight', which is 1 for an example and"
            f" 0 for padding. Add e.g. tf.ones([{batch_size}])."
        )
    if not spec.dtype.is_floating or not spec.shape.is_compatible_with([batch_size]):
        raise UserError(
            f"'weight' of the batches is {spec.dtype.name} {spec.shape}, but it must be a floating number for each of"
            f" the {batch_size} examples."
        )


def _tensors(returned: Any, given: Batch) -> Batch:
    """Returns the fields that a transform returned, as tensors by name."""
    if not isinstance(returned, Mapping):
        raise UserError(
            f"transform returned {type(returned).__name__}. Return the batch as a dict, e.g. {{**batch, 'x': …}}."
        )
    if "weight" not in returned:
        raise UserError(
            f"transform dropped 'weight': it returned {', '.join(map(str, returned)) or 'no field'}. Return all fields"
            " of the batch that it is given: {**batch, …}."
        )
    batch: Batch = {}
    for name, value in returned.items():
        if isinstance(value, tf.RaggedTensor | tf.SparseTensor):
            how = "to_tensor()" if isinstance(value, tf.RaggedTensor) else "a tf.sparse.to_dense(…)"
            raise UserError(
                f"transform returned '{name}' as {type(value).__name__}, but fields are dense and have one shape in all"
                f" batches. Pad it, e.g. with {how} of a fixed shape."
            )
        try:
            batch[name] = given[name] if value is given.get(name) else tf.convert_to_tensor(value)
        except (TypeError, ValueError) as error:
            raise UserError(
                f"transform returned '{name}' as {type(value).__name__}, which is not a tensor. Return a tensor."
            ) from error
    return batch


def _check_rows(name: str, tensor: tf.Tensor, given: Batch, places: int) -> None:
    """Raises UserError if a field of the source, or the weight, has other rows; a new field may be a table."""
    if name in given and (tensor.shape.rank == 0 or tensor.shape[0] != places):
        raise UserError(
            f"transform made '{name}' of shape {tensor.shape}, but a batch has {places} rows. A transform may change"
            " examples, not how many there are: to leave an example out, set its weight to 0."
        )
    if name == "weight" and tensor.shape.rank != 1:
        raise UserError(
            f"transform made 'weight' of shape {tensor.shape}, but it must be one number for each example: [{places}]."
        )


def own_weight(weight: tf.Tensor, padding: tf.Tensor) -> tf.Tensor:
    """Returns the weights of a transform or a replay buffer, with 0 for padding and NaN for a negative weight.

    NaN makes the loss not finite, so the step stops. float64 stays float64, for runs that compute in float64; every
    other dtype becomes float32.

    Args:
      weight: [batch].
      padding: [batch]; above 0 for an example, 0 for padding.

    Raises:
      UserError: `weight` is not a number.
    """
    if not _is_number(weight.dtype):
        raise UserError(
            f"transform made 'weight' of dtype {weight.dtype.name}, but it must be a number for each example."
        )
    weight = tf.cast(weight, tf.float64 if weight.dtype == tf.float64 else tf.float32)
    weight = tf.where(weight >= 0, weight, tf.constant(float("nan"), weight.dtype))
    return tf.where(padding > 0, weight, tf.zeros_like(weight))


def _wrong_shape(name: str, shape: str, expected: str) -> str:
    shape, expected = shape.replace(" ", ""), expected.replace(" ", "")
    return (
        f"transform made '{name}' of shape {shape}, but {expected} in the first batch: a field has one shape in all"
        " batches. Pad or cut it in the transform."
    )


def _shown(spec: tf.TensorSpec, rows: Any) -> str:
    """Returns the spec as text: 'float32 [8, 3]'."""
    return f"{spec.dtype.name} [{', '.join(map(str, [rows, *spec.shape]))}]"
