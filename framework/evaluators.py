"""Evaluators: an experiment's own look at the weights, at each evaluation.

    from framework import evaluators

    def make_evaluators(cfg):
        def digits(run):
            confusion = np.zeros([10, 10])
            for batch, outputs in evaluators.predictions(run):
                np.add.at(confusion, (batch["label"], outputs["logits"].argmax(1)), 1)
            recall = confusion.diagonal() / confusion.sum(1)
            return evaluators.Report({"worst_recall": recall.min()}, {"confusion": confusion / confusion.max()})

        digits.modes = {"worst_recall": "max"}
        return {"digits": digits}

An evaluator is called as `evaluator(run)` after the passes over the splits, on the weights that they evaluate. What it
does to the state is put back. It is a function of the run alone: what it remembers itself is not in a checkpoint.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from framework.config import AVERAGED, base_split
from framework.errors import UserError, near


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluator returns.

    Attributes:
      scalars: {name: number}; in metrics.jsonl and TensorBoard 'eval/<evaluator>/<name>'.
      images: {name: picture or pictures}: [height, width], [height, width, channels] or [n, height, width, channels]
        with 1, 3 or 4 channels; uint8, or float from 0 to 1.
      texts: {name: Markdown, or a list of paragraphs}.
    """

    scalars: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    images: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    texts: Mapping[str, str | Sequence[str]] = dataclasses.field(default_factory=dict)


Evaluator = Callable[[Any], Report]  # of a run.build.Run
Arrays = dict[str, np.ndarray]


def predictions(run: Any, split: str | None = None, limit: int | None = None) -> Iterator[tuple[Arrays, Arrays]]:
    """Yields (batch, outputs) of an evaluation split in file order, without padding, as NumPy arrays.

    The outputs are those of the loss, by the forward pass that is compiled for evaluation; half precision is float32.

    Args:
      run: what the evaluator was called with.
      split: 'test', or 'test@ema' for the averaged weights; by default the first of `eval.splits`.
      limit: the most examples; None for all of them.

    Raises:
      UserError: there is no such split, or the limit is below 1.
    """
    split = run.config.eval.splits[0] if split is None else split
    blocks = {base_split(name): block for name, block in run.eval_blocks.items()}
    known = [*blocks, *(f"{name}{AVERAGED}" for name in blocks if run.state.ema is not None)]
    if split not in known:
        raise UserError(
            f"predictions(run, split={split!r}): there is no such split.{near(split, known)}"
            f" Splits: {', '.join(known)}."
        )
    if limit is not None and limit < 1:
        raise UserError(f"predictions(run, limit={limit}): a limit is at least 1. Leave it out for all examples.")
    return _predictions(run, blocks[base_split(split)], split.endswith(AVERAGED), limit)


def check_names(evaluators: Mapping[str, Evaluator], splits: Sequence[str]) -> None:
    """Raises UserError if an evaluator is called as a split is, below whose name its scalars would be written."""
    taken = {*splits, *map(base_split, splits), "train"}
    for name in evaluators:
        if name in taken or not re.fullmatch(r"[\w.-]+", name):
            why = "a split has that name" if name in taken else "a name has letters, digits, '_', '-' and '.'"
            raise UserError(f"make_evaluators names an evaluator '{name}', but {why}. Give it another name.")


def modes_of(evaluators: Mapping[str, Evaluator]) -> dict[str, str]:
    """Returns {'<evaluator>/<scalar>': 'min' or 'max'} of the scalars that evaluators declare in `modes`."""
    return {
        f"{name}/{scalar}": mode
        for name, evaluator in evaluators.items()
        for scalar, mode in getattr(evaluator, "modes", {}).items()
    }


def _predictions(run: Any, block: Any, is_averaged: bool, limit: int | None) -> Iterator[tuple[Arrays, Arrays]]:
    left = limit
    for step in range(block.steps):
        # Averaged weights are lent for one batch at a time: between two of them the caller may look at the model.
        with run.weights("ema" if is_averaged else "model"):
            batch, outputs = block.outputs(step, left)
        yield batch, outputs
        if left is not None:
            left -= len(batch["weight"])
            if not left:
                return
