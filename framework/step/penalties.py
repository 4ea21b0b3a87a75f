"""What layers add to a loss: weight regularisers once an update, and what they add in each call of a pass.

    returned, penalties = with_penalties(lambda part: loss(model, part, True), model, batch)
    penalties      # {'penalty': Term(of the weights, 1), 'penalty/rows': Term(of activity regularisers, rows), …}

Keras keeps what layers add until their model is called again. Here each call of a pass is written down, with the layer
that made it, and becomes part of a term whose weight is right for micro-batches, replicas and padded batches.
"""

import dataclasses
import functools
import threading
import types
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat, paths
from framework.errors import UserError
from framework.losses import Term
from framework.step.normalizers import ancestors

# Terms, of which users see the sum of the means as one number, `PENALTY`.
PENALTY = "penalty"  # of the weights: weight 1
EXAMPLES = "penalty/examples"  # [batch] tensors given to add_loss: weighted by example
ROWS = "penalty/rows"  # activity regularisers: the mean over rows of weight > 0
SCALARS = "penalty/scalars"  # scalars given to add_loss: the mean over rows, all of which must have weight 1

_FULL = (tf.float32, tf.float64)
_HOOKED = "_add_loss_and_tell"  # attributes of a layer, set past Keras, which would track them
_UNEVEN, _COUPLED, _IS_BY_ROW = "_penalty_is_uneven", "_penalty_is_coupled", "_is_by_row"
_KNOWN = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)  # sums over elements, and of zeros 0
_CLOSE = 1e-3

_local = threading.local()  # replicas trace in threads of their own


def is_penalty(term: str) -> bool:
    """Whether a term is one of those that layers add."""
    return term.partition("/")[0] == PENALTY


def shown(terms: Iterable[str]) -> tuple[str, ...]:
    """Names of terms as users see them: all penalties are one."""
    return tuple(dict.fromkeys(PENALTY if is_penalty(name) else name for name in terms))


def of_model(terms: Mapping[str, Term], name: str) -> dict[str, Term]:
    """Terms of a model, penalties below its name if it is one of several."""
    rename = {term: f"{PENALTY}/{name}{term.removeprefix(PENALTY)}" for term in terms if is_penalty(term)}
    return dict(terms) if name == "model" else {rename.get(term, term): value for term, value in terms.items()}


def with_penalties(run: Callable[[], Any], model: Any, batch: Mapping[str, tf.Tensor]) -> tuple[Any, dict[str, Term]]:
    """What `run` returns, and what layers of a model add to its loss while it runs.

    Args:
      run: calls the model, any number of times.
      model: a model or a dict of them; layers of others are left alone.
      batch: what `run` is given: {name: [batch, ...]}. Without 'weight', each row has weight 1.

    Raises:
      UserError: something was added that has no right weight, or cannot be seen.
    """
    found = _Recorder(model)
    returned = found.watch(run)
    if found.is_incomplete():  # layers were made while it was traced: now they are watched from the start
        found = _Recorder(model)
        returned = found.watch(run)
    _refuse_read(found, returned)
    return returned, _terms(found, batch)


def uneven(model: Any) -> list[str]:
    """Paths of layers whose penalties, as traced so far, are right only where all rows of a batch have weight 1."""
    return [path for path, layer in _layers(model) if layer.__dict__.get(_UNEVEN)]


def coupled(model: Any) -> list[str]:
    """Paths of layers whose activity regulariser compares rows with one another."""
    return [path for path, layer in _layers(model) if layer.__dict__.get(_COUPLED)]


def refuse_parts(model: Any, micro_batches: int, replicas: int) -> None:
    """Raises UserError if an activity regulariser compares rows, and each part of a batch would see but its own."""
    if micro_batches * replicas > 1 and (found := coupled(model)):
        cut = f"train.micro_batches={micro_batches}" if micro_batches > 1 else f"{replicas} replicas"
        raise UserError(
            f"{cut}: the activity regulariser of layer '{found[0]}' is no sum over rows, so that of a batch is not that"
            " of its parts. Use one that is, or a term losses.BatchDependent of make_loss, or"
            " --config.train.micro_batches=1 on one device."
        )


