"""`decode`: checks what it is given and runs the loop of a method."""

from typing import Any

import tensorflow as tf

from framework.decoding.beam import beam_search
from framework.decoding.methods import Beam, Greedy, Method, Sample
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
      prefix: prompt, int [batch, at most length]: the first tokens of each sequence, -1 after the end of a shorter
        prompt. Scores leave it out, but are -inf if a token is none of the vocabulary. None without a prompt.
      padding: the id after the end of a sequence in the result.

    Returns:
      The sequences, their lengths, log-probabilities and scores.

    Raises:
      UserError: an argument is wrong, or `step` returns something else.
      RunError: executed eagerly, if logits are no distribution (NaN); see `Task.decoded`.
    """
    if length < 1:
        raise UserError(f"decode(length={length}): length must be at least 1.")
    if not isinstance(method, Greedy | Beam | Sample):
        raise UserError(f"decode(method={method!r}): method must be Greedy(), Beam(…) or Sample(…).")
    if isinstance(method, Sample) == (rng is None):
        wrong = "draws, and needs rng" if rng is None else f"does not draw, so rng={rng!r} has no effect: leave it out"
        raise UserError(f"decode: {method} {wrong}{', e.g. rng=rng.key(7)' if rng is None else ''}.")
    task = _task(step, state, begin, end, length, padding, prefix)
    if isinstance(method, Sample):
        return single(task, state, drawn(method, rng, first_example))
    if isinstance(method, Greedy) or method.width == 1:  # one prefix has nothing to be compared with
        return single(task, state, most_probable)
    return beam_search(task, state, method)


def _task(step: Step, state: Any, begin: Any, end: int, length: int, padding: int, prefix: Any) -> Task:
    """Returns the task, whose `begin` and prompt have a row for each example."""
    known = begin if isinstance(begin, int) else None
    tokens = tf.cast(begin, tf.int32)
    if tokens.shape.rank not in (0, 1):
        raise UserError(f"decode: begin has shape {tokens.shape}. Pass a token, or int [batch].")
    whole = None if prefix is None else _whole_prefix(tf.cast(prefix, tf.int32), length)
    if tokens.shape.rank == 0:
        batch = first_dimension(state) if whole is None else first_dimension(whole)
        if batch is None:
            raise UserError("decode: the batch is unknown, because the state is empty. Pass begin as int [batch].")
        tokens = tf.fill([batch], tokens)
    if whole is not None and not whole.shape[:1].is_compatible_with(tokens.shape):
        raise UserError(f"decode: prefix has {whole.shape[0]} rows for a batch of {tokens.shape[0]}.")
    return Task(step, tokens, known, end, length, padding, whole)


def _whole_prefix(prefix: tf.Tensor, length: int) -> tf.Tensor:
    """Returns int32 [batch, length]: the prompt, and -1 behind it."""
    if prefix.shape.rank != 2 or prefix.shape[1] is None:
        raise UserError(f"decode: prefix has shape {prefix.shape}. Pass int [batch, tokens], padded with -1.")
    if prefix.shape[1] > length:
        raise UserError(f"decode: prefix has {prefix.shape[1]} tokens, but length={length}. Take a longer length.")
    return tf.pad(prefix, [[0, 0], [0, length - prefix.shape[1]]], constant_values=-1)
