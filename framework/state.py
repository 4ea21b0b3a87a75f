"""TrainState: all that is saved. Everything else is a function of it, or not part of the run.

    state = create(model, optimizer, new_counter())
    state.step, state.updates           # global batches consumed, updates applied
    paths.variables(state)              # {'step': …, 'model/dense/kernel': …, 'optimizer/groups/0/_variables/1': …}

The names of variables are their paths in this object, see `paths`. A checkpoint has exactly these variables.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras as keras

from framework import compat, paths, rng
from framework.optim import Clusterer, ExponentialMovingAverage, Extension, Lookahead, Optimizer, Pruner, Quantizer
from framework.precision import LossScale


class Best(tf.Module):
    """The best value of a metric so far, and the number of evaluations since.

    Attributes:
      value: float64 scalar variable; NaN before the first.
      step: int64 scalar variable; the step of the best value, -1 before the first.
      waited: int64 scalar variable; evaluations since the best value.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.value = tf.Variable(math.nan, trainable=False, dtype=tf.float64)
        self.step = tf.Variable(-1, trainable=False, dtype=tf.int64)
        self.waited = tf.Variable(0, trainable=False, dtype=tf.int64)

    def observe(self, value: float, step: int, mode: str, min_delta: float = 0.0) -> bool:
        """Records an evaluation; returns whether its value is finite and beats the best by more than `min_delta`."""
        best = float(self.value)
        gain = value - best if mode == "max" else best - value
        improved = math.isfinite(value) and (math.isnan(best) or gain > min_delta)
        if improved:
            self.value.assign(value)
            self.step.assign(step)
            self.waited.assign(0)
        else:
            self.waited.assign_add(1)
        return improved

    def forget(self) -> None:
        """Returns to the state before the first evaluation."""
        self.value.assign(math.nan)
        self.step.assign(-1)
        self.waited.assign(0)


