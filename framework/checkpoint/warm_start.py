r"""Warm start: the weights of one run for the model of another, matched by name.

    rules = parse_map((r'encoder/(.*) -> backbone/\1', 'head/.* -> '))
    taken = match(arrays, paths.variables(model), rules, 'runs/a')
    taken.sources                  # {'backbone/dense/kernel': 'encoder/dense/kernel', …}
    assign(taken, arrays, paths.variables(model))

A rule rewrites a whole path of the source. The first rule that matches a path counts; an empty replacement leaves the
variable out. A path that no rule matches keeps its name.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework import paths
from framework.errors import UserError, near


class Rule(NamedTuple):
    """An entry of `init_map`: a regex of a whole path of the source, and its replacement."""

    pattern: str
    replacement: str

    def __str__(self) -> str:
        return f"{self.pattern} -> {self.replacement}"


class Ambiguous(NamedTuple):
    """The layers with hand-made names that Keras might have made up too, `paths.ambiguous`, of both models."""

    source: Collection[str] = ()
    target: Collection[str] = ()


_UNAMBIGUOUS = Ambiguous()


_EXAMPLE = r"""Type e.g. --config.init_map="(r'encoder/(.*) -> backbone/\1', 'head/.* -> ')"."""


@dataclasses.dataclass(frozen=True)
class Match:
    """Says which variable of the source each variable of the model takes.

    Attributes:
      sources: {path in the model: path in the source}, in the order of the model.
      left: paths of the source that no variable takes.
      initial: paths of the model that keep their initial values.
    """

    sources: dict[str, str]
    left: tuple[str, ...]
    initial: tuple[str, ...]


def parse_map(texts: Sequence[Any]) -> tuple[Rule, ...]:
    """Returns the rules of `init_map`.

    Raises:
      UserError: a text is not a rule.
    """
    return tuple(_parse(str(text)) for text in texts)


def _parse(text: str) -> Rule:
    pattern, arrow, replacement = (part.strip() for part in text.partition("->"))
    if not pattern or not arrow:
        raise UserError(f"init_map: '{text}' is not a regex, '->' and a replacement. {_EXAMPLE}")
    try:
        # `pattern|` always matches, with the same groups, so it shows whether the replacement is legal.
        re.compile(f"{pattern}|").sub(replacement, "")
    except (re.error, IndexError, OverflowError) as problem:
        raise UserError(f"init_map: '{text}' is not a rule ({problem}). {_EXAMPLE}") from None
    return Rule(pattern, replacement)


def match(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, tf.Variable],
    rules: Sequence[Rule],
    name: str,
    ambiguous: Ambiguous = _UNAMBIGUOUS,
) -> Match:
    """Finds, for each variable of a model, the variable of the source that it takes.

    Args:
      source: {path in its model: values}.
      target: {path in the model: variable}.
      rules: how paths of the source are renamed.
      name: the name of the source, for messages.
      ambiguous: layers that may be named by hand in one model and by Keras in the other.

    Raises:
      UserError: a rule is the first for no variable or renames all of its variables to what the model does not have,
        two variables become one, none match, a shape or kind of number differs (the message lists both sides), or a
        layer is named by hand on one side and by Keras on the other.
    """
    renamed = {path: _renamed(path, rules) for path in source}
    for index, rule in enumerate(rules):
        if index not in {by for by, _ in renamed.values()}:
            is_hidden = any(re.fullmatch(rule.pattern, path) for path in source)
            problem = "matches only variables that earlier entries match, in" if is_hidden else "matches no variable of"
            hint = "" if is_hidden else near(rule.pattern, source)
            raise UserError(f"init_map: '{rule}' {problem} {name}.{hint} Variables: {', '.join(source)}.")
        _check_leads_somewhere(rule, {old: new for old, (by, new) in renamed.items() if by == index and new}, target)
    sources: dict[str, str] = {}
    for path, (_, new) in renamed.items():
        if new in sources:
            raise UserError(f"init_map: '{sources[new]}' and '{path}' of {name} both become '{new}'. Drop one of them.")
        if new in target:
            sources[new] = path
    if not sources:
        raise UserError(
            f"init_from={name} and the model have no variable name in common. In init_from: {', '.join(source)}; in the"
            f" model: {', '.join(target)}. {_EXAMPLE}"
        )
    sources = {path: sources[path] for path in target if path in sources}
    _check_ambiguous([path for path in sources if renamed.get(path) == (-1, path)], ambiguous, rules, name)
    _check_same(sources, source, target, rules, name)
    left = tuple(path for path in source if path not in sources.values())
    return Match(sources, left, tuple(path for path in target if path not in sources))


def _check_leads_somewhere(rule: Rule, renamed: Mapping[str, str], target: Collection[str]) -> None:
    """Raises UserError if none of the new names {old: new} that a rule gives is one of the model."""
    if renamed and not any(new in target for new in renamed.values()):
        old, new = next(iter(renamed.items()))
        raise UserError(
            f"init_map: '{rule}' renames '{old}' to '{new}', which the model does not have.{near(new, target)} To leave"
            f" it out type '{rule.pattern} -> '. Variables of the model: {', '.join(target)}."
        )


def _check_ambiguous(kept: Collection[str], ambiguous: Ambiguous, rules: Sequence[Rule], name: str) -> None:
    """Raises UserError if a path without a rule is of a layer that only one model names by hand."""
    there, here = (
        {(layer, path) for path in kept for layer in layers if path.startswith(f"{layer}/")} for layers in ambiguous
    )
    if differing := list(dict.fromkeys(layer for layer, _ in sorted(there ^ here))):
        earlier = [str(rule) for rule in rules]
        same = [rf"{re.escape(layer)}/(.*) -> {layer}/\1" for layer in differing]
        other = [f"{re.escape(layer)}/.* -> " for layer in differing]
        raise UserError(
            f"init_from={name}: the layers {', '.join(differing)} were named by hand on one side and by Keras on the"
            f' other. If they are the same layers, type --config.init_map="{_typed([*same, *earlier])}",'
            f' and if they are not, --config.init_map="{_typed([*other, *earlier])}".'
        )


def _renamed(path: str, rules: Sequence[Rule]) -> tuple[int, str]:
    """Returns the number of the first rule that matches a path, -1 for none, and the new path; '' drops it."""
    for index, rule in enumerate(rules):
        if hit := re.fullmatch(rule.pattern, path):
            return index, hit.expand(rule.replacement)
    return -1, path


def _check_same(
    sources: Mapping[str, str],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, tf.Variable],
    rules: Sequence[Rule],
    name: str,
) -> None:
    """Raises UserError if a variable and its source differ in shape or kind of number."""
    differing = []
    drops = []
    for path, origin in sources.items():
        array, variable = source[origin], target[path]
        both_floating = tf.as_dtype(array.dtype).is_floating and variable.dtype.is_floating
        if not variable.shape.is_compatible_with(array.shape) or not (both_floating or array.dtype == variable.dtype):
            there = f"{array.dtype.name}{list(array.shape)}"
            here = f"{variable.dtype.name}{variable.shape.as_list()}"
            renamed = "" if path == origin else f" (from {origin})"
            differing.append(f"{path}{renamed}: {there} there, {here} here")
            drops.append(f"{re.escape(origin)} -> ")
    if differing:
        init_map = _typed([*drops, *map(str, rules)])
        raise UserError(
            f"init_from={name} has variables of another shape: {'; '.join(differing)}. To leave them at their initial"
            f' values type --config.init_map="{init_map}".'
        )


def _typed(rules: Sequence[str]) -> str:
    """Returns rules as the text of a tuple that can be typed between double quotes in a shell."""
    texts = (f"r'{rule}'" if "\\" in rule else f"'{rule}'" for rule in rules)
    return f"({', '.join(texts)},)"


def assign(match: Match, source: Mapping[str, np.ndarray], target: Mapping[str, tf.Variable]) -> None:
    """Assigns each variable the values of its match, rounded if they are of another floating type."""
    for path, origin in match.sources.items():
        paths.assign(target[path], tf.cast(source[origin], target[path].dtype))


def weights_of(arrays: Mapping[str, np.ndarray], which: str, name: str) -> dict[str, np.ndarray]:
    """Returns the weights of a checkpoint as {path in its model: values}.

    Args:
      arrays: all arrays of the checkpoint, by path in the state.
      which: 'model' for the weights; 'ema' for the averaged weights, and the weights of variables without an average.
      name: the name of the checkpoint, for messages.

    Raises:
      UserError: `which` is 'ema' and the checkpoint has no averaged weights.
    """
    weights = _below("model/", arrays)
    if which == "model":
        return weights
    averages = _below("ema/averages/", arrays)
    if not averages:
        raise UserError(f"init_weights='ema', but {name} has no averaged weights. Use --config.init_weights=model.")
    return weights | averages


def _below(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path.removeprefix(prefix): array for path, array in arrays.items() if path.startswith(prefix)}
