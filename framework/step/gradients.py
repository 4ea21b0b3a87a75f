"""From a loss to gradients of the whole global batch: the only training tape.

    def one_pass(batch):                       # of a micro-batch, traced
        return forward(loss, model, batch, training=True)

    found = gradients_of(one_pass, batch, variables, metrics, dtype=tf.float32, micro_batches=4)
    found.gradients['dense/kernel'], total(found.terms)

`variables` are named, so that an error can say which parameter the loss leaves out.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import tensorflow as tf

from framework import rng
from framework.compile import is_in_xla
from framework.distribute.replicas import Replicas
from framework.errors import UserError
from framework.losses import BatchDependent, Term
from framework.metrics import Metric
from framework.step.normalizers import Pass, term_normalizers
from framework.step.penalties import is_penalty, sum_of, with_penalties
from framework.trace import guards

Terms = Mapping[str, Term]
Batch = Mapping[str, tf.Tensor]
# loss(model, batch, training) -> (terms, outputs); outputs feed metrics
Loss = Callable[[Any, Batch, bool], tuple[Terms, Mapping[str, tf.Tensor]]]

_FULL = (tf.float32, tf.float64)


class Gradients(NamedTuple):
    """What one pass over the global batch gives.

    Attributes:
      terms: {name: Term}, sums and weights of the whole batch.
      metrics: {name: state}; zeros if the pass has no outputs.
      gradients: {path: tensor}, of the total of the terms, not scaled; dense unless sparse ones were asked for.
      violations: scalar; guards that do not hold, see `guards.watched`. With any, the numbers mean nothing.
    """

    terms: dict[str, Term]
    metrics: dict[str, tf.Tensor]
    gradients: dict[str, tf.Tensor]
    violations: Any = 0.0


def forward(loss: Loss, model: Any, batch: Batch, training: bool) -> tuple[Terms, Mapping[str, Any]]:
    """The loss's terms and outputs, with the penalties of the model as further terms."""
    return counted(lambda part: loss(model, part, training), model)(batch)


def counted(one_pass: Pass, model: Any) -> Pass:
    """A pass that checks what `one_pass` returns and adds the penalties of layers of the model to its terms.

    Raises (when called):
      UserError: something else was returned than (terms, outputs), a term or penalty is not a scalar in at least
        float32, a term has the name of the penalties, or a penalty cannot be counted (`penalties.with_penalties`).
    """

    def run(batch: Batch) -> tuple[Terms, Mapping[str, Any]]:
        returned, found = with_penalties(lambda: one_pass(batch), model, batch)
        terms, outputs = _checked(returned)
        return {**terms, **found}, outputs

    return run


def _checked(returned: Any) -> tuple[Terms, Mapping[str, Any]]:
    """(terms, outputs) as a loss returned them."""
    if not _is_terms_and_outputs(returned):
        raise UserError(
            f"the loss returned {_shown(returned)}. It must return ({{name: Term(sum, weight)}}, {{name: tensor}}):"
            " its terms, and the outputs that metrics read."
        )
    terms, outputs = returned
    for name, term in terms.items():
        if term.sum.dtype not in _FULL:
            raise UserError(
                f"term '{name}' of the loss is {term.sum.dtype.name}: sums need float32 at least. Cast logits with"
                " tf.cast(logits, tf.float32), or give the last layer dtype='float32'."
            )
        shapes = [tf.convert_to_tensor(part).shape for part in term]
        if any(shape.rank for shape in shapes):
            raise UserError(
                f"term '{name}' of the loss has a sum and a weight of shapes {shapes[0]} and {shapes[1]}. Both are"
                " scalars, e.g. Term(tf.reduce_sum(values * weight), tf.reduce_sum(weight))."
            )
        if is_penalty(name):
            raise UserError(
                f"the loss returned a term '{name}', which is what model.losses are called. Give it another name."
            )
    return terms, outputs


def _is_terms_and_outputs(returned: Any) -> bool:
    if not isinstance(returned, tuple) or len(returned) != 2:
        return False
    terms, outputs = returned
    return (
        isinstance(terms, Mapping)
        and bool(terms)
        and all(isinstance(term, Term) for term in terms.values())
        and isinstance(outputs, Mapping)
    )


