"""Pruning by magnitude: after every update, weights outside of a mask are 0; now and then the masks are made again.

    pruner = Pruner(config.prune, pruned_variables(config.prune, trained), [average.averages])
    pruner.after_update(t, step)           # after update t = 1, 2, …
    pruner.sparsities()                    # {'dense/kernel': 0.8, …}

A mask keeps the k weights of largest magnitude of a variable, k = size * (1 - sparsity) rounded, and all that are equal
to the smallest of these. Sparsity rises by a cubic curve (Zhu and Gupta, 2017, "To prune, or not to prune"). Masks and
weights are those of `prune_low_magnitude` of tensorflow_model_optimization, which makes them before the forward pass of
a step and calls the pass after update t step t + 1; and at `end` a mask is made in any case.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict, FrozenConfigDict

from framework import compat, paths
from framework.config import flatten
from framework.config.keys import KEYS
from framework.config.keys.prune import pattern
from framework.errors import UserError
from framework.optim.due import if_due, nothing, rarely
from framework.optim.selection import matrices, selected

LOGGED = ("sparsity", "sparsity_overall")  # names in rows of the log
_ROUNDING = 1e-6  # halves are rounded up, in every compile mode: their last bits may differ
_SHARED = ("runtime.strategy", "train.micro_batches")
# {class: (what makes it, the keys of what it does not go with, what it does not do, what to do instead)}
_WRAPPERS = {
    "PruneLowMagnitude": (
        "prune_low_magnitude",
        (*_SHARED, "prune.sparsity"),
        "mask the weights after the last update",
        "Return the layers without it, and type e.g. --config.prune.sparsity=0.8.",
    ),
    "QuantizeWrapperV2": (
        "quantize_model",
        (*_SHARED, "quantize.name"),
        "",
        "Return the model without it, and type --config.quantize.name=int8.",
    ),
    "ClusterWeights": ("cluster_weights", ("cluster.name",), "", "Return the layers without it."),
}
_BITS = {tf.float32: tf.int32, tf.float64: tf.int64}


def pruned_variables(settings: ConfigDict, trained: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """Returns {path: variable} of the parameters that are pruned.

    Args:
      settings: `config.prune`.
      trained: {path: variable} of the parameters that are trained; frozen ones are never pruned.

    Raises:
      UserError: `include` or `exclude` matches nothing, nothing is left, or a variable cannot have the pattern.
    """
    legal = matrices(trained)
    pruned = {path: legal[path] for path in selected("prune", settings, legal, "parameters that can be pruned")}
    if not pruned:
        raise UserError(
            f"prune.{'sparsity' if settings.sparsity else 'schedule'}={settings.sparsity or settings.schedule}: no"
            " parameter is pruned. Those that can be are trained, of rank 2 or more"
            f" and no bias: {', '.join(legal) or 'none'}."
        )
    bad = [f"{path} {v.shape.as_list()}" for path, v in pruned.items() if v.shape.rank not in (2, 4)]
    if pattern(settings.pattern) and bad:
        raise UserError(
            f"prune.pattern='{settings.pattern}' is one of kernels [inputs, outputs] and [height, width, inputs,"
            f" outputs], not of {', '.join(bad)}. Leave these out by prune.exclude, or use --config.prune.pattern=any."
        )
    return pruned


def check_wrapped(model: Any, config: FrozenConfigDict) -> None:
    """Warns of layers in a wrapper of tensorflow_model_optimization, and refuses them where it does not work.

    The wrappers change masks and ranges in the forward pass, by calls between replicas; masks before an update, never
    after the last one.

    Raises:
      UserError: there are several replicas or micro-batches, or the run itself prunes, clusters or quantises as well.
    """
    flat = flatten(ConfigDict(config.to_dict()))
    for kind, (maker, keys, fault, instead) in _WRAPPERS.items():
        wrapped = [path for path, layer in paths.objects(model).items() if type(layer).__name__ == kind]
        if not wrapped:
            continue
        what = f"make_model wraps {', '.join(wrapped)} by {maker} of tensorflow_model_optimization"
        for key in keys:
            if flat[key] != KEYS[key].default:
                raise UserError(f"{what}, which does not work with {key}={flat[key]!r}. {instead}")
        if fault:
            logging.warning("%s, which does not %s. %s", what, fault, instead)


class Pruner(tf.Module):
    """Masks of the pruned variables, and when they are made again.

    Args:
      settings: `config.prune`, resolved.
      pruned: {path: variable}.
      followers: {path: variable} each, whose variables at the paths of `pruned` follow the weights, such as averages:
        they are masked whenever masks are made.
      have_moved: (updates, step) -> bool scalar; whether followers took over a part of weights that were not masked
        yet, as slow weights do: then they are masked too.

    Attributes:
      masks: {path: bool variable}; True where a weight is kept. The module tracks nothing else.
    """

    def __init__(
        self,
        settings: ConfigDict,
        pruned: Mapping[str, tf.Variable],
        followers: Sequence[Mapping[str, tf.Variable]] = (),
        have_moved: Callable[[tf.Tensor, tf.Tensor], tf.Tensor] | None = None,
    ) -> None:
        super().__init__("prune")
        self._keeps = settings.schedule == "keep"
        self._pattern = pattern(settings.pattern)
        self.sparsity = settings.sparsity
        self.initial = settings.initial if settings.schedule == "polynomial" else settings.sparsity
        self.begin: int = 0 if self._keeps else settings.begin
        self.end: int = 0 if self._keeps else settings.end
        self.every: int = 1 if self._keeps else settings.every
        # The model is saved as the model, not as part of its pruner.
        self._pruned = compat.untracked(self, dict(pruned))
        self._have_moved = have_moved
        self._followers = compat.untracked(self, [(path, one[path]) for one in followers for path in pruned])
        self.masks = {path: tf.Variable(tf.ones(v.shape, tf.bool), trainable=False) for path, v in pruned.items()}
        self.restart()

    def after_update(self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None) -> None:
        """Makes the masks if they are due, and masks the weights.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; steps counted before this one.
          applied: bool scalar; False leaves masks and weights as they are. None is as True.
        """
        updates = tf.cast(updates, tf.int64)
        is_due = self._is_due(updates)
        if applied is None:
            stage = tf.cast(updates >= self.begin, tf.int32) + tf.cast(is_due, tf.int32)
            tf.switch_case(stage, [nothing, self._keep, rarely(lambda: self._make(updates))])
        else:
            is_due &= applied
            self._mask_weights(is_due | ~applied)  # XLA does this in the pass that writes the new weights
            if_due(is_due, lambda: self._make(updates), is_masked=True)
        if self._have_moved is not None:
            moved = self._have_moved(updates, step)
            if_due(moved if applied is None else moved & applied, self._mask_followers, applied is not None)

    def mask_all(self) -> None:
        """Sets weights and followers outside of the masks to 0, such as after they were assigned."""
        self._mask_weights()
        self._mask_followers()

    def restart(self) -> None:
        """Makes the masks of the present weights before the first update: all True unless some are due already."""
        for mask in self.masks.values():
            mask.assign(tf.ones_like(mask))
        self.after_update(tf.constant(0, tf.int64), tf.constant(0, tf.int64))

    def sparsities(self) -> dict[str, float]:
        """Returns {path: share of its weights that are 0}."""
        return {path: zeros / self._pruned[path].shape.num_elements() for path, zeros in self._zeros().items()}

    def last_sparsities(self) -> dict[str, float]:
        """Returns {path: share of its weights that the last masks set to 0}, of which ties are no part."""
        if self._keeps:
            return self.sparsities()
        return {path: self._last_zeros(v.shape) / v.shape.num_elements() for path, v in self._pruned.items()}

    def _last_zeros(self, shape: tf.TensorShape) -> int:
        size = shape.num_elements()
        if self._pattern is None:
            return size - int(kept_of(size, tf.constant(self.sparsity, tf.float64)))
        zeros, group = self._pattern
        whole, rest = divmod(shape[-2], group)
        of_column = whole * zeros + max(0, rest - (group - zeros))  # weights that fill a group up are pruned first
        return of_column * size // shape[-2]

    def refuse_useless_start(self) -> None:
        """Raises UserError if `keep` would keep no weight at 0 or, of a variable, all of them: it would not train."""
        if not self._keeps:
            return
        shares = self.sparsities()
        if not any(shares.values()):
            raise UserError(
                f"prune.schedule=keep: no weight of {', '.join(shares)} is 0 at the start, so nothing would be pruned."
                " Type --config.init_from=RUN of a pruned run, or --config.prune.schedule=polynomial"
                " --config.prune.sparsity=0.8."
            )
        if empty := [path for path, share in shares.items() if share == 1]:
            raise UserError(
                f"prune.schedule=keep: all weights of {', '.join(empty)} are 0 at the start, so they would never be"
                " trained. Leave these out by --config.prune.exclude."
            )

    def shares(self, parameters: int) -> dict[str, float]:
        """Returns the numbers that are logged: weights that are 0, as a share of those pruned and of all.

        Args:
          parameters: number of all parameters in `model.trainable_variables`.
        """
        zeros, pruned = sum(self._zeros().values()), sum(v.shape.num_elements() for v in self._pruned.values())
        return dict(zip(LOGGED, (zeros / pruned, zeros / parameters), strict=True))

    def _zeros(self) -> dict[str, int]:
        values = {path: _value(variable) for path, variable in self._pruned.items()}
        return {path: int(tf.math.count_nonzero(tf.equal(value, 0))) for path, value in values.items()}

    def sparsity_at(self, updates: tf.Tensor) -> tf.Tensor:
        """Returns the share of weights that masks made after so many updates set to 0: float64 scalar."""
        length = tf.constant(self.end - self.begin, tf.float64)
        done = tf.clip_by_value(tf.cast(updates - self.begin, tf.float64) / length, 0, 1)
        left = (1 - done) * (1 - done) * (1 - done)
        return tf.constant(self.sparsity, tf.float64) + tf.constant(self.initial - self.sparsity, tf.float64) * left

    def _is_due(self, updates: tf.Tensor) -> tf.Tensor:
        is_turn = tf.equal((updates - self.begin) % self.every, 0) | tf.equal(updates, self.end)
        return is_turn & (updates >= self.begin) & (updates <= self.end)

    def _keep(self) -> tf.Tensor:
        """Sets the weights outside of the masks to 0."""
        self._mask_weights()
        return nothing()

    def _make(self, updates: tf.Tensor) -> None:
        """Makes the masks of the present weights, and sets weights and followers outside of them to 0."""
        for path, mask in self._made(updates).items():
            self.masks[path].assign(mask)
        self.mask_all()

    def _mask_weights(self, keeps_all: tf.Tensor | None = None) -> None:
        """Sets the weights outside of the masks to 0, on every replica, unless `keeps_all`, a bool scalar."""
        for path, variable in self._pruned.items():
            mask = self.masks[path].read_value()
            for copy in paths.copies(variable):
                copy.assign(_masked(mask if keeps_all is None else mask | keeps_all, copy))

    def _mask_followers(self) -> None:
        for path, follower in self._followers:
            follower.assign(_masked(self.masks[path], follower))

    def _made(self, updates: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns the masks of the present weights."""
        weights = {path: _value(variable) for path, variable in self._pruned.items()}
        if self._keeps:
            return {path: tf.not_equal(value, 0) for path, value in weights.items()}
        if self._pattern is not None:
            return {path: pattern_mask(value, *self._pattern) for path, value in weights.items()}
        sparsity = self.sparsity_at(updates)
        return {path: magnitude_mask(value, sparsity) for path, value in weights.items()}


