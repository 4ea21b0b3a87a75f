"""What layers add to a loss, as further terms: weight regularisers, and what they add in each call of a forward pass.

    returned, penalties = with_penalties(lambda: loss(model, batch, True), model, batch)
    penalties      # {'penalty': Term(of the weights, 1), 'penalty/rows': Term(of activity regularisers, rows), …}

Weight regularisers count once an update. What layers add in their calls becomes part of a term whose weight is right
for micro-batches, replicas and padded batches.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import compat
from framework.errors import UserError
from framework.losses import Term
from framework.step.added_losses import Added, Recorder
from framework.trace.graphs import ancestors

# Names of terms. Users see the sum of their means as one number, `PENALTY`.
PENALTY = "penalty"  # of the weights: weight 1
EXAMPLES = "penalty/examples"  # [batch] tensors given to add_loss: weighted by example
ROWS = "penalty/rows"  # activity regularisers: the mean over rows of weight > 0
SCALARS = "penalty/scalars"  # scalars given to add_loss: the mean over rows, all of which must have weight 1

# Attributes of a layer, set past Keras, which would track them; see `penalty_checks`.
UNEVEN = "_penalty_is_uneven"  # what the layer adds is right only if all rows of a batch have weight 1
COUPLED = "_penalty_is_coupled"  # its activity regulariser compares rows with one another
_IS_BY_ROW = "_is_by_row"

_FULL = (tf.float32, tf.float64)
_KNOWN = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)  # sums over elements, and of zeros 0
_CLOSE = 1e-3


def is_penalty(term: str) -> bool:
    """Returns whether a term is one of those that layers add."""
    return term.partition("/")[0] == PENALTY


def shown(terms: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of terms as users see them: all penalties are one."""
    return tuple(dict.fromkeys(PENALTY if is_penalty(name) else name for name in terms))


def of_model(terms: Mapping[str, Term], name: str) -> dict[str, Term]:
    """Returns the terms of a model; the name of one of several models becomes part of the names of its penalties."""
    rename = {term: f"{PENALTY}/{name}{term.removeprefix(PENALTY)}" for term in terms if is_penalty(term)}
    return dict(terms) if name == "model" else {rename.get(term, term): value for term, value in terms.items()}