def _shown(returned: Any) -> str:
    """'(dict of SymbolicTensor, dict)': what kind of thing a loss returned."""
    if isinstance(returned, tuple) and not isinstance(returned, Term):
        return f"({', '.join(_shown(part) for part in returned)})"
    if isinstance(returned, Mapping):
        kinds = sorted({type(value).__name__ for value in returned.values()})
        return f"dict of {' and '.join(kinds)}" if kinds else "an empty dict"
    return type(returned).__name__


def refuse_coupled(terms: Mapping[str, Any], micro_batches: int, replicas: int) -> None:
    """Raises UserError if a term needs the whole batch, and there are several micro-batches or replicas."""
    for name, term in terms.items():
        if isinstance(term, BatchDependent) and replicas > 1:
            raise UserError(
                f"term '{name}' compares the examples of a batch with one another, and each of {replicas} replicas sees"
                " but its own. Gather the features with losses.all_gather and set needs_collectives=True on the loss,"
                " or use --config.runtime.strategy=one_device."
            )
        if isinstance(term, BatchDependent) and micro_batches > 1:
            raise UserError(
                f"train.micro_batches={micro_batches}: term '{name}' compares the examples of a batch with one another,"
                " and micro-batches would hide most of them. Use --config.train.micro_batches=1."
            )


def total(terms: Terms, weights: Mapping[str, tf.Tensor] | None = None) -> tf.Tensor:
    """Sum of the terms, each divided by its weight, scalar; a term of zero weight contributes 0.

    Args:
      terms: of the whole batch, or of a part of it.
      weights: of the whole batch where the terms are of a part.
    """
    weights = weights or {name: term.weight for name, term in terms.items()}
    return sum_of(
        [tf.math.divide_no_nan(term.sum, tf.cast(weights[name], term.sum.dtype)) for name, term in terms.items()]
    )


def gradients_of(
    one_pass: Pass,
    batch: Batch,
    variables: Mapping[str, tf.Variable],
    metrics: Mapping[str, Metric],
    *,
    dtype: tf.DType,
    micro_batches: int = 1,
    scale: tf.Tensor | None = None,
    replicas: Replicas | None = None,
    mode: str = "graph",
    has_collectives: bool = False,
    keep_sparse: bool = False,
    nan_tells: bool = False,
) -> Gradients:
    """Differentiates the total of a pass's terms over a batch, in one piece or by replicas and micro-batches.

    Each holds consecutive examples and draws what these would draw in one piece. Each of its terms is divided by the
    weight of the whole batch, so ragged and empty ones count for what they hold.

    Args:
      one_pass: (part of a) batch -> (terms, outputs).
      batch: {name: [batch, ...]}; of several replicas, what `replicas.run` returned.
      variables: {path: variable}.
      metrics: computed from the outputs, if there are any.
      dtype: of sums and metric states.
      micro_batches: divides what each replica holds.
      scale: loss scale, scalar; the gradients are divided by it again.
      replicas: None is one device.
      mode: how each of several replicas is compiled.
      has_collectives: the pass itself communicates between replicas, so it can be neither compiled nor looped over.
      keep_sparse: of one micro-batch on one replica, gradients of what is looked up stay tf.IndexedSlices.
      nan_tells: whether a label that makes the loss NaN need not be counted among the violations.

    Raises:
      UserError: a variable that the terms do not depend on, or a term that micro-batches cannot compute.
    """
    replicas, start = replicas or Replicas(), rng.save_counters()
    has_collectives = has_collectives and replicas.count > 1  # alone there is nobody to communicate with
    mode = "graph" if has_collectives else mode
    weights: Mapping[str, tf.Tensor] | None = None
    if micro_batches * replicas.count > 1 and not has_collectives:

        def checked(part: Batch) -> tuple[Terms, Mapping[str, Any]]:
            terms, outputs = one_pass(part)
            refuse_coupled(terms, micro_batches, replicas.count)
            return terms, outputs

        weights = replicas.all_reduce_sum(
            lambda index, part: _weights_of(checked, _parts(part, index, micro_batches, start)), batch
        )

    def local(index: int, part: Batch) -> Gradients:
        parts = _parts(part, index, micro_batches, start)
        if micro_batches > 1:
            found = _accumulate(one_pass, parts, weights or {}, variables, metrics, scale, dtype, nan_tells)
        else:
            here = _all_reduced if has_collectives else weights
            found = parts.at(
                0,
                lambda part: _differentiate(
                    one_pass, part, here, variables, metrics, scale, dtype, keep_sparse, nan_tells
                ),
            )
        if replicas.comm_dtype is None:
            return found
        return found._replace(gradients={p: tf.cast(g, replicas.comm_dtype) for p, g in found.gradients.items()})

    found = replicas.all_reduce_sum(local, batch, mode=mode)
    gradients = {path: tf.cast(gradient, variables[path].dtype) for path, gradient in found.gradients.items()}
    if scale is not None:
        gradients = {path: gradient / tf.cast(scale, gradient.dtype) for path, gradient in gradients.items()}
    return found._replace(gradients=gradients)


