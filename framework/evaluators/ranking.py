"""The exact ranking of all items for each held-out one: recall, NDCG, MRR, coverage and popularity.

    def make_evaluators(cfg):
        return {"ranking": evaluators.Ranking(seen, counts, target="film")}

The loss of the experiment returns the vectors of users among its outputs, and the model has those of all items.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

from framework import metrics, retrieval
from framework.errors import UserError
from framework.evaluators.base import Report, predictions

_SHOWN = 100  # items of each list


class Ranking:
    """Ranks all items for each held-out one, but those that the user has seen; an evaluator.

    Args:
      seen: rows of items that are left out, int [held-out examples, most], in the order of the split; 0 is padding. A
        held-out item that is among them is in no list, and counts as one that was not found; a warning says how many.
      popularity: of each item in training, [rows], such as its number of ratings; row 0 is padding.
      target: the batch's name of the held-out row.
      users: the outputs' name of the vectors of users, [batch, width]; `model.items()` returns those of all items,
        [rows, width], row 0 of padding.
      ks: cut-offs of the lists, from 1 to 100.

    Raises:
      UserError: a cut-off is out of range, or there is none; at an evaluation, a field is missing, or there are not as
        many `popularity` as items.

    Its numbers are those of `metrics.ranking`, and 'mrr' over all items.
    """

    def __init__(
        self,
        seen: np.ndarray,
        popularity: np.ndarray,
        target: str = "item",
        users: str = "users",
        ks: Sequence[int] = (10, 100),
    ) -> None:
        if not ks or min(ks) < 1 or max(ks) > _SHOWN:
            raise UserError(f"Ranking: ks={(*ks,)} is out of range: use numbers from 1 to {_SHOWN}.")
        self.seen, self.popularity = retrieval.Seen(seen), popularity
        self._target, self._users, self._ks = target, users, tuple(ks)
        self._has_warned = False
        self.modes = {f"{measure}@{ks[0]}": "max" for measure in ("recall", "ndcg")}

    def __call__(self, run: Any) -> Report:
        places, rows, target = self.ranked(run)
        scalars = metrics.ranking(rows, target[:, np.newaxis], self.popularity, ks=self._ks)
        return Report({**scalars, "mrr": float(np.mean(1 / places))})

    def ranked(self, run: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the place of each held-out item, from 1, the first 100 items, and the held-out item: rows."""
        batches, outputs = zip(*predictions(run), strict=True)
        users = np.concatenate([_field("the outputs of the loss", output, self._users) for output in outputs])
        target = np.concatenate([_field("the batch", batch, self._target) for batch in batches])
        items = tf.cast(run.model.items(), tf.float32).numpy()
        if np.shape(self.popularity) != (len(items),):
            raise UserError(
                f"Ranking: popularity has shape {np.shape(self.popularity)}, but model.items() returns {len(items)}"
                " rows. Give a number for each of them; row 0 is padding."
            )
        self._warn_of_seen(target)
        return *retrieval.ranked_of_all(users, items, target, _SHOWN, self.seen), target

    def _warn_of_seen(self, target: np.ndarray) -> None:
        """Says, once, how many held-out items are among those that are left out."""
        if self._has_warned or len(self.seen.rows) != len(target):
            return
        count = int((self.seen.rows == target[:, np.newaxis]).any(1).sum())
        if count:
            self._has_warned = True
            logging.warning(
                "Ranking: %d of %d held-out items are among the seen ones of their user, which are in no list: they"
                " count as not found. If an item may be recommended again, leave it out of `seen`",
                count,
                len(target),
            )


def _field(what: str, values: Any, name: str) -> np.ndarray:
    if name not in values:
        raise UserError(f"Ranking: {what} has no '{name}', only {', '.join(sorted(values))}.")
    return values[name]