def sum_of(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Returns the sum of scalars, in float64 if one of them is (layers may differ in dtype)."""
    dtype = tf.float64 if any(value.dtype == tf.float64 for value in values) else tf.float32
    # Not tf.add_n: its order depends on which memory is free when it is called.
    return tf.reduce_sum(tf.stack([tf.cast(value, dtype) for value in values]))


def with_penalties(run: Callable[[], Any], model: Any, batch: Mapping[str, tf.Tensor]) -> tuple[Any, dict[str, Term]]:
    """Returns what `run` returns, and the terms of what layers of a model add to the loss while it runs.

    Args:
      run: calls the model, any number of times.
      model: a model or a dict of them; layers of others are left alone.
      batch: what `run` is given: {name: [batch, ...]}. Without 'weight', each row has weight 1.

    Raises:
      UserError: something was added that has no right weight, or cannot be seen.
    """
    recorder = Recorder(model)
    returned = recorder.watch(run)
    if recorder.is_incomplete():  # layers were made while it was traced: now they are watched from the start
        recorder = Recorder(model)
        returned = recorder.watch(run)
    _check_unread(recorder, returned)
    return returned, _terms(recorder, batch)


def _check_recorded(recorder: Recorder) -> None:
    """Raises UserError if something was added whose value is lost, hidden or kept too often."""
    if recorder.early:
        raise UserError(
            f"layer '{recorder.path(recorder.early[0])}' adds a value to the loss in build, which is lost after the"
            " first call. Give add_loss a function there, or add the value in call."
        )
    if recorder.hidden:
        raise UserError(
            f"layer '{recorder.path(recorder.hidden[0])}' adds a loss inside a tf.function, tf.cond or tf.while_loop,"
            " where it cannot be counted. Call the layer outside of it, or return the value and make it a term of"
            " make_loss."
        )
    if recorder.repeated:
        raise UserError(
            f"layer '{recorder.path(recorder.repeated[0])}' gives a function to add_loss in its call, and Keras keeps"
            " one more each time. Give the function once, in build, or the value itself."
        )


def _terms(recorder: Recorder, batch: Mapping[str, tf.Tensor]) -> dict[str, Term]:
    """Returns the terms of what was added; a kind of which nothing was added has no term."""
    _check_recorded(recorder)
    sums: dict[str, list[tf.Tensor]] = {}
    regularizers = [regularizer() for _, layer in recorder.layers for regularizer in compat.callable_losses(layer)]
    sums[PENALTY] = [_checked(value) for value in regularizers if value is not None]
    if not recorder.added:
        return _summed(sums, {})
    rows = _Rows(batch)
    for added in recorder.added:
        _checked(added.value)
        name, value = rows.of_output(recorder, added) if added.regularizer else rows.of_loss(recorder, added)
        sums.setdefault(name, []).append(value)
    return _summed(sums, rows.weights)


def _summed(sums: Mapping[str, list[tf.Tensor]], weights: Mapping[str, tf.Tensor]) -> dict[str, Term]:
    terms = {}
    for name, values in sums.items():
        if values:
            total = sum_of(values)
            weight = weights.get(name)
            terms[name] = Term(total, tf.ones([], total.dtype) if weight is None else tf.cast(weight, total.dtype))
    return terms


def _check_unread(recorder: Recorder, returned: Any) -> None:
    """Raises UserError if a term has model.losses in it, which would then count twice."""
    if not recorder.read or not isinstance(returned, tuple) or not isinstance(returned[0], Mapping):
        return
    marks = {mark.op for mark in recorder.read}
    for name, term in returned[0].items():
        if isinstance(term, Term) and tf.is_symbolic_tensor(term.sum) and ancestors(term.sum) & marks:
            raise UserError(
                f"term '{name}' of the loss has model.losses in it, which are counted already, as '{PENALTY}'. Leave"
                " them out of make_loss."
            )


def _checked(value: tf.Tensor) -> tf.Tensor:
    if value.dtype not in _FULL:
        raise UserError(
            f"a layer adds a loss in {value.dtype.name}: sums need float32 at least. Give the layer"
            " dtype='float32', or make the loss a term of make_loss."
        )
    return value


class _Rows:
    """The rows of a batch, and sums over them.

    Attributes:
      weights: {term: its weight}, functions of the batch alone.
    """

    def __init__(self, batch: Mapping[str, tf.Tensor]) -> None:
        weight = batch["weight"] if "weight" in batch else tf.ones(tf.shape(next(iter(batch.values())))[:1])
        if weight.shape.rank != 1:
            raise UserError(
                f"the batch's weight has shape {weight.shape}, but a layer adds a loss, which needs one weight for each"
                " example: [batch]. Keep weights of parts of an example in another field."
            )
        self._weight, self.count = weight, weight.shape[0]
        self._is_real, self._is_even = weight > 0, tf.reduce_all(tf.equal(weight, 1))
        count = tf.reduce_sum(tf.cast(self._is_real, tf.float64 if weight.dtype == tf.float64 else tf.float32))
        self.weights = {EXAMPLES: tf.reduce_sum(weight), ROWS: count, SCALARS: count}

    def of_loss(self, recorder: Recorder, added: Added) -> tuple[str, tf.Tensor]:
        """Returns (term, sum) of what was given to add_loss."""
        value = added.value
        if value.shape.rank == 0:
            return SCALARS, self._even(added, value)
        size = value.shape[0] if value.shape.rank else None
        is_flat = bool(value.shape.rank) and all(width == 1 for width in value.shape[1:])
        if is_flat and self._is_of_batch(size):
            value = tf.ensure_shape(tf.reshape(value, [-1]), [self.count])
            # tf.where, not a product: the values of padding may be infinite.
            value = tf.where(self._is_real, value, tf.zeros_like(value)) * tf.cast(self._weight, value.dtype)
            return EXAMPLES, tf.reduce_sum(value)
        if is_flat and self.count and size % self.count == 0:  # several rows an example, in whichever order
            return SCALARS, self._even(added, tf.reduce_mean(value))
        raise UserError(
            f"layer '{recorder.path(added.layer)}' adds a loss of shape {value.shape} for a batch of {self.count}. Add"
            " a value for each example, [batch], or a scalar, which is the mean over the rows of the call."
        )

    def of_output(self, recorder: Recorder, added: Added) -> tuple[str, tf.Tensor]:
        """Returns (term, sum) of an activity regulariser over the rows of weight > 0, as if there were no others."""
        output, regularizer = added.value, added.regularizer
        assert regularizer is not None
        if not isinstance(output, tf.Tensor) or not output.shape.rank:
            raise UserError(
                f"layer '{recorder.path(added.layer)}' has an activity regulariser, but an output of"
                f" {type(output).__name__} {output.shape}, which has no rows. Make it a term of make_loss."
            )
        is_by_row = _is_by_row(added.layer, regularizer, output)
        if is_by_row and self._is_of_batch(output.shape[0]):
            output = tf.ensure_shape(output, [self.count, *output.shape[1:]])
            is_real = tf.reshape(self._is_real, [-1, *[1] * (output.shape.rank - 1)])
            value = _scalar(regularizer(tf.where(is_real, output, tf.zeros_like(output))))
            if not isinstance(regularizer, _KNOWN):
                empty = tf.reduce_sum(tf.cast(~self._is_real, value.dtype))
                value -= empty * _scalar(regularizer(tf.zeros_like(output[:1])))
            return ROWS, value
        if not is_by_row:
            added.layer.__dict__[COUPLED] = True
        value = _scalar(regularizer(output))
        return ROWS, self._even(added, value / tf.cast(tf.shape(output)[0], value.dtype))

    def _is_of_batch(self, size: int | None) -> bool:
        return size is None or self.count is None or size == self.count

    def _even(self, added: Added, mean: tf.Tensor) -> tf.Tensor:
        """Returns a mean over all rows as a sum over rows; NaN if a row has another weight than 1."""
        added.layer.__dict__[UNEVEN] = True
        total = mean * tf.cast(self.weights[SCALARS], mean.dtype)
        return tf.where(self._is_even, total, tf.constant(float("nan"), total.dtype))


def _scalar(value: Any) -> tf.Tensor:
    return tf.reduce_sum(tf.convert_to_tensor(value))


def _is_by_row(layer: Any, regularizer: Callable[[tf.Tensor], Any], output: tf.Tensor) -> bool:
    """Returns whether a regulariser of several rows is the sum of those of each; tried out once, on random rows."""
    if isinstance(regularizer, _KNOWN):
        return True
    known = layer.__dict__.setdefault(_IS_BY_ROW, {})
    key = (id(regularizer), output.dtype.name, tuple(output.shape[1:]))
    if key not in known:
        with tf.init_scope():
            known[key] = _adds_up(regularizer, output.dtype, [3 if size is None else size for size in output.shape[1:]])
    return known[key]


def _adds_up(regularizer: Callable[[tf.Tensor], Any], dtype: tf.DType, shape: list[int]) -> bool:
    rows = tf.cast(tf.random.stateless_normal([4, *shape], seed=[4, 2], dtype=tf.float64), dtype)
    try:
        whole = float(_scalar(regularizer(rows)))
        single = [float(_scalar(regularizer(rows[i : i + 1]))) for i in range(4)]
    except Exception:  # whatever stands in the way of trying it
        return False
    return abs(whole - sum(single)) <= _CLOSE * sum(map(abs, single))
