"""An index of all items inside an export: features of a user in, the ids, titles and scores of the best items out.

index = retrieval.Index(ids, titles)                            # of rows 1, 2, …; row 0 is padding

def recommend(model, inputs):
    index.fill(lambda: model.item_vectors(features_of_all_items))
    history = model.film_rows(inputs["history"])
    return index.recommend(model.user_vectors(inputs), 10, seen=history)

inputs = {"history": tf.TensorSpec([None, None], tf.int64), "age": tf.TensorSpec([None])}
signature = export.Signature(recommend, inputs, has_metrics=False, uses=[index])
"""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.retrieval.top_k import ITEM_BLOCK, top_k
from framework.trace.guards import IN_RANGE


class Index(tf.Module):
    """The vectors of all items, with their ids and titles, searched exactly.

    Args:
      ids: of the items, all integers or all strings, each once; ids[i] is that of row i + 1, as in `layers.Lookup`. 0
        and the empty string fill up short lists, and are no ids.
      titles: of the items, or None.
      item_block: how many items are scored at once.

    Attributes:
      vectors: [rows, width], a variable, which an export saves; row 0 is padding. `fill` makes it.
    """

    def __init__(self, ids: Sequence[int | str], titles: Sequence[str] | None = None, item_block: int = ITEM_BLOCK):
        super().__init__()
        given = _checked(ids)
        if titles is not None and len(titles) != len(given):
            raise UserError(f"Index: {len(titles)} titles of {len(given)} ids; each id has a title.")
        self.rows = len(given) + 1
        self._ids = np.concatenate([np.zeros(1, given.dtype), given])
        self._titles = None if titles is None else np.array(["", *titles])
        self._item_block = item_block
        self.vectors: tf.Variable | None = None

    def fill(self, make_vectors: Callable[[], tf.Tensor]) -> None:
        """Sets the vectors, at once and once for each trace; an export's `fn` calls it before `recommend`.

        Args:
          make_vectors: () -> floating [rows, width], by the weights as they are; row 0 may be anything finite.
        """
        with tf.init_scope():  # outside of the graph that is being traced, which reads the result
            vectors = tf.convert_to_tensor(make_vectors())
            if vectors.shape.rank != 2 or vectors.shape[0] != self.rows:
                raise UserError(
                    f"Index.fill: vectors have shape {vectors.shape}, but {self.rows - 1} ids and the padding of row 0"
                    f" need [{self.rows}, width]."
                )
            if not np.isfinite(vectors.numpy().astype(np.float64)).all():
                raise UserError("Index.fill: vectors of items are not finite.")
            if self.vectors is None:
                self.vectors = tf.Variable(vectors, trainable=False, name="vectors")
            else:
                self.vectors.assign(vectors)

    def recommend(self, users: tf.Tensor, k: int, seen: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Returns the best items of each user, by decreasing score; of equal ones the lower row first.

        Args:
          users: floating [users, width].
          k: how many.
          seen: integer [users, length]: rows that are not returned; 0 is padding, and rows that are not in the index,
            such as those of unknown ids, do nothing.

        Returns:
          'scores' [users, k], 'ids' [users, k] and, if there are titles, 'titles' [users, k]. Where fewer than k items
          are left: -inf, 0 or '', and ''.
        """
        if self.vectors is None:
            raise UserError("Index.recommend: the index has no vectors. Call index.fill(make_vectors) before it.")
        scores, rows = top_k(tf.cast(users, self.vectors.dtype), self.vectors, k, seen, self._item_block)
        found = {"scores": scores, "ids": tf.gather(tf.constant(self._ids), rows, name=IN_RANGE)}
        if self._titles is not None:
            found["titles"] = tf.gather(tf.constant(self._titles), rows, name=IN_RANGE)
        return found


def _checked(ids: Sequence[int | str]) -> np.ndarray:
    """Returns ids as int64 or text [items].

    Raises:
      UserError: they are of two kinds or of another one, one of them is padding or beyond 64 bits, or is there twice.
    """
    given = np.asarray(ids)
    if given.dtype == object or given is not ids:  # texts of a file, or a list, where NumPy writes 1 as "1"
        given = _texts(ids) if any(isinstance(each, str) for each in ids) else given
    if given.ndim != 1 or not len(given) or given.dtype.kind not in "iuU":
        raise UserError(f"Index: ids are {given.dtype} of shape {given.shape}, but must be all integers or strings.")
    if given.dtype.kind != "U":
        if given.max() > np.iinfo(np.int64).max:
            raise UserError(f"Index: the id {given.max()} is beyond 64 bits with a sign. Use strings as ids.")
        given = given.astype(np.int64)
    unique, counts = np.unique(given, return_counts=True)
    if len(unique) < len(given):
        raise UserError(f"Index: ids have {unique[counts.argmax()].item()!r} twice, but each item has its own.")
    if (given == np.zeros(1, given.dtype)).any():
        raise UserError(f"Index: ids have {np.zeros(1, given.dtype)[0].item()!r}, which fills up short lists.")
    return given


def _texts(ids: Sequence[int | str]) -> np.ndarray:
    other = next((each for each in ids if not isinstance(each, str)), None)
    if other is not None:
        raise UserError(f"Index: ids have {other!r} among texts, but must be all integers or strings.")
    return np.array(ids, str)
