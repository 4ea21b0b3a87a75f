"""What the functions of an experiment returned, looked at before anything is made of it.

make = checked(loaded.functions)
make["make_data"](cfg, "train")           # batches, or UserError: make_data returned None. …
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.errors import UserError
from framework.experiment.user_code import KERAS_3, calling


def checked(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """The same functions, which raise UserError where they return something that nobody can use."""
    return {name: _checked(name, function) for name, function in functions.items()}


def check_optimizer(optimizer: Any) -> None:
    """Raises UserError if what make_optimizer returned is no optimizer of tf_keras that a step can apply."""
    kind = type(optimizer).__name__
    if isinstance(optimizer, keras.optimizers.legacy.Optimizer):
        raise UserError(
            f"make_optimizer returned keras.optimizers.legacy.{kind}, of an interface that steps do not use."
            f" Write keras.optimizers.{kind}(learning_rate)."
        )
    if isinstance(optimizer, keras.mixed_precision.LossScaleOptimizer):
        name = "dynamic" if optimizer.dynamic else "static"
        raise UserError(
            "make_optimizer returned a LossScaleOptimizer, but steps scale the loss themselves. Return the optimizer"
            f" inside it, and type --config.loss_scale.name={name}"
            f" --config.loss_scale.initial={float(optimizer.initial_scale or 2**15):g}."
        )
    if not isinstance(optimizer, keras.optimizers.Optimizer):
        raise UserError(
            f"make_optimizer returned {shown(optimizer)}."
            f" {KERAS_3 if is_keras_3(optimizer) else 'It must return e.g. keras.optimizers.RMSprop(learning_rate).'}"
        )


def check_split(batches: Any, split: str) -> None:
    """Raises UserError if the batches of a split were made for training and are evaluated, or the other way round."""
    training = getattr(batches, "training", None)  # batches that make_batches did not make are taken as they are
    if training in (None, split == "train"):
        return
    how = "shuffled, endless and of data.batch_size" if training else "in file order, padded and of eval.batch_size"
    raise UserError(
        f"make_data makes the batches of '{split}' with training={training}, so they are {how}."
        " Write make_batches(source, cfg, training=split == 'train')."
    )


def shown(returned: Any) -> str:
    """'None', '0.001', 'loss(model, batch)' or 'a value of type list': short, whatever it is."""
    if inspect.isfunction(returned):
        kind = "async " if inspect.iscoroutinefunction(returned) else ""
        return f"{kind}{returned.__name__}{inspect.signature(returned)}"
    is_plain = returned is None or isinstance(returned, str | int | float)
    return repr(returned) if is_plain else f"a value of type {type(returned).__name__}"


def is_keras_3(value: Any) -> bool:
    """Whether it is of a class of the package `keras`, or of one derived from such a class."""
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(value).__mro__)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    find = _WANTED.get(name, lambda found: "")

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with calling(name):
            found = function(*args)
        if wanted := find(found):
            raise UserError(f"{name} returned {shown(found)}. {wanted}")
        return found

    return call


def _data(found: Any) -> str:
    if all(hasattr(found, name) for name in ("batch_size", "steps_per_epoch", "at", "plan", "take")):
        return ""
    return "It must return batches: make_batches(source, cfg, training=split == 'train')."


def _model(found: Any) -> str:
    for model in paths.models(found).values():
        if is_keras_3(model):
            return KERAS_3
        if not isinstance(model, tf.Module):
            return "It must return a model of tf_keras or another tf.Module, or {name: model}."
    for path, part in paths.objects(found).items():
        if is_keras_3(part):
            return f"'{path}' in it is a Keras 3 {type(part).__name__}. {KERAS_3}"
    return ""


def _loss(found: Any) -> str:
    return "" if _takes(found, 3) else "It must return the function loss(model, batch, training)."


def _schedule(found: Any) -> str:
    each = found.values() if isinstance(found, Mapping) else [found]
    if all(_takes(schedule, 1) for schedule in each):
        return ""
    return "It must return a function of the update: lambda update: 1e-3, or optim.make_schedule(cfg, total_steps)."


def _takes(function: Any, arguments: int) -> bool:
    """Whether it is a plain function, or another callable, that can be called with so many arguments."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # some functions written in C do not tell
        return True
    return True


def _metrics(found: Any) -> str:
    wanted = "It must return {name: metric}, e.g. {'accuracy': metrics.Accuracy()}."
    if not isinstance(found, Mapping):
        return wanted
    for name, metric in found.items():
        if not all(hasattr(metric, part) for part in ("mode", "empty", "update", "merge", "result")):
            return f"'{name}' is {shown(metric)}, not a metric of framework.metrics. {wanted}"
    return ""


def _state(found: Any) -> str:
    return "" if isinstance(found, tf.Module) else "It must return a tf.Module, whose variables are saved."


def _exports(found: Any) -> str:
    return "" if isinstance(found, Sequence) and not isinstance(found, str) else "It must return a list of exports."


def _step(found: Any) -> str:
    return "" if _takes(found, 2) else "It must return the function step(state, batch)."


_WANTED: Mapping[str, Callable[[Any], str]] = {
    "make_data": _data,
    "make_model": _model,
    "make_loss": _loss,
    "make_schedule": _schedule,
    "make_metrics": _metrics,
    "make_state": _state,
    "make_exports": _exports,
    "make_step": _step,
}
