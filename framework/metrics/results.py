"""The results of metrics by the names that they are logged under.

of(metric, 'f1', state)      # {'f1/macro': 0.91, 'f1/micro': 0.93}
modes({'f1': metric})        # {'f1/macro': 'max', 'f1/micro': 'max'}
check({'f1': metric})        # UserError if a metric breaks the contract of metrics.Metric
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.metrics.base import LOGGED, Metric, Picture, is_summed


def of(metric: Metric, name: str, state: np.ndarray) -> dict[str, float | Picture]:
    """Returns {name: number or picture}, or {name/key: number} of a metric whose result is a dict.

    Raises:
      UserError: `result` returned something else.
    """
    with np.errstate(divide="ignore", invalid="ignore"):  # of no examples, a share is 0 / 0
        result = metric.result(state)
    return _named(name, result)


def modes(metrics: Mapping[str, Metric]) -> dict[str, str]:
    """Returns {name: 'max' or 'min'} for each number that the metrics report."""
    return {
        full: _mode(full.removeprefix(f"{name}/"), metric)
        for name, metric in metrics.items()
        for full in _names(name, metric)
    }


def check(metrics: Mapping[str, Metric]) -> None:
    """Raises UserError if a metric breaks the contract of `metrics.Metric`, as far as made-up states show."""
    owners: dict[str, str] = {}
    for name, metric in metrics.items():
        _check(name, metric)
        for full in _names(name, metric):
            if owners.setdefault(full, name) != name:
                raise UserError(f"the metrics '{owners[full]}' and '{name}' both report '{full}'. Rename one of them.")


def _check(name: str, metric: Metric) -> None:
    logged = getattr(metric, "logged", "step")
    if logged not in LOGGED:
        raise UserError(f"metric '{name}': logged={logged!r} is none of {', '.join(map(repr, LOGGED))}.")
    if is_summed(metric):
        _check_added(name, metric, logged)
    keys: list[list[str]] = []
    for result in _trials(metric):
        named = _named(name, result)
        _check_named(name, metric, logged, named)
        keys.append(list(named))
    if any(other != keys[0] for other in keys):
        raise UserError(f"metric '{name}': result returned the keys {keys[0]} of one state and {keys[-1]} of another.")


def _check_added(name: str, metric: Metric, logged: str) -> None:
    empty = np.asarray(metric.empty(), np.float64)
    state = np.arange(1.0, len(empty) + 1)
    if np.any(empty) or not np.array_equal(metric.merge(state, 2 * state), 3 * state):
        raise UserError(
            f"metric '{name}' has logged='{logged}', so the step adds its states on the device, but its empty() is not"
            " all 0 or its merge is no addition. Inherit metrics.Sums, or set logged = 'step'."
        )


def _check_named(name: str, metric: Metric, logged: str, named: Mapping[str, float | Picture]) -> None:
    for full, value in named.items():
        if isinstance(value, Picture):
            if logged != "evaluation":
                raise UserError(
                    f"metric '{name}': result returned a picture, which only evaluations show. Set"
                    " logged = 'evaluation' in its class."
                )
        elif (mode := _mode(full.removeprefix(f"{name}/"), metric)) not in ("max", "min"):
            raise UserError(
                f"metric '{name}': mode={metric.mode!r} gives {mode!r} for '{full}'. It must be 'max' or 'min', or a"
                " dict that has one of them for each key of the result."
            )


def _names(name: str, metric: Metric) -> list[str]:
    for result in _trials(metric):
        return [full for full, value in _named(name, result).items() if not isinstance(value, Picture)]
    return [name]


def _trials(metric: Metric) -> Iterator[Any]:
    """Yields the results of made-up states, of those that the metric can take: ones, and no examples."""
    for state in (np.ones(len(metric.empty())), np.asarray(metric.empty(), np.float64)):
        try:
            with np.errstate(all="ignore"):
                result = metric.result(state)
        except Exception:  # the metric cannot have this made-up state; its real results are checked as they come
            continue
        yield result


def _mode(key: str, metric: Metric) -> Any:
    return metric.mode.get(key) if isinstance(metric.mode, Mapping) else metric.mode


def _named(name: str, value: Any) -> dict[str, float | Picture]:
    if isinstance(value, Picture):
        return {name: value}
    if isinstance(value, Mapping):
        if not value or not all(isinstance(key, str) and key for key in value):
            raise UserError(
                f"metric '{name}': result returned a dict with the keys {list(value)}. Keys are names, such as 'macro'."
            )
        return {f"{name}/{key}": _number(f"{name}/{key}", number) for key, number in value.items()}
    return {name: _number(name, value)}


def _number(name: str, value: Any) -> float:
    if isinstance(value, tf.Tensor | tf.Variable):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.number) and np.ndim(value) == 0:
        value = value.item()
    if not isinstance(value, int | float):
        kind = f"of shape {value.shape}" if isinstance(value, np.ndarray) else f"of type {type(value).__name__}"
        raise UserError(
            f"metric '{name}': result returned a value {kind}. It must return a float, e.g."
            " float(state[0] / state[1]), a dict of floats or a metrics.Picture."
        )
    return float(value)