def _all_reduced(weights: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
    """The sums over replicas, inside of one."""
    return tf.distribute.get_replica_context().all_reduce("SUM", weights)


@dataclasses.dataclass(frozen=True)
class _Parts:
    """The micro-batches of what one replica holds.

    Attributes:
      batch: {name: [micro_batches, size, ...]}; without the first dimension if there is but one.
      first: place of the first example in the global batch.
      start: where each numbers its draws from, see `rng.save_counters`.
    """

    batch: Batch
    count: int
    size: int
    first: int
    start: Counter[str]

    def at(self, index: Any, fn: Callable[[Batch], Any]) -> Any:
        """fn(micro-batch), its draws numbered and keyed as those of a pass over the whole batch."""
        with rng.replay_from(self.start), rng.at_example(self.first + index * self.size):
            if self.count == 1:
                return fn(self.batch)
            return fn({name: tf.gather(part, index) for name, part in self.batch.items()})


def _parts(batch: Batch, index: int, micro_batches: int, start: Counter[str]) -> _Parts:
    """Of replica `index`."""
    here = examples_of(batch)
    size = here // micro_batches
    if micro_batches > 1:
        batch = {name: tf.reshape(value, [micro_batches, size, *value.shape[1:]]) for name, value in batch.items()}
    return _Parts(batch, micro_batches, size, index * here, start)


def examples_of(nest: Any) -> int:
    """How many examples a batch, or another nest of [examples, ...], has.

    Raises:
      UserError: no tensor of it has a first dimension that is known before it is computed.
    """
    has_weight = isinstance(nest, Mapping) and "weight" in nest
    tensors = [nest["weight"]] if has_weight else [tensor for tensor in tf.nest.flatten(nest) if tensor.shape.rank]
    sizes = [int(tensor.shape[0]) for tensor in tensors if tensor.shape[0] is not None]
    if not sizes:
        raise UserError(
            "a step was given a batch in which no tensor has a known number of examples: hand on its 'weight', or set"
            " the shape of one, e.g. tf.ensure_shape(x, [examples, None])."
        )
    return sizes[0]


def _differentiate(
    one_pass: Pass,
    batch: Batch,
    weights: Mapping[str, tf.Tensor] | Callable[[Mapping[str, tf.Tensor]], Mapping[str, tf.Tensor]] | None,
    variables: Mapping[str, tf.Variable],
    metrics: Mapping[str, Metric],
    scale: tf.Tensor | None,
    dtype: tf.DType,
    keep_sparse: bool = False,
    nan_tells: bool = False,
) -> Gradients:
    """One micro-batch; `weights` are those of the whole batch, or make them of its own; None if this is all of it."""
    with tf.GradientTape(watch_accessed_variables=False) as tape:
        tape.watch(list(variables.values()))
        with guards.watched(batch) as watch:
            terms, outputs = one_pass(batch)
        whole = weights({name: term.weight for name, term in terms.items()}) if callable(weights) else weights
        value = total(terms, whole)
        value = value if scale is None else value * tf.cast(scale, value.dtype)
    gradients = tape.gradient(value, dict(variables))
    idle = [path for path, gradient in gradients.items() if gradient is None]
    if idle:
        raise UserError(
            f"the loss does not depend on {', '.join(idle)}, so it would never train."
            " Use it in make_loss, or set trainable=False on its layer."
        )
    empty = {name: tf.zeros([len(metric.empty())], dtype) for name, metric in metrics.items()}
    with guards.watched({**batch, **outputs}) as watch_metrics:
        states = {name: metric.update(outputs, batch) for name, metric in metrics.items()} if outputs else empty
    return Gradients(
        {name: Term(tf.cast(term.sum, dtype), tf.cast(term.weight, dtype)) for name, term in terms.items()},
        {name: tf.cast(state, dtype) for name, state in states.items()},
        {path: g if keep_sparse else _whole(g, variables[path].shape) for path, g in gradients.items()},
        watch.violations(dtype, nan_too=not nan_tells) + watch_metrics.violations(dtype),
    )


def _whole(gradient: tf.Tensor | tf.IndexedSlices, shape: tf.TensorShape) -> tf.Tensor:
    """The gradient of a whole table of which rows were looked up; any other is whole already.

    Args:
      shape: of the table, which a gradient that comes out of a function does not tell.
    """
    if not isinstance(gradient, tf.IndexedSlices) or not is_in_xla():
        whole = tf.convert_to_tensor(gradient)
        return whole if whole.shape.is_fully_defined() else tf.ensure_shape(whole, shape)
    # XLA's CPU compiler lets one thread write a constant 0, and all of them what is computed, as here from an index.
    indices = tf.reshape(gradient.indices, [-1])
    is_never = tf.equal(tf.bitwise.bitwise_and(indices[0], 1), 2)
    dtype = gradient.values.dtype
    start = tf.where(is_never, tf.ones(shape, dtype), tf.zeros(shape, dtype))
    rows = tf.reshape(gradient.values, [-1, *shape[1:]])
    return tf.tensor_scatter_nd_add(start, indices[:, tf.newaxis], rows)


def _weights_of(one_pass: Pass, parts: _Parts) -> dict[str, tf.Tensor]:
    """{term: its weight over all micro-batches}, without a forward pass."""
    names: list[str] = []

    def named(index: tf.Tensor) -> Any:
        terms, outputs = parts.at(index, one_pass)
        names.extend(name for name in terms if not is_penalty(name))
        return terms, outputs

    weights_of = term_normalizers(named, tf.TensorSpec([], tf.int32), of_a_part=names)
    return _summed(1, parts.count, weights_of(tf.constant(0)), weights_of)


def _accumulate(
    one_pass: Pass,
    parts: _Parts,
    weights: Mapping[str, tf.Tensor],
    variables: Mapping[str, tf.Variable],
    metrics: Mapping[str, Metric],
    scale: tf.Tensor | None,
    dtype: tf.DType,
    nan_tells: bool,
) -> Gradients:
    """All micro-batches, one after the other in a compiled loop that holds the activations of one."""
    nothing = Gradients(
        {name: Term(tf.zeros([], dtype), tf.zeros([], dtype)) for name in weights},
        {name: tf.zeros([len(metric.empty())], dtype) for name, metric in metrics.items()},
        {path: tf.zeros(variable.shape, variable.dtype) for path, variable in variables.items()},
        tf.zeros([], dtype),
    )

    def one(part: Batch) -> Gradients:
        return _differentiate(one_pass, part, weights, variables, metrics, scale, dtype, nan_tells=nan_tells)

    return _summed(0, parts.count, nothing, lambda index: parts.at(index, one))


def _summed(first: int, count: int, start: Any, fn: Callable[[tf.Tensor], Any]) -> Any:
    """start + fn(first) + … + fn(count - 1), for nests of tensors."""
    if first == count:
        return start

    def body(index: tf.Tensor, sums: Any) -> tuple[tf.Tensor, Any]:
        return index + 1, tf.nest.map_structure(tf.add, sums, fn(index))

    return tf.while_loop(lambda index, sums: index < count, body, (tf.constant(first), start), parallel_iterations=1)[1]
