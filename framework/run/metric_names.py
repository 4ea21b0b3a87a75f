"""Checks the names of a run's metrics: none hides another number, and each metric that a config key names exists."""

from collections.abc import Iterable, Mapping, Sequence

from ml_collections import ConfigDict, FrozenConfigDict

from framework import optim
from framework.config import is_pruned
from framework.errors import UserError, near
from framework.evaluators import Evaluator, modes_of
from framework.metrics import Metric, results
from framework.run.progress import PADDING, TIMES
from framework.step.metric_row import MetricRow, term_key
from framework.step.penalties import shown


def check_metric_names(
    resolved: FrozenConfigDict, metrics: Mapping[str, Metric], layout: MetricRow, evaluators: Mapping[str, Evaluator]
) -> None:
    """Raises UserError if a metric has the name of another number of a row, or a config key names no metric."""
    numbers = results.modes(metrics)
    pruning = optim.LOGGED if is_pruned(resolved.prune) else ()
    clusters = (optim.DISTINCT,) if resolved.cluster.name != "none" else ()
    for name in {*metrics, *numbers} & {"step", PADDING, *TIMES, *pruning, *clusters, *layout.scalars}:
        raise UserError(
            f"make_metrics names a metric '{name}', which every step reports already. Give it another name."
        )
    for name in (name for name in metrics if name.startswith(("mean/", "eval/"))):
        raise UserError(
            f"make_metrics names a metric '{name}', but rows of metrics.jsonl have names of their own below"
            f" '{name[:5]}'. Leave that out."
        )
    known = ["loss", *(term_key(name) for name in shown(layout.terms) if len(layout.terms) > 1), *numbers]
    for key, chosen in (
        ("early_stopping.metric", resolved.early_stopping.metric),
        ("checkpoint.best_metric", resolved.checkpoint.best_metric),
    ):
        split, _, name = chosen.partition("/")
        if split in evaluators:
            _check_declared(key, chosen, evaluators)
        if split not in resolved.eval.splits:  # of a run that trains, `check_watched` refuses a name of neither
            continue
        if name not in known:
            raise UserError(
                f"{key}='{chosen}': there is no metric '{name}'.{near(name, known)} Metrics: {', '.join(known)}."
                f" Type e.g. --config.{key}={split}/loss."
            )


def modes(splits: Iterable[str], terms: Sequence[str], metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Returns {'test/accuracy': 'max', …}: whether the minimum or the maximum of each evaluated metric is best.

    Args:
      splits: of the evaluations.
      terms: names of the terms of the loss, whose minimum is best.
      metrics: of the experiment, by name.
    """
    of_each = {"loss": "min", **{f"loss/{term}": "min" for term in terms}}
    of_each |= results.modes(metrics)
    return {f"{split}/{name}": mode for split in splits for name, mode in of_each.items()}


def check_watched(config: ConfigDict, splits: Sequence[str], evaluators: Sequence[str]) -> None:
    """Raises UserError if a key names a metric of neither a split nor an evaluator.

    Of a run that trains: a look at a trained run may evaluate other splits.
    """
    for key, chosen in (
        ("early_stopping.metric", config.early_stopping.metric),
        ("checkpoint.best_metric", config.checkpoint.best_metric),
    ):
        name = chosen.partition("/")[0]
        if chosen and name not in (*splits, *evaluators):
            raise UserError(
                f"{key}='{chosen}': '{name}' is neither a split ({', '.join(splits)}) nor an evaluator"
                f" ({', '.join(evaluators) or 'none'}).{near(name, [*splits, *evaluators])}"
            )


def _check_declared(key: str, chosen: str, evaluators: Mapping[str, Evaluator]) -> None:
    """Raises UserError unless an evaluator declares the scalar that a key names."""
    name, _, scalar = chosen.partition("/")
    declared = modes_of(evaluators)
    if chosen not in declared:
        raise UserError(
            f"{key}='{chosen}': evaluator '{name}' does not declare the scalar '{scalar}'.{near(chosen, declared)}"
            f" Write {name}.modes = {{'{scalar}': 'max'}}, or 'min', in make_evaluators."
        )
