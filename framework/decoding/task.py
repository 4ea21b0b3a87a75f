"""What is decoded: the model's step, begin, end and prompt, and the log-probabilities that one call of the step gives.

task = Task(step, begin, end=2, length=64, padding=0, prefix=None)
log_probabilities, is_invalid, leaves = task.advance(tokens, state, leaves, position)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf

from framework.decoding.row_state import RowState
from framework.errors import RunError, UserError
from framework.layers.transformer import stepping

# (tokens int32 [rows], state, position int32 scalar) -> (logits floating [rows, vocabulary], state)
Step = Callable[[tf.Tensor, Any, tf.Tensor], tuple[tf.Tensor, Any]]

_INVALID = (
    "decode: the logits of a sequence are NaN, +inf or -inf everywhere, so no token is the most probable. Look for NaN"
    " in the weights and inputs of the model."
)


class Decoded(NamedTuple):
    """Decoded sequences, the best of each example first.

    Attributes:
      ids: int32 [batch, n_best, length]; the prompt and the end token included, `padding` after the end.
      lengths: int32 [batch, n_best]; tokens of a sequence, the prompt and the end token included. 0 for a sequence that
        does not exist, because the model has fewer than n_best; its log-probability and score are -inf.
      log_probabilities: float32 [batch, n_best]; the sum over the tokens after the prompt.
      scores: float32 [batch, n_best]; the log-probabilities, by `Beam` divided by its length penalty.
      steps: int32 scalar; how often `step` was called, at most `length`.
    """

    ids: tf.Tensor
    lengths: tf.Tensor
    log_probabilities: tf.Tensor
    scores: tf.Tensor
    steps: tf.Tensor


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """What is decoded.

    Attributes:
      step: the model.
      begin: int32 [batch], the token before the first position.
      known_begin: the numbers of `begin`, if they are known when the step is traced.
      end: the token that ends a sequence.
      length: most tokens of a sequence.
      padding: the id after the end.
      prefix: int32 [batch, length] of `whole_prompt`; None without a prompt.
    """

    step: Step
    begin: tf.Tensor
    known_begin: np.ndarray | None
    end: int
    length: int
    padding: int
    prefix: tf.Tensor | None

    @property
    def batch(self) -> Any:
        """The number of examples, an int if it is known."""
        return tf.shape(self.begin)[0] if self.begin.shape[0] is None else self.begin.shape[0]

    @property
    def prefix_lengths(self) -> tf.Tensor:
        """int32 [batch], the tokens of each prompt."""
        if self.prefix is None:
            return tf.zeros_like(self.begin)
        return tf.reduce_sum(tf.cast(self.prefix >= 0, tf.int32), axis=1)

    def advance(
        self, tokens: tf.Tensor, state: RowState, leaves: Sequence[tf.Tensor], position: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, list[tf.Tensor]]:
        """Calls the step once.

        Returns:
          Log-probabilities, float32 [rows, vocabulary], in a prompt 0 for its token and -inf for the others; whether
          the logits of a row are no distribution, bool [rows], whose log-probabilities are -inf; the new leaves.
        """
        with stepping(self.length):
            returned = self.step(tokens, state.nest(leaves), position)
        if not isinstance(returned, tuple | list) or len(returned) != 2:
            raise UserError(
                f"decode: step returned {type(returned).__name__}. Return a pair, the logits and the new state."
            )
        logits = self._checked(tf.convert_to_tensor(returned[0]), tokens)
        new = state.leaves_of(returned[1], leaves)
        values = tf.nn.log_softmax(tf.cast(logits, tf.float32))
        is_invalid = tf.reduce_any(tf.math.is_nan(values), axis=1)
        values = tf.where(is_invalid[:, tf.newaxis], -np.inf, values)
        return self._forced(values, position), is_invalid, new

    def _checked(self, logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
        vocabulary = logits.shape[-1] if logits.shape.rank == 2 else None
        if vocabulary is None or not logits.dtype.is_floating:
            raise UserError(
                f"decode: step returned {logits.dtype.name} {logits.shape} as logits. Return floating"
                " [rows, vocabulary] with a static vocabulary."
            )
        for name, given in (("begin", self.known_begin), ("end", self.end)):
            for token in [] if given is None else np.ravel(given).tolist():
                if not 0 <= token < vocabulary:
                    raise UserError(
                        f"decode({name}={token}): the vocabulary of the logits has ids 0 to {vocabulary - 1}."
                    )
        known = None if self.prefix is None else tf.get_static_value(self.prefix)
        if known is not None and known.max() >= vocabulary:
            raise UserError(
                f"decode: prefix has the token {known.max()}, but the vocabulary of the logits has ids 0 to"
                f" {vocabulary - 1}."
            )
        if not logits.shape[:1].is_compatible_with(tokens.shape):
            raise UserError(f"decode: step returned logits {logits.shape} for {tokens.shape[0]} rows.")
        return tf.ensure_shape(logits, [tokens.shape[0], vocabulary])

    def _forced(self, values: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
        """Returns the log-probabilities, in a prompt those of its token alone."""
        if self.prefix is None:
            return values
        vocabulary = values.shape[1]
        forced = tf.gather(self.prefix, position, axis=1)  # [batch]
        only = tf.where(tf.range(vocabulary) == forced[:, tf.newaxis], 0.0, -np.inf)  # [batch, vocabulary]
        by_example = tf.reshape(values, [self.batch, -1, vocabulary])
        chosen = tf.where(forced[:, tf.newaxis, tf.newaxis] >= 0, only[:, tf.newaxis], by_example)
        return tf.reshape(chosen, tf.shape(values))

    def decoded(self, result: Decoded, is_invalid: tf.Tensor) -> Decoded:
        """Returns the result, in which the scores of an example without valid logits are NaN.

        Raises:
          RunError: executed eagerly, if an example has no valid logits. A graph fails with the same text; an XLA
            program cannot fail, so there the NaN is all that tells of it.
        """
        if tf.executing_eagerly():
            if bool(tf.reduce_any(is_invalid)):
                raise RunError(_INVALID)
            return result
        marked = is_invalid[:, tf.newaxis]
        with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(is_invalid), [_INVALID])]):
            return result._replace(
                ids=tf.identity(result.ids),
                log_probabilities=tf.where(marked, np.nan, result.log_probabilities),
                scores=tf.where(marked, np.nan, result.scores),
            )


def write(ids: tf.Tensor, tokens: tf.Tensor, position: tf.Tensor) -> tf.Tensor:
    """Returns ids [..., length] with tokens [...] at a position."""
    is_here = tf.range(ids.shape[-1]) == position
    return tf.ensure_shape(tf.where(is_here, tokens[..., tf.newaxis], ids), ids.shape)
