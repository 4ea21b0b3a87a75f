"""Prompts: the first tokens of each sequence, with -1 after shorter ones.

whole_prompt(tf.constant([[5, 8], [6, -1]]), length=3, end=2, padding=0)  # int32 [2, 3]: [[5, 8, -1], [6, -1, -1]]
"""

from typing import Any

import tensorflow as tf

from framework.errors import UserError


def whole_prompt(prefix: Any, length: int, end: int, padding: int) -> tf.Tensor:
    """Returns the prompts with a place for each token of a sequence: int32 [batch, length], -1 behind a prompt.

    Args:
      prefix: int [batch, tokens]; neither dimension need be known in a graph.
      length: most tokens of a sequence.
      end: the token that ends a sequence; nothing stands behind it, and some prompt does not end with it.
      padding: the id after the end of a sequence; no prompt ends with it.

    Raises:
      UserError: shape or dtype are others or, executed eagerly, a prompt is longer than `length`, has a number below
        -1, has -1 or `end` before a token, or ends with `padding`, or all end with `end`. A graph fails with the same
        text; an XLA program cannot fail, so there such a prompt has a token that no vocabulary has, and its scores are
        -inf.
    """
    prefix = tf.convert_to_tensor(prefix)
    if prefix.shape.rank != 2 or not prefix.dtype.is_integer:
        raise UserError(
            f"decode: prefix has shape {prefix.shape} and dtype {prefix.dtype.name}. Pass int [batch, tokens], with -1"
            " after shorter prompts."
        )
    if prefix.shape[1] is not None and prefix.shape[1] > length:
        raise UserError(f"decode: prefix has {prefix.shape[1]} tokens, but length={length}. Take a longer length.")
    prefix = tf.cast(prefix, tf.int32)
    is_token = prefix >= 0
    is_last = _is_last(prefix)
    is_end = (prefix == end) & is_token
    goes_on = tf.pad(is_token[:, 1:], [[0, 0], [0, 1]])[:, : tf.shape(prefix)[1]]  # a token follows
    has_ended = tf.reduce_any(is_end & ~goes_on, 1)
    faults = {
        f"is longer than length={length}. Take a longer length.": tf.reduce_any(is_token[:, length:], 1),
        "has a number below -1, which is no token. Write -1 behind a prompt.": tf.reduce_any(prefix < -1, 1),
        "has -1 before a token. Begin each prompt at the left, and write -1 behind it.": tf.reduce_any(
            is_token[:, 1:] & ~is_token[:, :-1], 1
        ),
        f"ends with padding={padding}. Write -1 behind it: tf.where(ids == {padding}, -1, ids). If {padding} is a token"
        " of the prompt, decode with padding=-1.": tf.reduce_any((prefix == padding) & is_token & is_last, 1),
        f"has the end token, {end}, before other tokens, which would be left out. Leave it out, or them.": (
            tf.reduce_any(is_end & goes_on, 1)
        ),
        f"ends with the end token, {end}, and so do all others: nothing would be written. Leave it out, as"
        " encode(texts) without end=True does.": has_ended & tf.reduce_all(has_ended),
    }
    for fault, has_fault in faults.items():
        prefix = _refused(prefix, has_fault, fault)
    behind = tf.fill([tf.shape(prefix)[0], tf.maximum(length - tf.shape(prefix)[1], 0)], -1)
    return tf.ensure_shape(tf.concat([prefix[:, :length], behind], 1), [prefix.shape[0], length])


def _is_last(prefix: tf.Tensor) -> tf.Tensor:
    return tf.range(tf.shape(prefix)[1]) == tf.shape(prefix)[1] - 1


def _refused(prefix: tf.Tensor, has_fault: tf.Tensor, fault: str) -> tf.Tensor:
    """Returns the prompts, of which those with a fault (bool [batch]) consist of a token that no vocabulary has."""
    if tf.executing_eagerly():
        if bool(tf.reduce_any(has_fault)):
            raise UserError(f"decode: prompt {int(tf.argmax(tf.cast(has_fault, tf.int32)))} of prefix {fault}")
        return prefix
    with tf.control_dependencies([tf.debugging.Assert(~tf.reduce_any(has_fault), [f"decode: a prompt {fault}"])]):
        return tf.where(has_fault[:, tf.newaxis], tf.int32.max, prefix)
