"""Checks what an experiment's `make_extensions` returned, before the first step.

    check_extensions({"bounded": Bounded(model)}, model)    # UserError names the extension and what to write

A graph calls an extension after an update alone. A step compiled by XLA calls it after every step, also after one that
was skipped, and tells it so by `applied`: an extension that passes over `applied` would give other numbers there.
"""

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from framework import paths
from framework.errors import UserError
from framework.experiment import user_code
from framework.experiment.returns import takes
from framework.optim.extension import Extension
from framework.trace.assigned import assigned, untouched


def check_extensions(extensions: Mapping[str, Extension], model: Any) -> None:
    """Raises UserError for an extension that a step cannot call, or that changes a variable after a skipped step.

    Args:
      extensions: {name: extension}, as the experiment returned it.
      model: of the experiment, or a dict of them, whose variables extensions may change.
    """
    names: dict[int, str] = {}
    for name, extension in extensions.items():
        _check_methods(name, extension)
        if (first := names.setdefault(id(extension), name)) != name:
            raise UserError(
                f"make_extensions returned one extension as '{first}' and as '{name}', which would be called twice"
                " after each update. Make one for each name, or leave a name out."
            )
    for name, extension in extensions.items():
        _check_skipped(name, extension, model)


def _check_methods(name: str, extension: Extension) -> None:
    kind = type(extension).__name__
    own = getattr(type(extension), "after_update", Extension.after_update)
    if own is Extension.after_update or not takes(extension.after_update, 3):
        fault = "has no after_update" if own is Extension.after_update else "has an after_update of other arguments"
        raise UserError(
            f"make_extensions: '{name}', of class {kind}, {fault}. Write"
            f" def after_update(self, updates, step, applied) in {kind}."
        )
    if not takes(getattr(extension, "restart", None), 0):
        raise UserError(
            f"make_extensions: '{name}', of class {kind}, has no restart without arguments."
            f" Make {kind} a class of optim.Extension, or write def restart(self) in it."
        )


def _check_skipped(name: str, extension: Extension, model: Any) -> None:
    """Raises UserError if a call makes a variable or, with `applied` False, changes one; all are put back."""

    def refuse_variable(make: Any, **arguments: Any) -> None:
        raise UserError(
            f"make_extensions: after_update of '{name}', of class {type(extension).__name__}, makes a variable, which"
            " no checkpoint has. Make it in __init__, as an attribute."
        )

    @tf.function(autograph=False)
    def skipped() -> None:
        with tf.variable_creator_scope(refuse_variable):
            extension.after_update(tf.constant(1, tf.int64), tf.constant(0, tf.int64), tf.constant(False))

    with user_code.explained():
        function = skipped.get_concrete_function()
    variables = assigned(function.graph, {"model": model, "extension": extension})
    with untouched(variables):
        before = [_bits(variable) for variable in variables]
        function()
        changed = [v for v, bits in zip(variables, before, strict=True) if _bits(v) != bits]
    if changed:
        path = _path(changed[0], extension, model)
        raise UserError(
            f"make_extensions: '{name}', of class {type(extension).__name__}, changes {path} though `applied` is False:"
            " a step compiled by XLA would change it after a skipped step. Write"
            " variable.assign(tf.where(applied, new, variable)) in after_update."
        )


def _bits(variable: tf.Variable) -> list[bytes]:
    return [copy.numpy().tobytes() for copy in paths.copies(variable)]


def _path(variable: tf.Variable, extension: Extension, model: Any) -> str:
    """Returns what a person calls a variable: 'first/kernel' of the model, or an attribute of the extension."""
    for what, owner in (("the weight", model), ("its variable", extension)):
        for path, other in paths.variables(owner).items():
            if other is variable:
                return f"{what} '{path}'"
    return f"the variable '{variable.name}'"
