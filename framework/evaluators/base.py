"""What an evaluator returns, and what it computes it from: the examples of a split and the outputs of the loss.

for batch, outputs in predictions(run, "test", limit=100):
    errors += (outputs["logits"].argmax(1) != batch["label"]).sum()
Report({"errors": errors}, images={"first": batch["image"][0]}, texts={"about": "the first 100 examples"})
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
    """Yields (batch, outputs) of an evaluation split in the order of a pass, without padding, as NumPy arrays.

    That is file order, or in buckets one bucket after the other, the shortest first. The outputs are those of the loss,
    by the forward pass that is compiled for evaluation; half precision is float32. An evaluator gets those of the pass
    that has just computed loss and metrics, which are kept on one device up to 256 MB, unless the state is no longer
    that of the pass; what is not kept is computed anew.

    Args:
      run: what the evaluator was called with.
      split: 'test', or 'test@ema' for the averaged weights; by default the first of `eval.splits`.
      limit: the most examples, the first of the pass; None for all of them.

    Raises:
      UserError: there is no such split, or the limit is below 1.
    """
    split, block, weights = _split("predictions", run, split, limit)
    return _predictions(run, split, block, weights, limit)


def examples(run: Any, split: str | None = None, limit: int | None = None) -> Iterator[Arrays]:
    """Yields the batches of an evaluation split in the order of a pass, without padding, as NumPy arrays.

    Args and errors are those of `predictions`; 'test@ema' has the examples of 'test'.
    """
    split, block, _ = _split("examples", run, split, limit)

    def of_step(step: int, left: int | None) -> tuple[Arrays]:
        return (block.examples(step, left, _kept(run, split, step)),)

    return (batch for (batch,) in _passed(block, limit, of_step))


def weights_of(run: Any, split: str | None = None) -> str:
    """Returns 'ema' or 'model': the weights that a split is evaluated on, for `run.weights`."""
    return _split("weights_of", run, split, None)[2]


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


def _split(function: str, run: Any, split: str | None, limit: int | None) -> tuple[str, Any, str]:
    """Returns a split, its evaluation, and which weights it evaluates; checks the arguments of a function."""
    split = run.config.eval.splits[0] if split is None else split
    blocks = {base_split(name): block for name, block in run.eval_blocks.items()}
    known = [*blocks, *(f"{name}{AVERAGED}" for name in blocks if run.state.ema is not None)]
    if split not in known:
        raise UserError(
            f"{function}(run, split={split!r}): there is no such split.{near(split, known)} Splits: {', '.join(known)}."
        )
    if limit is not None and limit < 1:
        raise UserError(f"{function}(run, limit={limit}): a limit is at least 1. Leave it out for all examples.")
    return split, blocks[base_split(split)], "ema" if split.endswith(AVERAGED) else "model"


def _kept(run: Any, split: str, step: int) -> Any:
    """Returns the batch of a step and the outputs for it, if the evaluation that is going on has them, or None."""
    return None if run.kept is None else run.kept.get(split, step)


def _predictions(run: Any, split: str, block: Any, weights: str, limit: int | None) -> Iterator[tuple[Arrays, Arrays]]:
    def outputs(step: int, left: int | None) -> tuple[Arrays, Arrays]:
        kept = _kept(run, split, step)
        if kept is not None:
            return block.outputs(step, left, kept)
        # Averaged weights are lent for one batch at a time: between two of them the caller may look at the model.
        with run.weights(weights):
            return block.outputs(step, left)

    return _passed(block, limit, outputs)


def _passed(block: Any, limit: int | None, of_step: Callable[[int, int | None], Any]) -> Iterator[Any]:
    """Yields `of_step(step, examples left)`, whose first member is a batch, for the steps of a pass."""
    left = limit
    for step in range(block.steps):
        found = of_step(step, left)
        yield found
        if left is not None:
            left -= len(found[0]["weight"])
            if not left:
                return