class TrainState(tf.Module):
    """All variables that a checkpoint holds; what hooks and the log remember is in its note.

    Attributes:
      step: int64 scalar; global batches consumed: the data cursor, the randomness key, the log index, the end.
      updates: int64 scalar; updates applied: schedule and average read it.
      skipped: int64 scalar; steps that changed nothing, because they were not finite or on the skip list.
      skipped_in_row: int64 scalar; skipped steps since the last update.
      empty_terms: int64 scalar; how often a term of the loss had no weight in a batch.
      model: the trained model, or a dict of them.
      optimizer: with its slots, or a dict of them by model.
      loss_scale: None without one.
      ema: moving average of the weights; None without one.
      lookahead: slow weights that replace the trained ones now and then; None without them.
      prune: masks outside of which weights are 0; None without them.
      cluster: clusters of weights with one value each; None without them.
      quantize: ranges of activations by which the model rounds; None without them.
      extensions: {name: {path: variable}} of the extensions that the experiment's `make_extensions` returned.
      extra: what the experiment's `make_state` returned; None without one.
      schedule: learning-rate schedules with variables, or a dict of them by model; None without one.
      data: batches that have a state, such as a replay buffer; None for those that are a function of the step.
      skip_list: int64 [train.nonfinite_limit]; steps to leave out, -1 for a free place; None unless the run rewinds.
      best: the best value of `checkpoint.best_metric`, its step and the evaluations since.
      early: the same of `early_stopping.metric`.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        updates: tf.Variable,
        loss_scale: LossScale | None = None,
        ema: ExponentialMovingAverage | None = None,
        extra: tf.Module | None = None,
        data: tf.Module | None = None,
        skip_list: int = 0,
        schedule: Any = None,
        lookahead: Lookahead | None = None,
        prune: Pruner | None = None,
        cluster: Clusterer | None = None,
        quantize: Quantizer | None = None,
        extensions: Mapping[str, Extension] | None = None,
    ) -> None:
        super().__init__("state")
        self.step = new_counter()
        self.skipped = new_counter()
        self.skipped_in_row = new_counter()
        self.empty_terms = new_counter()
        self.updates = updates
        self.model = model
        self.optimizer = optimizer
        self.loss_scale = loss_scale
        self.ema = ema
        self.lookahead = lookahead
        self.prune = prune
        self.cluster = cluster
        self.quantize = quantize
        self._own = compat.untracked(self, dict(extensions or {}))
        # Not what an extension holds of the model, which is saved as the model.
        known = {id(variable) for variable in paths.variables({"model": model, "optimizer": optimizer}).values()}
        self.extensions = {
            name: {path: v for path, v in paths.variables(extension).items() if id(v) not in known}
            for name, extension in self._own.items()
        }
        self.extra = extra
        self.data = data
        self.schedule = schedule
        self.skip_list = tf.Variable([-1] * skip_list, trainable=False, dtype=tf.int64) if skip_list else None
        self.best = Best("best")
        self.early = Best("early")

    @property
    def models(self) -> dict[str, Any]:
        """{name: model}; a single model is called 'model'."""
        return paths.models(self.model)

    @property
    def optimizers(self) -> dict[str, Optimizer]:
        """{name: optimizer} of the models that are trained."""
        return paths.models(self.optimizer)

    @property
    def is_extended(self) -> bool:
        """Whether `after_update` does anything."""
        return any((self.lookahead, self._own, self.prune, self.cluster, self.quantize, self.ema))

    def after_update(
        self, updates: tf.Tensor, step: tf.Tensor, applied: tf.Tensor | None = None, extremes: Any = ()
    ) -> None:
        """Does what follows an update: Lookahead, the experiment's extensions, masks, clusters, ranges, then the EMA.

        Args:
          updates: int64 scalar; updates made, including this one.
          step: int64 scalar; steps counted before this one.
          applied: bool scalar; False leaves all as it is, as in `Optimizer.apply`. None is as True.
          extremes: of the activations of the step, see `Quantizer.after_update`.
        """
        if self.lookahead is not None:
            self.lookahead.after_update(updates, step, applied)
        for extension in self._own.values():
            extension.after_update(updates, step, tf.constant(True) if applied is None else applied)
        if self.prune is not None:
            self.prune.after_update(updates, step, applied)
        if self.cluster is not None:
            self.cluster.after_update(updates, step, applied)
        if self.quantize is not None:
            self.quantize.after_update(updates, step, applied, extremes)
        if self.ema is not None:
            self.ema.after_update(updates, step, applied)

    def restart(self) -> None:
        """Makes all that follows updates that of a run which starts at the present weights."""
        followers = (
            self.ema,
            self.lookahead,
            *self._own.values(),
            self.prune,
            self.cluster,
            self.quantize,
        )  # `prune` and `cluster` change those before
        for follower in followers:
            if follower is not None:
                follower.restart()

    @property
    def learned(self) -> dict[str, tf.Variable]:
        """{path: variable} of all that a step changes beside counters and data."""
        parts = {"model": self.model, "optimizer": self.optimizer, "extra": self.extra}
        return {
            f"{name}/{path}": variable
            for name, part in parts.items()
            if part is not None
            for path, variable in paths.variables(part).items()
        }


def new_counter() -> tf.Variable:
    """Returns an int64 counter at 0, such as that of updates, which schedules read and the state holds."""
    return tf.Variable(0, trainable=False, dtype=tf.int64)


def create(model: Any, optimizer: Any, updates: tf.Variable, **parts: Any) -> TrainState:
    """Returns the state of step 0, and tells layers that draw random numbers the path of their stream.

    Args:
      parts: the further arguments of TrainState.
    """
    state = TrainState(model, optimizer, updates, **parts)
    rng.name_streams(paths.objects(state.model))
    if state.extra is not None:
        rng.name_streams({f"extra/{path}": child for path, child in paths.objects(state.extra).items()})
    return state


def refresh(state: TrainState) -> bool:
    """Makes preprocessing layers compute with the present values of their variables; returns whether one did not.

    `Normalization`, `Discretization` and the tf-idf of lookups keep tensors that they made of their variables when they
    were adapted. After variables are assigned from a checkpoint, these tensors are those of other data.
    """
    is_stale = False
    for root in (state.model, state.extra):
        for layer in paths.objects(root).values() if root is not None else ():
            if isinstance(layer, keras.layers.experimental.preprocessing.PreprocessingLayer):
                before = _computed(layer)
                layer.finalize_state()
                is_stale |= before != _computed(layer)
    return is_stale


def _computed(layer: Any) -> dict[str, Any]:
    """Returns the numbers that a layer keeps beside its variables."""
    return {
        name: np.asarray(value).tolist()
        for name, value in vars(layer).items()
        if name == "bin_boundaries" or (tf.is_tensor(value) and not tf.is_symbolic_tensor(value))
    }
