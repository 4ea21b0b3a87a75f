"""The order of a training step: all of its stages, top to bottom.

    0  normalizers           the divisor of each loss term: its weight, summed over micro-batches and replicas
    1  forward and backward  each replica differentiates its shard of the batch, one micro-batch after the other
    2  all-reduce            gradients, loss terms and metric states are summed over replicas
    3  unscale               gradients are divided by the loss scale
    4  finite                if the loss or a gradient is not finite on any replica, or a guard of an index, label or
                             assertion fails (a violation), no replica applies the update
    5  clip                  gradients are clipped as `config.clip` says
    6  apply                 the optimizer changes the weights
    7  count                 once a step: the counters, the average of the weights, the loss scale

A step function calls `tools.gradients` (stages 0 to 3, `batch_gradients` below) and `tools.apply` (stages 4 to 6,
`apply_update`). The step function of most experiments, `tools.standard_step`, calls each once:

    def step(state, batch):
        result = tools.gradients(lambda micro_batch: loss(state.model, micro_batch, True), batch)
        tools.apply(result.gradients)
        return result.terms, result.metrics

An experiment's own step function may call them several times, for several models. `take_step` calls the step function.
If all was finite, it adds 1 to `updates` and averages the weights; otherwise it restores `rollback_variables`.
`count_step` moves `step`, the counts of skipped steps and the loss scale, and says whether the block halts. A block is
the steps of one compiled call: `block.py` calls both functions for each of them, on one device or several. On parameter
servers, `asynchronous.py` calls `take_step` on a worker and counts on the chief. Both pack the numbers of a step into a
row for the log.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
from ml_collections import ConfigDict

from framework import paths, rng
from framework.distribute.replicas import Replicas
from framework.optim import Optimizer, clip, global_norm
from framework.step.forward import Batch, count_empty
from framework.step.gradients import (
    Gradients,
    Normalizing,
    Objective,
    accumulate,
    all_reduce_weights,
    global_normalizers,
    rows_of,
    unscale,
    with_rows,
)
from framework.step.micro_batches import MicroBatches, split
from framework.step.parts import StepFunction, StepResult, StepTrace
from framework.step.update import apply_if, when


def batch_gradients(
    objective: Objective,
    batch: Batch,
    replicas: Replicas,
    micro_batches: int = 1,
    mode: str = "graph",
    has_collectives: bool = False,
) -> Gradients:
    """Stages 0 to 3: differentiates the total loss of a global batch.

    Args:
      objective: the forward pass, the variables and how to differentiate.
      batch: {name: [batch, ...]}; on several replicas, the shards that `replicas.run` returned.
      micro_batches: number of pieces into which each replica cuts its shard.
      mode: 'xla' compiles what each replica does.
      has_collectives: the forward pass communicates between replicas, so it is not compiled; on several replicas,
        `micro_batches` is 1.
    """
    counters = rng.save_counters()  # an example draws the same random numbers in whichever micro-batch it is

    def cut(replica: int, shard: Batch) -> MicroBatches:
        return split(shard, replica, micro_batches, counters)

    # 0. Normalizers: each term is divided by its weight over the global batch, which needs no forward pass.
    normalizers: Normalizing
    if has_collectives and replicas.count > 1:
        normalizers = all_reduce_weights  # replicas exchange their weights in stage 1
        mode = "graph"
    else:
        normalizers = global_normalizers(objective.forward_pass, batch, cut, micro_batches, replicas)

    # 1. Forward and backward: on each replica, gradients of the scaled loss add up over micro-batches.
    def shard_gradients(replica: int, shard: Batch) -> Gradients:
        return accumulate(objective, cut(replica, shard), normalizers)

    # 2. All-reduce: the sums over replicas, the same numbers on each.
    sums = replicas.all_reduce_sum(shard_gradients, batch, mode=mode)

    # 3. Unscale: the loss scale, which keeps small gradients from vanishing in half precision, is divided out.
    return unscale(objective, sums)


def apply_update(
    optimizer: Optimizer,
    gradients: Mapping[str, Any],
    allowed: tf.Tensor,
    clipping: ConfigDict,
    replicas: Replicas,
    is_masked: bool = False,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Stages 4 to 6: applies one update of one model, or changes nothing.

    Args:
      gradients: {path: gradient} of the global batch, as `batch_gradients` returns them.
      allowed: bool scalar; False if this step is left out, or a loss, a gradient or a guard was bad earlier in it.
      clipping: config.clip.
      is_masked: the new weights are chosen inside of the XLA program that computes them, see `update.apply_if`.

    Returns:
      whether all gradients are finite, and their norm before clipping: scalars.
    """
    # 4. Finite: the norm is not finite if any gradient is not. `tools.gradients` has checked the loss, see `allowed`.
    values = {path: rows_of(gradient) for path, gradient in gradients.items()}
    norm = global_norm(values.values())
    is_finite = tf.math.is_finite(norm)

    # 5. Clip, as `config.clip` says.
    clipped = clip(values, optimizer.trained, clipping, norm)

    # 6. Apply: the optimizer changes the weights and its slots, on each replica by the same update.
    update = {path: with_rows(gradients[path], value) for path, value in clipped.items()}
    apply_if(is_finite & allowed, optimizer, update, replicas, is_masked)
    return is_finite, norm


