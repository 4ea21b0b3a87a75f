"""The order of a training step: all of its stages, top to bottom.

    0  normalizers           the divisor of each loss term: its weight (of examples; 1 in each piece for a penalty of
                             the weights), summed over micro-batches and replicas
    1  forward and backward  each replica differentiates its shard of the batch, one micro-batch after the other, by the
                             trained weights: (sum of terms, penalties of layers among them, each divided by its
                             normalizer) * loss scale; metric states are computed from the outputs, outside of the
                             tape; of a quantised model, the extremes of its activations
    2  all-reduce            gradients, loss terms and metric states are summed over replicas; extremes are the largest
                             of any replica
    3  unscale               gradients return to the dtype of their weights and are divided by the loss scale
    4  finite                if the loss or the norm of the gradients is not finite, or a check of an index, label or
                             assertion fails on any replica (a violation), no replica applies the update
    5  clip                  gradients are clipped as `config.clip` says
    6  apply                 the optimizer changes the weights
    7  count                 once a step: the counters; what follows an update: Lookahead, the experiment's extensions,
                             masks of pruning, clusters, ranges of quantisation, EMA; the loss scale; the
                             statistics of BatchNormalization become their mean over replicas

A step function calls `tools.gradients` (stages 0 to 3, `batch_gradients` below) and `tools.apply` (stages 4 to 6,
`apply_update`). The step function of most experiments, `tools.standard_step`, calls each once:

    def step(state, batch):
        result = tools.gradients(lambda micro_batch: loss(state.model, micro_batch, True), batch)
        tools.apply(result.gradients)
        return result.terms, result.metrics

An experiment's own step function may call them several times, for several models. `take_step` calls the step function.
If all was finite, and the step is not one that a rewound run leaves out, it adds 1 to `updates` and calls the
extensions; otherwise it restores `rollback_variables`. `count_step` moves `step`, the counts of skipped steps and the
loss scale, and returns whether the block halts, that is, ends before its last step. A block is the steps of one
compiled call: `block.py` calls both functions for each of them, on one device or several, and packs the numbers of a
step into a row for the log.

Three paths differ. On parameter servers, workers call `take_step` (`asynchronous.py`), which moves `updates`; the chief
moves the other counters when all steps of the block are done: the updates after a step that halts stay. There are no
extensions and no loss scale. In a dry run (`tools.dry_run`) each replica computes the whole batch, nothing is summed
over replicas, `tools.apply` only notes the gradients, and stages 4 to 7 are left out. An evaluation (`evaluation.py`)
has a forward pass of its own, with training=False; its sums are merged over batches in float64, and the variables that
it moves are restored.
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
    in_row,
    over_rows,
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
      has_collectives: the forward pass communicates between replicas. On several replicas it is then not compiled by
        XLA, and `micro_batches` is 1.
    """
    counters = rng.save_counters()  # an example draws the same random numbers in whichever micro-batch it is

    def cut(replica: int, shard: Batch) -> MicroBatches:
        return split(shard, replica, micro_batches, counters)

    # 0. Normalizers: the weight of each term over the global batch, by the operations of the loss that lead to it,
    # without the model. On one replica without micro-batches this is the term's own weight, and nothing is computed.
    normalizers: Normalizing
    if has_collectives and replicas.count > 1:
        normalizers = all_reduce_weights  # replicas exchange their weights in stage 1
        mode = "graph"
    else:
        normalizers = global_normalizers(objective.forward_pass, batch, cut, micro_batches, replicas)

    # 1. Forward and backward: on each replica, gradients of the scaled loss add up over micro-batches.
    def shard_gradients(replica: int, shard: Batch) -> Gradients:
        return in_row(accumulate(objective, cut(replica, shard), normalizers), replica, replicas.count)

    # 2. All-reduce: the sums over replicas, the same numbers on each. `accumulate` has cast the gradients to
    # `runtime.all_reduce_dtype`.
    sums = over_rows(replicas.all_reduce_sum(shard_gradients, batch, mode=mode))

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
      whether the norm is finite, and the norm, before clipping: scalars.
    """
    # 4. Finite: the norm is not finite if any gradient is not, or if the squares overflow. `tools.gradients` has
    # checked the loss and the guards, see `allowed`.
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
    """Takes a step, stages 0 to 6, then counts the update and calls the extensions; or rolls all of it back.

    Args:
      step: called while `tools.tracing(trace)` is open.
      rollback_variables: what `apply_update` does not protect: all that the forward pass may assign to, such as the
        moving statistics of BatchNormalization. For an experiment's own step function: all weights, slots and research
        state, because it may apply several updates.
    """
    state, replicas = trace.parts.state, trace.replicas
    before = [(copy, copy.read_value()) for variable in rollback_variables for copy in paths.copies(variable)]

    # 0 to 6. The step function calls `batch_gradients` and `apply_update`: the weights are changed here, if at all.
    terms, metrics = trace.call(step, batch)

    # 7. Count the update, and do what follows it; or roll back. A violation counts as not finite.
    is_finite = trace.checks.is_finite()
    is_taken = is_finite & trace.allowed
    state.updates.assign_add(tf.cast(is_taken, tf.int64))
    if state.is_extended and trace.is_masked:
        follow = trace.program("update", state.after_update)
        follow(state.updates.read_value(), state.step.read_value(), is_taken, trace.extremes)

    def keep() -> None:
        replicas.sync_mean(rollback_variables)
        if not trace.is_masked:
            state.after_update(state.updates.read_value(), state.step.read_value(), extremes=trace.extremes)

    def roll_back() -> None:
        for copy, value in before:
            copy.assign(value)

    if rollback_variables or (state.is_extended and not trace.is_masked):
        when(is_taken, keep, roll_back)
    return StepResult(terms, metrics, is_finite, is_taken, trace.checks.violations(), count_empty(terms))


def count_step(trace: StepTrace, result: StepResult) -> tf.Tensor:
    """Stage 7, after `take_step`: moves the counters and the loss scale; returns whether the block halts here.

    A violation halts the block; neither the counters nor the loss scale move. The same holds for a step that is not
    finite, unless `train.on_nonfinite` is 'skip' or the loss scale is dynamic, which may be the cause. Then the step is
    counted as skipped, and the block halts when `loss_scale.patience` steps in a row were not finite at the floor of
    the scale or, without a dynamic scale, when `train.nonfinite_limit` steps in a row were skipped. A step that a
    rewound run leaves out (`trace.allowed` is False) is computed and counted as skipped: if it is not finite it does
    not halt the block, and a dynamic scale takes it for finite.
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
    in_row = (state.skipped_in_row + skipped) * skipped
    state.skipped_in_row.assign(tf.where(halts, state.skipped_in_row, in_row))
    state.empty_terms.assign_add(tf.cast(result.is_taken, tf.int64) * result.empty_terms)

    if loss_scale is not None:
        loss_scale.update(result.is_finite | ~trace.allowed, tf.equal(result.violations, 0))
        halts |= loss_scale.is_stuck
    elif settings.on_nonfinite == "skip":
        halts |= state.skipped_in_row >= settings.nonfinite_limit
    return halts