def refuse_weights(model: Any, weight: tf.Tensor, where: str) -> None:
    """Raises UserError if rows of a batch do not all have weight 1 and a penalty is right for such rows alone.

    Args:
      weight: [rows], eager.
      where: whose batch it is, as the message names it.
    """
    if bool(tf.reduce_all(tf.equal(weight, 1))) or not (found := uneven(model)):
        return
    raise UserError(f"{where} has rows that are padded or weighted, but {_advice(found[0])}")


def _advice(path: str) -> str:
    return (
        f"layer '{path}' adds a loss that is one number for all rows of a call. Write self.add_loss(per_example), of"
        " shape [batch], or make it a term of make_loss, or, where only padding is in the way, use"
        " --config.data.remainder=carry."
    )


def weight_problem(model: Any, weight: tf.Tensor) -> str:
    """Why the scalars of a batch are NaN, as a sentence; '' if weights are not the reason."""
    found = uneven(model)
    is_even = bool(tf.reduce_all(tf.equal(weight, 1)))
    return "" if is_even or not found else f"the batch has rows that are padded or weighted, but {_advice(found[0])}"


def unlike(whole: float, halves: Sequence[float], close: float) -> str:
    """A sentence if what layers add is a sum over rows instead of a mean; '' for a mean, and for what compares rows.

    Args:
      whole, halves: means of one of the terms above over a batch and over its halves.
      close: relative bound.
    """
    if abs(whole - sum(halves)) > close * sum(map(abs, halves)):
        return ""
    return (
        f"what layers add to the loss is {whole:.6g} over a batch and {sum(halves) / len(halves):.6g} over its two"
        " halves: it grows with the batch, but counts as a mean over its rows. Write self.add_loss(per_example), of"
        " shape [batch], or add a mean."
    )


def sum_of(values: Sequence[tf.Tensor]) -> tf.Tensor:
    """Sum of scalars, in float64 if one of them is (layers may differ in dtype)."""
    dtype = tf.float64 if any(value.dtype == tf.float64 for value in values) else tf.float32
    # Not tf.add_n, whose order hangs on what memory is free when it is called.
    return tf.reduce_sum(tf.stack([tf.cast(value, dtype) for value in values]))


@dataclasses.dataclass(frozen=True)
class _Added:
    """One tensor that a layer added, or one output that its `regularizer` is to be applied to."""

    layer: Any
    value: tf.Tensor
    regularizer: Callable[[tf.Tensor], Any] | None = None


class _Recorder:
    """Writes down what the layers of a model add while a pass runs."""

    def __init__(self, model: Any) -> None:
        self.layers = _layers(model)
        self.added: list[_Added] = []
        self.hidden: list[Any] = []
        self.repeated: list[Any] = []
        self.early: list[Any] = []
        self.read: list[tf.Tensor] = []
        self._model = model
        self._known = {id(layer) for _, layer in self.layers}
        self._graph = _graph()
        for _, layer in self.layers:
            _hook(layer)

    def watch(self, run: Callable[[], Any]) -> Any:
        outer, _local.recorder = current(), self
        lists = [compat.callable_losses(layer) for _, layer in self.layers]
        for losses in lists:
            losses.append(self._mark)
        try:
            returned = run()
        finally:
            _local.recorder = outer
            for losses in lists:
                losses.remove(self._mark)
        self.layers = _layers(self._model)  # a first call may make some
        return returned

    def _mark(self) -> tf.Tensor | None:
        """What Keras finds among the losses of a layer while a pass runs: a zero by which it is seen where they go."""
        if current() is not self or tf.executing_eagerly():
            return None
        self.read.append(tf.zeros([], keras.backend.floatx()))
        return self.read[-1]

    def is_incomplete(self) -> bool:
        """Whether a layer that nobody watched has added something."""
        new = [layer for _, layer in self.layers if id(layer) not in self._known]
        return any(
            compat.call_losses(layer) or compat.symbolic_losses(layer) or layer.activity_regularizer for layer in new
        )

    def path(self, layer: Any) -> str:
        return next(path for path, other in self.layers if other is layer)

    def take(self, added: _Added) -> bool:
        """Whether it is of this pass; what is not goes where Keras keeps it."""
        if id(added.layer) not in self._known:
            return False
        graph = _graph()
        if graph is self._graph:
            self.added.append(added)
            return True
        while graph is not None and graph is not self._graph:
            if compat.is_scratch(graph):  # Keras lays a network out, and uses nothing of that
                return False
            graph = getattr(graph, "outer_graph", None)
        self.hidden.append(added.layer)
        return True


