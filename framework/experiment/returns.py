"""The functions of an experiment: their arguments, which of them are required, and checks of the values they return.

    FUNCTIONS["make_model"].arguments         # ("cfg",)
    make = checked(loaded.functions)
    make["make_data"](cfg, "train")           # batches, or UserError: make_data returned None. It must return …

`FUNCTIONS`, at the end, is the one table of these functions. `load` reads it before TensorFlow is loaded, so nothing
here imports TensorFlow until a returned value is checked.
"""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework.errors import UserError
from framework.experiment.user_code import KERAS_3, calling, staying


@dataclasses.dataclass(frozen=True)
class Function:
    """One function that an experiment defines.

    Attributes:
      arguments: names of the arguments that the framework passes, in order.
      doc: noun phrase for the returned value; errors say "It must return …" with it.
      check: called with a returned value and that sentence; returns what is wrong with the value, '' if nothing is.
      required: whether every experiment must define the function.
    """

    arguments: tuple[str, ...]
    doc: str
    check: Callable[[Any, str], str] = lambda returned, wanted: ""
    required: bool = False


def checked(functions: Mapping[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Returns the same functions, each raising UserError if it returns a value that a run cannot use."""
    return {name: _checked(name, function) for name, function in functions.items()}


def check_optimizer(optimizer: Any) -> None:
    """Raises UserError unless make_optimizer returned an optimizer of tf_keras that a step can apply."""
    import tf_keras as keras

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
        wanted = f"It must return {FUNCTIONS['make_optimizer'].doc}."
        raise UserError(f"make_optimizer returned {shown(optimizer)}. {KERAS_3 if is_keras_3(optimizer) else wanted}")


def check_split(batches: Any, split: str) -> None:
    """Raises UserError if a split is evaluated on batches made for training, or trained on batches made otherwise."""
    training = getattr(batches, "training", None)  # batches that make_batches did not make have no such attribute
    if training in (None, split == "train"):
        return
    how = "shuffled, endless and of data.batch_size" if training else "in file order, padded and of eval.batch_size"
    raise UserError(
        f"make_data makes the batches of '{split}' with training={training}, so they are {how}."
        " Write make_batches(source, cfg, training=split == 'train')."
    )


def shown(returned: Any) -> str:
    """Returns a short description of any value: 'None', '0.001', 'loss(model, batch)', 'a value of type list'."""
    if inspect.isfunction(returned):
        kind = "async " if inspect.iscoroutinefunction(returned) else ""
        return f"{kind}{returned.__name__}{inspect.signature(returned)}"
    is_plain = returned is None or isinstance(returned, str | int | float)
    return repr(returned) if is_plain else f"a value of type {type(returned).__name__}"


def is_keras_3(value: Any) -> bool:
    """Returns whether the class of `value`, or a class it derives from, is of the package `keras`."""
    return any(kind.__module__.partition(".")[0] == "keras" for kind in type(value).__mro__)


def _checked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    entry = FUNCTIONS[name]

    @functools.wraps(function)
    def call(*args: Any) -> Any:
        with calling(name), staying(name):
            returned = function(*args)
        if problem := entry.check(returned, f"It must return {entry.doc}."):
            raise UserError(f"{name} returned {shown(returned)}. {problem}")
        return returned

    return call


def _data(returned: Any, wanted: str) -> str:
    has_all = all(hasattr(returned, name) for name in ("batch_size", "steps_per_epoch", "at", "plan", "take"))
    return "" if has_all else wanted


def _model(returned: Any, wanted: str) -> str:
    import tensorflow as tf

    from framework import paths

    for model in paths.models(returned).values():
        if is_keras_3(model):
            return KERAS_3
        if not isinstance(model, tf.Module):
            return wanted
    for path, layer in paths.objects(returned).items():
        if is_keras_3(layer):
            return f"'{path}' in it is a Keras 3 {type(layer).__name__}. {KERAS_3}"
    return ""


def _loss(returned: Any, wanted: str) -> str:
    return "" if takes(returned, 3) else wanted


def _schedule(returned: Any, wanted: str) -> str:
    schedules = returned.values() if isinstance(returned, Mapping) else [returned]
    return "" if all(takes(schedule, 1) for schedule in schedules) else wanted


def takes(function: Any, arguments: int) -> bool:
    """Returns whether `function` can be called with this many arguments and its result need not be awaited."""
    if not callable(function) or inspect.iscoroutinefunction(function):
        return False
    try:
        inspect.signature(function).bind(*range(arguments))
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True


def _metrics(returned: Any, wanted: str) -> str:
    if not isinstance(returned, Mapping):
        return wanted
    for name, metric in returned.items():
        if not all(hasattr(metric, attribute) for attribute in ("mode", "empty", "update", "merge", "result")):
            return f"'{name}' is {shown(metric)}, not a metric of framework.metrics. {wanted}"
    return ""


def _state(returned: Any, wanted: str) -> str:
    import tensorflow as tf

    return "" if isinstance(returned, tf.Module) else wanted


def _extensions(returned: Any, wanted: str) -> str:
    import tensorflow as tf

    if not isinstance(returned, Mapping):
        return wanted
    for name, extension in returned.items():
        if not isinstance(name, str) or not isinstance(extension, tf.Module):
            return f"{name!r} is {shown(extension)}, not an optim.Extension. {wanted}"
    return ""


def _step(returned: Any, wanted: str) -> str:
    return "" if takes(returned, 2) else wanted


def _list(returned: Any, wanted: str) -> str:
    return "" if isinstance(returned, Sequence) and not isinstance(returned, str) else wanted


def _files(returned: Any, wanted: str) -> str:
    if not isinstance(returned, Mapping):
        return wanted
    for name, text in returned.items():
        if not isinstance(name, str) or name in ("", ".", "..") or "/" in name or "\0" in name:
            return f"{name!r} is not the name of a file. {wanted}"
        if not isinstance(text, str):
            return f"{name!r} is {shown(text)}, not a text. {wanted}"
    return ""


def _overrides(returned: Any, wanted: str) -> str:
    if not isinstance(returned, Mapping) or not returned:
        return wanted
    for key in returned:
        if not isinstance(key, str) or "=" in key:
            return f"{key!r} is not a key of the config. {wanted}"
    return ""


def _evaluators(returned: Any, wanted: str) -> str:
    if not isinstance(returned, Mapping):
        return wanted
    for name, evaluator in returned.items():
        if not isinstance(name, str) or not takes(evaluator, 1):
            return f"{name!r} is {shown(evaluator)}, which cannot be called as evaluator(run). {wanted}"
        modes = getattr(evaluator, "modes", {})
        if not isinstance(modes, Mapping) or not all(re.fullmatch("min|max", str(mode)) for mode in modes.values()):
            return f"'{name}' has modes={modes!r}; it must be {{scalar: 'min' or 'max'}}."
    return ""


FUNCTIONS: Mapping[str, Function] = {
    "get_config": Function(("arg",), "base_config() with the values of the experiment", required=True),
    "make_data": Function(
        ("cfg", "split"), "batches: make_batches(source, cfg, training=split == 'train')", _data, required=True
    ),
    "make_model": Function(
        ("cfg",), "a model of tf_keras or another tf.Module, or {name: model}", _model, required=True
    ),
    "make_loss": Function(("cfg",), "the function loss(model, batch, training)", _loss, required=True),
    "make_schedule": Function(
        ("cfg", "total_steps"),
        "a function of the update: lambda update: 1e-3, or optim.make_schedule(cfg, total_steps)",
        _schedule,
    ),
    "check_config": Function(("cfg",), "nothing, and raise UserError for values that do not go together"),
    "make_metrics": Function(("cfg",), "{name: metric}, e.g. {'accuracy': metrics.Accuracy()}", _metrics),
    "make_optimizer": Function(("cfg", "learning_rate"), "e.g. keras.optimizers.RMSprop(learning_rate)"),
    "make_state": Function(("cfg", "model"), "a tf.Module, whose variables are saved", _state),
    "make_extensions": Function(
        ("cfg", "model"),
        "{name: extension}, e.g. {'bounded': Bounded(model)} of a class of optim.Extension",
        _extensions,
    ),
    "make_step": Function(("cfg", "tools"), "the function step(state, batch)", _step),
    "make_exports": Function(("cfg",), "a list of exports", _list),
    "make_files": Function(("cfg",), "{file name: text}, e.g. {'vocabulary.json': words.to_json()}", _files),
    "make_hooks": Function(("cfg", "run"), "a list of hooks", _list),
    "make_writers": Function(("cfg",), "a list of writers", _list),
    "make_evaluators": Function(("cfg",), "{name: function of the run}, e.g. {'digits': digits}", _evaluators),
    "sweep": Function(
        ("trial",),
        "{key of the config: value}, e.g. {'model.hidden': trial.suggest_categorical('hidden', [64, 128])}",
        _overrides,
    ),
}
REQUIRED = tuple(name for name, function in FUNCTIONS.items() if function.required)
OPTIONAL = tuple(name for name, function in FUNCTIONS.items() if not function.required)
