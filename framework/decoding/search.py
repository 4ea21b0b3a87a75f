"""`decode`: checks what it is given and runs the loop of a method."""

import numbers
import operator
from typing import Any

import tensorflow as tf

from framework.decoding.beam import beam_search, scored
from framework.decoding.methods import Beam, Greedy, Method, Sample
from framework.decoding.prompt import whole_prompt
from framework.decoding.row_state import first_dimension
from framework.decoding.single import drawn, most_probable, single
from framework.decoding.task import Decoded, Step, Task
from framework.errors import UserError


def decode(
    step: Step,
    state: Any,
    begin: Any,
    end: int,
    length: int,
    method: Method = Greedy(),  # noqa: B008  (immutable)
    rng: Any = None,
    first_example: Any = 0,
    prefix: Any = None,
    padding: int = 0,
) -> Decoded:
    """Decodes sequences of an autoregressive model in one loop, which ends when all sequences have ended.

    Args:
      step: (tokens int32 [rows], state, position int32 scalar) -> (logits floating [rows, vocabulary], state). Position
        0 gets `begin`, and position p the token of position p - 1. An ended sequence is given `end` until all have
        ended. Log-probabilities are computed in float32.
      state: a nest of tensors whose first dimension is the batch. `Beam` repeats it to batch * width rows and gathers
        its rows at each position. A cache has one shape for all positions.
      begin: the token before the first position, or int [batch].
      end: the token that ends a sequence.
      length: most tokens of a sequence, the prompt and the end included.
      method: `Greedy()`, `Beam(…)` or `Sample(…)`.
      rng: the key of the draws of `Sample`, `framework.rng.key(seed)`, or a uint64 scalar tensor.
      first_example: number of the first example. A draw depends on (key, example, position) alone, so a batch draws
        what its parts draw.
      prefix: prompt, int [batch, at most length]: the first tokens of each sequence, -1 (not `padding`) after the end
        of a shorter prompt. Scores leave it out, but are -inf if a token is none of the vocabulary. None without a
        prompt.
      padding: the id after the end of a sequence in the result.

    Returns:
      The sequences, their lengths, log-probabilities and scores.

    Raises:
      UserError: an argument is wrong, or `step` returns something else.
      RunError: executed eagerly, if logits are no distribution (NaN); see `Task.decoded`.
    """
    length, end, padding = (
        _whole_number(name, value) for name, value in {"length": length, "end": end, "padding": padding}.items()
    )
    if length < 1:
        raise UserError(f"decode(length={length}): length must be at least 1.")
    if not isinstance(method, Greedy | Beam | Sample):
        raise UserError(f"decode(method={method!r}): method must be Greedy(), Beam(…) or Sample(…).")
    if isinstance(method, Sample) == (rng is None):
        wrong = "draws, and needs rng" if rng is None else f"does not draw, so rng={rng!r} has no effect: leave it out"
        raise UserError(f"decode: {method} {wrong}{', e.g. rng=rng.key(7)' if rng is None else ''}.")
    if isinstance(method, Sample):
        _check_key(rng)
    elif not (isinstance(first_example, numbers.Integral) and first_example == 0):
        raise UserError(f"decode: {method} does not draw, so first_example has no effect: leave it out.")
    task = _task(step, state, begin, end, length, padding, prefix)
    if isinstance(method, Sample):
        return single(task, state, drawn(method, rng, first_example))
    if isinstance(method, Greedy):
        return single(task, state, most_probable)
    if method.width == 1:  # one prefix has nothing to be compared with
        return scored(task, method, single(task, state, most_probable))
    return beam_search(task, state, method)


def _whole_number(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise UserError(f"decode({name}={value!r}): {name} must be a whole number.") from None


def _check_key(rng: Any) -> None:
    """Raises UserError unless `rng` is a key: a whole number of 64 bits, or a scalar tensor of one."""
    if tf.is_tensor(rng):
        is_key, given = rng.dtype.is_integer and rng.shape.rank in (0, None), f"{rng.dtype.name} {rng.shape}"
    else:
        given = " ".join(repr(rng).split())
        try:
            is_key = 0 <= operator.index(rng) < 2**64
        except TypeError:
            is_key = False
    if not is_key:
        raise UserError(f"decode(rng={given:.80}): rng must be the key of a seed, e.g. rng=rng.key(7).")


def _task(step: Step, state: Any, begin: Any, end: int, length: int, padding: int, prefix: Any) -> Task:
    """Returns the task, whose `begin` and prompt have a row for each example."""
    tokens = tf.convert_to_tensor(begin)
    if tokens.shape.rank not in (0, 1) or not tokens.dtype.is_integer:
        raise UserError(
            f"decode: begin has shape {tokens.shape} and dtype {tokens.dtype.name}. Pass a token, or int [batch]."
        )
    known, tokens = tf.get_static_value(tokens), tf.cast(tokens, tf.int32)
    whole = None if prefix is None else whole_prompt(prefix, length, end, padding)
    if tokens.shape.rank == 0:
        rows = first_dimension(state)
        batch = rows if whole is None else first_dimension(whole)
        if isinstance(rows, int) and isinstance(batch, int) and rows != batch:
            raise UserError(f"decode: prefix has {batch} rows for a state of {rows}. Give each sequence a prompt.")
        if batch is None:
            raise UserError("decode: the batch is unknown, because the state is empty. Pass begin as int [batch].")
        tokens = tf.fill([batch], tokens)
    if whole is not None and not whole.shape[:1].is_compatible_with(tokens.shape):
        raise UserError(f"decode: prefix has {whole.shape[0]} rows for a batch of {tokens.shape[0]}.")
    return Task(step, tokens, known, end, length, padding, whole)