def current() -> Any:
    """What writes down in this thread; None outside of a pass."""
    return getattr(_local, "recorder", None)


def _graph() -> Any:
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def _layers(model: Any) -> list[tuple[str, Any]]:
    """(path, layer) of a model or a dict of them; of a Keras model in Keras' order, which decides that of sums."""
    found = {id(part): (path, part) for path, part in paths.objects(model).items() if _is_layer(part)}
    ordered: dict[int, tuple[str, Any]] = {}
    for part in filter(_is_layer, paths.models(model).values()):
        for layer in compat.flatten_layers(part):
            ordered[id(layer)] = found.get(id(layer), (layer.name, layer))
    return list((ordered | found).values())


def _is_layer(part: Any) -> bool:
    return isinstance(part, keras.layers.Layer)


def _hook(layer: Any) -> None:
    """Makes a layer tell the pass under way what it adds; for good, and outside of passes it does as before."""
    if _HOOKED not in layer.__dict__:
        # Past Keras' __setattr__. Methods, so that a deep copy of the layer has its own.
        layer.__dict__[_HOOKED] = True
        layer.__dict__["add_loss"] = types.MethodType(_add_loss, layer)
        compat.replace_activity(layer, _handle_activity)


def _add_loss(layer: Any, losses: Any, **kwargs: Any) -> None:
    recorder = current()
    if recorder is not None:
        for loss in tf.nest.flatten(losses):
            if not layer.built and loss is not None and not callable(loss):
                recorder.early.append(layer)
            elif tf.is_tensor(loss):
                recorder.take(_Added(layer, loss))
            elif isinstance(loss, int | float | np.ndarray | np.generic):
                recorder.take(_Added(layer, tf.convert_to_tensor(loss, keras.backend.floatx())))
            elif callable(loss) and layer.built and not isinstance(loss, functools.partial):  # which add_weight gives
                recorder.repeated.append(layer)
    type(layer).add_loss(layer, losses, **kwargs)


def _handle_activity(layer: Any, inputs: Any, outputs: Any) -> None:
    recorder, regularizer = current(), layer.activity_regularizer
    given = tf.nest.flatten(outputs)
    if recorder is None or not all(recorder.take(_Added(layer, output, regularizer)) for output in given):
        compat.add_activity(layer, inputs, outputs)


