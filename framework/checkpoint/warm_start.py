r"""Weights of one run for the model of another, matched by name: fine-tuning.

    rules = parse_map((r'encoder/(.*) -> backbone/\1', 'head/.* -> '))
    taken = match(arrays, paths.variables(model), rules)
    taken.sources                  # {'backbone/dense/kernel': 'encoder/dense/kernel', …}
    assign(taken, arrays, paths.variables(model))

A rule rewrites a whole path of the source; the first that matches counts, and an empty replacement leaves the variable
out. A path that no rule matches keeps its name.
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from framework import paths
from framework.errors import UserError, near

# (regex of a whole path, replacement)
Rule = tuple[str, str]

_EXAMPLE = r"""Type e.g. --config.init_map="(r'encoder/(.*) -> backbone/\1', 'head/.* -> ')"."""


@dataclasses.dataclass(frozen=True)
class Match:
    """What goes where.

    Attributes:
      sources: {path in the model: path in the source}, in the order of the model.
      left: paths of the source that are not taken.
      initial: paths of the model that keep their initial values.
    """

    sources: dict[str, str]
    left: tuple[str, ...]
    initial: tuple[str, ...]


def parse_map(texts: Sequence[Any]) -> tuple[Rule, ...]:
    """The rules of `init_map`.

    Raises:
      UserError: names the first text that is none.
    """
    return tuple(_parse(str(text)) for text in texts)


def _parse(text: str) -> Rule:
    pattern, arrow, replacement = (part.strip() for part in text.partition("->"))
    if not pattern or not arrow:
        raise UserError(f"init_map: '{text}' is not a regex, '->' and a replacement. {_EXAMPLE}")
    try:
        # The pattern or nothing: an expression that always matches, with the same groups, to try the replacement on.
        re.compile(f"{pattern}|").sub(replacement, "")
    except (re.error, IndexError, OverflowError) as problem:
        raise UserError(f"init_map: '{text}' is no rule ({problem}). {_EXAMPLE}") from None
    return pattern, replacement


def match(
    source: Mapping[str, np.ndarray],
    target: Mapping[str, tf.Variable],
    rules: Sequence[Rule],
    name: str,
    named: tuple[Collection[str], Collection[str]] = ((), ()),
) -> Match:
    """Finds for each variable of a model the one of the source that it takes.

    Args:
      source: {path in its model: values}.
      target: {path in the model: variable}.
      name: of the source, for messages.
      named: `paths.ambiguous` of the source's model and of this one.

    Raises:
      UserError: a rule that is the first for no variable, two variables for one, none at all, or another shape or kind
        of number (both sides are listed); a layer with a name of its own on one side that Keras made up on the other.
    """
    renamed = {path: _renamed(path, rules) for path in source}
    for index, (pattern, replacement) in enumerate(rules):
        if index not in {by for by, _ in renamed.values()}:
            taken = any(re.fullmatch(pattern, path) for path in source)
            problem = "matches only what entries before it match" if taken else "matches no variable"
            hint = "" if taken else near(pattern, source)
            raise UserError(
                f"init_map: '{pattern} -> {replacement}' {problem} of {name}.{hint} Variables: {', '.join(source)}."
            )
    sources: dict[str, str] = {}
    for path, (_, new) in renamed.items():
        if new in sources:
            raise UserError(f"init_map: '{sources[new]}' and '{path}' of {name} both become '{new}'. Drop one of them.")
        if new in target:
            sources[new] = path
    if not sources:
        raise UserError(
            f"init_from={name} has no variable of a name that the model has. There: {', '.join(source)}; here:"
            f" {', '.join(target)}. {_EXAMPLE}"
        )
    sources = {path: sources[path] for path in target if path in sources}
    _check_named([path for path in sources if renamed.get(path) == (-1, path)], named, rules, name)
    _check_same(sources, source, target, rules, name)
    left = tuple(path for path in source if path not in sources.values())
    return Match(sources, left, tuple(path for path in target if path not in sources))


def _check_named(
    kept: Collection[str], named: tuple[Collection[str], Collection[str]], rules: Sequence[Rule], name: str
) -> None:
    """Raises UserError where a path is, on one side alone, that of a layer with a name of its own."""
    there, here = ({(layer, path) for path in kept for layer in side if path.startswith(f"{layer}/")} for side in named)
    if differing := list(dict.fromkeys(layer for layer, _ in sorted(there ^ here))):
        earlier = [f"{pattern} -> {replacement}" for pattern, replacement in rules]
        same = [rf"{re.escape(layer)}/(.*) -> {layer}/\1" for layer in differing]
        other = [f"{re.escape(layer)}/.* -> " for layer in differing]
        raise UserError(
            f"init_from={name}: the layers {', '.join(differing)} have a name of their own on one side and one that"
            f' Keras made up on the other. If they are the same, type --config.init_map="{_typed([*same, *earlier])}",'
            f' and if they are not, --config.init_map="{_typed([*other, *earlier])}".'
        )


def _renamed(path: str, rules: Sequence[Rule]) -> tuple[int, str]:
    """Which rule is the first to match a path, -1 for none, and what becomes of it; '' if it is dropped."""
    for index, (pattern, replacement) in enumerate(rules):
        found = re.fullmatch(pattern, path)
        if found:
            return index, found.expand(replacement)
    return -1, path


def _check_same(
    sources: Mapping[str, str],
    source: Mapping[str, np.ndarray],
    target: Mapping[str, tf.Variable],
    rules: Sequence[Rule],
    name: str,
) -> None:
    differing, drops = [], []
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
        whole = _typed([*drops, *(f"{pattern} -> {replacement}" for pattern, replacement in rules)])
        raise UserError(
            f"init_from={name} has variables of another shape: {'; '.join(differing)}. To leave them at their initial"
            f' values type --config.init_map="{whole}".'
        )


def _typed(rules: Sequence[str]) -> str:
    """Rules as a tuple that survives double quotes of a shell, which leave a backslash in a raw string alone."""
    texts = (f"r'{rule}'" if "\\" in rule else f"'{rule}'" for rule in rules)
    return f"({', '.join(texts)},)"


def assign(found: Match, source: Mapping[str, np.ndarray], target: Mapping[str, tf.Variable]) -> None:
    """Gives each variable its values; those of another floating type are rounded."""
    for path, origin in found.sources.items():
        paths.assign(target[path], tf.cast(source[origin], target[path].dtype))


def weights_of(arrays: Mapping[str, np.ndarray], which: str, name: str) -> dict[str, np.ndarray]:
    """{path in its model: values} of a checkpoint.

    Args:
      arrays: all of the checkpoint, by path in the state.
      which: 'model', or 'ema' for the averaged weights where there are some.
      name: of the checkpoint, for messages.

    Raises:
      UserError: it has no averaged weights.
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