def magnitude_mask(weights: tf.Tensor, sparsity: tf.Tensor) -> tf.Tensor:
    """Returns a mask of the shape of `weights`: True for the k of largest magnitude, and for all equal to the k-th.

    Args:
      weights: floating, of any shape, finite.
      sparsity: float64 scalar; k is the rest of the weights, rounded, at least 1.
    """
    magnitudes = tf.abs(weights)
    return magnitudes >= kth_largest(magnitudes, kept_of(weights.shape.num_elements(), sparsity))


def kept_of(size: int, sparsity: tf.Tensor) -> tf.Tensor:
    """Returns how many of `size` weights a mask of a sparsity (float64 scalar) keeps, at least 1: int32 scalar."""
    return tf.maximum(tf.cast(tf.floor((1 - sparsity) * size + 0.5 + _ROUNDING), tf.int32), 1)


def kth_largest(magnitudes: tf.Tensor, k: tf.Tensor) -> tf.Tensor:
    """Returns the k-th largest of numbers of at least 0, exactly: a scalar of their dtype.

    The bits of such numbers are integers in the same order, of which the largest is searched that k numbers reach: 31
    passes of float32, in a quarter of the time of sorting them, or less.

    Args:
      magnitudes: float32 or float64, of any shape.
      k: int32 scalar, 1 to their number.
    """
    kind = _BITS[magnitudes.dtype]
    bits = tf.bitcast(magnitudes, kind)
    largest = tf.bitcast(tf.constant(float("inf"), magnitudes.dtype), kind)

    def halve(low: tf.Tensor, high: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        middle = low + (high - low + 1) // 2
        is_reached = tf.math.count_nonzero(bits >= middle, dtype=tf.int32) >= k
        return tf.where(is_reached, middle, low), tf.where(is_reached, high, middle - 1)

    start = (tf.zeros([], kind), largest)
    low, _ = tf.while_loop(lambda low, high: low < high, halve, start, parallel_iterations=1)
    return tf.bitcast(low, magnitudes.dtype)


def pattern_mask(weights: tf.Tensor, zeros: int, size: int) -> tf.Tensor:
    """Returns a mask: False for the `zeros` smallest magnitudes of each `size` weights in a row along the inputs.

    Of equal ones, those of the first inputs are kept. If `size` does not divide the inputs, the last weights are
    filled up with zeros, which are pruned first.

    Args:
      weights: [inputs, outputs] or [height, width, inputs, outputs].
    """
    last = tf.linalg.matrix_transpose(tf.abs(weights))  # [..., outputs, inputs]
    inputs = weights.shape[-2]
    filled = tf.pad(last, [[0, 0]] * (weights.shape.rank - 1) + [[0, -inputs % size]])
    groups = tf.reshape(filled, [-1, size])
    one, other = groups[:, :, tf.newaxis], groups[:, tf.newaxis, :]
    is_earlier = tf.constant([[j < i for j in range(size)] for i in range(size)])
    ahead = tf.math.count_nonzero((other > one) | (tf.equal(other, one) & is_earlier), axis=2, dtype=tf.int32)
    kept = tf.reshape(ahead < size - zeros, filled.shape)[..., :inputs]
    return tf.linalg.matrix_transpose(kept)


def _value(variable: tf.Variable) -> tf.Tensor:
    return paths.copies(variable)[0].read_value()


def _masked(mask: tf.Tensor, variable: tf.Variable) -> tf.Tensor:
    value = variable.read_value()
    # One pass, where tf.where would broadcast.
    return tf.raw_ops.Select(condition=mask, x=value, y=tf.zeros_like(value))