def _terms(found: _Recorder, batch: Mapping[str, tf.Tensor]) -> dict[str, Term]:
    """The terms of what was added; none of a kind of which there is nothing."""
    if found.early:
        raise UserError(
            f"layer '{found.path(found.early[0])}' adds a value to the loss in build, which is lost after the first"
            " call. Give add_loss a function there, or add the value in call."
        )
    if found.hidden:
        raise UserError(
            f"layer '{found.path(found.hidden[0])}' adds a loss inside a tf.function, tf.cond or tf.while_loop, where"
            " it cannot be counted. Call the layer outside of it, or return the value and make it a term of make_loss."
        )
    if found.repeated:
        raise UserError(
            f"layer '{found.path(found.repeated[0])}' gives a function to add_loss in its call, and Keras keeps one"
            " more each time. Give the function once, in build, or the value itself."
        )
    sums: dict[str, list[tf.Tensor]] = {}
    regularizers = [regularizer() for _, layer in found.layers for regularizer in compat.callable_losses(layer)]
    sums[PENALTY] = [_checked(value) for value in regularizers if value is not None]
    if not found.added:
        return _summed(sums, {})
    rows = _Rows(batch)
    for added in found.added:
        _checked(added.value)
        name, value = rows.of_output(found, added) if added.regularizer else rows.of_loss(found, added)
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


def _refuse_read(found: _Recorder, returned: Any) -> None:
    """Raises UserError if a term has model.losses in it, which would then count twice."""
    if not found.read or not isinstance(returned, tuple) or not isinstance(returned[0], Mapping):
        return
    marks = {mark.op for mark in found.read}
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

    def of_loss(self, found: _Recorder, added: _Added) -> tuple[str, tf.Tensor]:
        """(term, sum) of what was given to add_loss."""
        value = added.value
        if value.shape.rank == 0:
            return SCALARS, self._even(added, value)
        size = value.shape[0] if value.shape.rank else None
        is_flat = bool(value.shape.rank) and all(width == 1 for width in value.shape[1:])
        if is_flat and self._is_of_batch(size):
            value = tf.ensure_shape(tf.reshape(value, [-1]), [self.count])
            # Where, not times: what padding has may be infinite.
            value = tf.where(self._is_real, value, tf.zeros_like(value)) * tf.cast(self._weight, value.dtype)
            return EXAMPLES, tf.reduce_sum(value)
        if is_flat and self.count and size % self.count == 0:  # several rows an example, in whichever order
            return SCALARS, self._even(added, tf.reduce_mean(value))
        raise UserError(
            f"layer '{found.path(added.layer)}' adds a loss of shape {value.shape} for a batch of {self.count}. Add a"
            " value for each example, [batch], or a scalar, which is the mean over the rows of the call."
        )

    def of_output(self, found: _Recorder, added: _Added) -> tuple[str, tf.Tensor]:
        """(term, sum) of an activity regulariser: of rows of weight > 0, as if there were no others."""
        output, regularizer = added.value, added.regularizer
        assert regularizer is not None
        if not isinstance(output, tf.Tensor) or not output.shape.rank:
            raise UserError(
                f"layer '{found.path(added.layer)}' has an activity regulariser, but an output of"
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
            added.layer.__dict__[_COUPLED] = True
        value = _scalar(regularizer(output))
        return ROWS, self._even(added, value / tf.cast(tf.shape(output)[0], value.dtype))

    def _is_of_batch(self, size: int | None) -> bool:
        return size is None or self.count is None or size == self.count

    def _even(self, added: _Added, mean: tf.Tensor) -> tf.Tensor:
        """The sum over rows of what is a mean over all of them; NaN where one has another weight than 1."""
        added.layer.__dict__[_UNEVEN] = True
        total = mean * tf.cast(self.weights[SCALARS], mean.dtype)
        return tf.where(self._is_even, total, tf.constant(float("nan"), total.dtype))


def _scalar(value: Any) -> tf.Tensor:
    return tf.reduce_sum(tf.convert_to_tensor(value))


def _is_by_row(layer: Any, regularizer: Callable[[tf.Tensor], Any], output: tf.Tensor) -> bool:
    """Whether a regulariser of several rows is the sum of those of each; tried out once, on random rows."""
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
        parts = [float(_scalar(regularizer(rows[i : i + 1]))) for i in range(4)]
    except Exception:  # whatever stands in the way of trying it
        return False
    return abs(whole - sum(parts)) <= _CLOSE * sum(map(abs, parts))
