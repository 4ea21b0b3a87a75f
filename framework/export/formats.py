"""The export hooks of a run by their names: those of `make_exports`, and formats that are made of them.

hooks = select(run.exports, ["saved_model", "lite_int8"])
"""

import dataclasses
from collections.abc import Sequence

from framework.errors import UserError, near
from framework.export.base import ExportHook
from framework.export.lite import Lite
from framework.export.lite_decoder import LiteDecoder
from framework.export.lite_formats import FORMATS
from framework.export.lite_rules import KINDS, LiteByRules, LiteRule
from framework.export.saved_model import SavedModel


def available(hooks: Sequence[ExportHook]) -> dict[str, ExportHook]:
    """Returns {name: hook} of the hooks, and of formats made of them.

    Those are the other formats of each float32 `Lite` and `LiteDecoder`, 'lite_int8' of 'lite'; of a `Lite` the same
    with all weights in int8 or int4 and float32 arithmetic, 'lite_weights8' and 'lite_weights4'; and XLA programs of
    each `SavedModel`, 'saved_model_xla' of 'saved_model'.
    """
    found = {hook.name: hook for hook in hooks}
    for hook in hooks:
        for made in _made_of(hook):
            found.setdefault(made.name, made)
    return found


def _made_of(hook: ExportHook) -> list[ExportHook]:
    """Returns the hooks of the same signatures in other formats."""
    if isinstance(hook, SavedModel) and not hook.jit_compile:
        return [dataclasses.replace(hook, jit_compile=True, name=f"{hook.name}_xla")]
    if not isinstance(hook, Lite | LiteDecoder) or hook.format != "float32":
        return []
    is_decoder = isinstance(hook, LiteDecoder)
    kinds = [kind for kind in FORMATS if kind != hook.format and not (is_decoder and kind == "int8_io")]
    made: list[ExportHook] = [
        dataclasses.replace(hook, format=kind, bound=FORMATS[kind].bound, name=f"{hook.name}_{kind}") for kind in kinds
    ]
    if isinstance(hook, Lite):
        for bits in KINDS["weights"]:
            made.append(LiteByRules(hook.signature, [LiteRule("weights", bits)], f"{hook.name}_weights{bits}"))
    return made


def select(hooks: Sequence[ExportHook], names: Sequence[str]) -> list[ExportHook]:
    """Returns the hooks of the names, in their order.

    Raises:
      UserError: there is no such format, or one is named twice.
    """
    known = available(hooks)
    for name in names:
        if name not in known:
            raise UserError(
                f"--formats: there is no format '{name}'.{near(name, known)} This experiment has {', '.join(known)}."
            )
        if names.count(name) > 1:
            raise UserError(f"--formats names {name} twice. Leave one out.")
    return [known[name] for name in names]