def take_step(
    trace: StepTrace, step: StepFunction, batch: Batch, rollback_variables: Sequence[tf.Variable]
) -> StepResult:
    """Takes a step as a whole or not at all: stages 0 to 6, and what of stage 7 depends on whether it was taken.

    Args:
      step: called while `tools.tracing(trace)` is open.
      rollback_variables: what `apply_update` does not protect: statistics of BatchNormalization; of an experiment's own
        step function all weights, slots and research state, because it may apply several updates.
    """
    state, replicas = trace.parts.state, trace.replicas
    before = [(copy, copy.read_value()) for variable in rollback_variables for copy in paths.copies(variable)]

    # 0 to 6. The step function calls `batch_gradients` and `apply_update`: the weights are changed here, if at all.
    terms, metrics = trace.call(step, batch)

    # 7. Count the update and average the weights; or roll back. A violation counts as not finite.
    is_finite = trace.checks.is_finite()
    is_taken = is_finite & trace.allowed
    state.updates.assign_add(tf.cast(is_taken, tf.int64))
    ema = state.ema
    if ema is not None and trace.is_masked:
        trace.program("update", ema.update)(state.updates.read_value(), is_taken)

    def keep() -> None:
        replicas.sync_mean(rollback_variables)
        if ema is not None and not trace.is_masked:
            ema.update(state.updates.read_value())

    def roll_back() -> None:
        for copy, value in before:
            copy.assign(value)

    if rollback_variables or (ema is not None and not trace.is_masked):
        when(is_taken, keep, roll_back)
    return StepResult(terms, metrics, is_finite, is_taken, trace.checks.violations(), count_empty(terms))


def count_step(trace: StepTrace, result: StepResult) -> tf.Tensor:
    """Stage 7, after `take_step`: moves the counters and the loss scale; returns whether the block halts here.

    A violation halts the block, and the step is not counted. So does a step that is not finite, unless
    `train.on_nonfinite` is 'skip' or the loss scale is dynamic, which may be the cause: then the step is counted as
    skipped, and the block halts when the scale is stuck at its floor or, without a dynamic scale, when
    `train.nonfinite_limit` steps in a row were skipped. A step that a rewound run leaves out (`trace.allowed` is False)
    is counted as skipped.
    """
    state, settings = trace.parts.state, trace.parts.config.train
    loss_scale = state.loss_scale if state.loss_scale is not None and state.loss_scale.is_dynamic else None
    is_skipping = loss_scale is not None or settings.on_nonfinite == "skip"
    halts = tf.constant(False) if is_skipping else ~result.is_finite & trace.allowed
    halts |= tf.not_equal(result.violations, 0)

    counted = tf.cast(~halts, tf.int64)
    skipped = counted * tf.cast(~result.is_taken, tf.int64)
    state.step.assign_add(counted)
    state.skipped.assign_add(skipped)
    state.skipped_in_row.assign((state.skipped_in_row + skipped) * skipped)
    state.empty_terms.assign_add(tf.cast(result.is_taken, tf.int64) * result.empty_terms)

    if loss_scale is not None:
        loss_scale.update(result.is_finite | ~trace.allowed)
        halts |= loss_scale.is_stuck
    elif settings.on_nonfinite == "skip":
        halts |= state.skipped_in_row >= settings.nonfinite_limit
    return halts
