"""The names of a run's metrics: none hides another number, and the metrics that config keys name exist."""

from collections.abc import Mapping

from ml_collections import FrozenConfigDict

from framework.errors import UserError, near
from framework.metrics import Metric
from framework.step.metric_row import MetricRow, term_key
from framework.step.penalties import shown


def check_metric_names(resolved: FrozenConfigDict, metrics: Mapping[str, Metric], layout: MetricRow) -> None:
    """A metric must not hide a number of the step; and those that config keys name are known only now."""
    for name in {*metrics} & {"step", "examples_per_second", *layout.scalars}:
        raise UserError(
            f"make_metrics names a metric '{name}', which every step reports already. Give it another name."
        )
    for name in (name for name in metrics if name.startswith(("mean/", "eval/"))):
        raise UserError(
            f"make_metrics names a metric '{name}', but rows of metrics.jsonl have names of their own below"
            f" '{name[:5]}'. Leave that out."
        )
    known = ["loss", *(term_key(name) for name in shown(layout.terms) if len(layout.terms) > 1), *metrics]
    early, best = resolved.early_stopping, resolved.checkpoint
    for key, chosen, mode_key, mode in (
        ("early_stopping.metric", early.metric, "early_stopping.mode", early.mode),
        ("checkpoint.best_metric", best.best_metric, "checkpoint.best_mode", best.best_mode),
    ):
        split, _, name = chosen.partition("/")
        if chosen and name not in known:
            raise UserError(
                f"{key}='{chosen}': there is no metric '{name}'.{near(name, known)} Metrics: {', '.join(known)}."
                f" Type e.g. --config.{key}={split}/loss."
            )
        better = metrics[name].mode if name in metrics else "min"
        if chosen and mode != better:
            raise UserError(
                f"{mode_key}='{mode}', but of {key}='{chosen}' the {better}imum is the best."
                f" Use --config.{mode_key}={better}."
            )
