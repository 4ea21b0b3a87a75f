"""Traces one batch of an evaluation split before anything runs, to find out what evaluating the split would do.

found = probe_evaluation(loss, state, batches, config, "test", terms)
found.assigned_variables                       # variables that the loss changes in evaluation
"""

import dataclasses
from collections.abc import Mapping

import tensorflow as tf
import tf_keras as keras
from absl import logging
from ml_collections import FrozenConfigDict

from framework import paths
from framework.data.batches import Batches, epoch_steps
from framework.data.bucketed import last_steps, members_of
from framework.errors import UserError
from framework.state import TrainState
from framework.step import coverage
from framework.step.draws import check_draws
from framework.step.forward import Loss, forward
from framework.step.penalties import PENALTY, is_penalty
from framework.step.penalty_checks import check_row_weights, uneven
from framework.step.probe_checks import NamedBatch, check_terms
from framework.step.scopes import scopes
from framework.trace.assigned import assigned

_SHOWN = 3  # variables of one message


@dataclasses.dataclass(frozen=True)
class EvaluationProbe:
    """What a trace of evaluation shows.

    Attributes:
      terms: names of the loss's terms, penalties included.
      assigned_variables: variables that the forward pass may assign to; they are put back after each evaluation.
      has_uneven: whether a penalty is right only for rows of weight 1, so that the last batch must not be padded.
      rest: number of examples of such a last batch; None if the batch is whole, or may be padded.
      constants: see `coverage.constants`.
    """

    terms: tuple[str, ...]
    assigned_variables: tuple[tf.Variable, ...]
    has_uneven: bool
    rest: int | None
    constants: Mapping[str, str]


def probe_evaluation(
    loss: Loss,
    state: TrainState,
    batches: Batches,
    config: FrozenConfigDict,
    split: str,
    terms: tuple[str, ...],
    trained: Mapping[str, tf.TensorSpec],
) -> EvaluationProbe:
    """Traces the forward pass of one evaluation batch; nothing is run.

    Args:
      split: the name of the split.
      terms: those of training; penalties that only training has are 0 here.
      trained: the specs of a batch of training.

    Raises:
      UserError: a random draw, or a variable or table that no checkpoint has, so that a resumed run would see another
        best step or stop elsewhere; a Keras metric inside of the model; a term that is no weighted sum of the examples;
        or weights for which a penalty is wrong.
    """
    evaluated: list[str] = []

    def trace() -> None:
        with scopes(config.train.precision, 0, tf.constant(0, tf.int64)):
            batch = NamedBatch(batches.at(0))
            _warn_of_types(batch, trained, split)
            returned = forward(loss, state.model, batch, training=False)[0]
        check_terms(returned, batch.values())
        evaluated.extend(returned)

    graph = tf.function(trace, autograph=False).get_concrete_function().graph
    where = f"evaluation of '{split}'"
    check_draws(graph, config, state)
    assigned_variables = assigned(graph, state.model)
    _check_moved(state, assigned_variables, split)
    coverage.check_data(graph, state, where)
    names = [name for name in terms if not is_penalty(name)] + [name for name in evaluated if is_penalty(name)]
    if any(map(is_penalty, terms)) and not any(map(is_penalty, names)):
        names.append(PENALTY)
    has_uneven = bool(uneven(state.model))
    rest = _rest(state, batches, split) if has_uneven else None
    return EvaluationProbe(
        tuple(names),
        assigned_variables,
        has_uneven,
        rest,
        coverage.constants(graph, state, where, members_of(batches)[0]),
    )


def _warn_of_types(batch: Mapping[str, tf.Tensor], trained: Mapping[str, tf.TensorSpec], split: str) -> None:
    """Logs a warning of numbers that are integers here and floating in training, or the other way round."""
    for name in sorted(batch.keys() & trained.keys()):
        here, there = batch[name].dtype, trained[name].dtype
        if (here.is_floating and there.is_integer) or (here.is_integer and there.is_floating):
            logging.warning(
                "'%s' is %s in training, but %s in the evaluation split '%s': if the model takes both alike, one of"
                " them lacks a part of the transform, such as Normalise",
                name,
                there.name,
                here.name,
                split,
            )


def _check_moved(state: TrainState, assigned_variables: tuple[tf.Variable, ...], split: str) -> None:
    """Raises UserError if evaluation changes a Keras metric; logs a warning if it changes anything else."""
    moving = {id(variable) for variable in assigned_variables}
    for child in paths.objects(state.model).values():
        if isinstance(child, keras.metrics.Metric) and moving & {id(variable) for variable in child.variables}:
            raise UserError(
                f"evaluating '{split}' updates the Keras metric '{child.name}', which counts on and on inside of the"
                " model. Return what it reads as outputs of the loss, and a metric of sums over examples in"
                " make_metrics(cfg), such as metrics.Accuracy or a metrics.Mean of your own."
            )
    if assigned_variables:
        names = {id(variable): path for path, variable in paths.variables(state.model).items()}
        shown = ", ".join(f"'{names.get(id(variable), variable.name)}'" for variable in assigned_variables[:_SHOWN])
        logging.warning(
            "evaluating '%s' moves %s%s, as training does; they are put back afterwards. Give the model the `training`"
            " that the loss is given: model(x, training=training)",
            split,
            shown,
            f" and {len(assigned_variables) - _SHOWN} more" if len(assigned_variables) > _SHOWN else "",
        )


def _rest(state: TrainState, batches: Batches, split: str) -> int | None:
    """Returns the number of rows of the last batch before its padding; None without padding.

    Raises:
      UserError: a row of the first or last batch has another weight than 1.
    """
    if len(members_of(batches)) > 1:
        for step in last_steps(batches):
            check_row_weights(state.model, batches.at(step)["weight"], f"batch {step} of '{split}'")
        return None
    last = epoch_steps(batches) - 1
    for step in sorted({0, last}):
        weight = batches.at(step)["weight"]
        rest = int(tf.reduce_max(tf.where(weight > 0, tf.range(1, len(weight) + 1), 0)))
        check_row_weights(state.model, weight[: rest if step == last else len(weight)], f"batch {step} of '{split}'")
    return rest if rest < len(weight) else None
