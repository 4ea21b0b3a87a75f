"""Splits of ratings: which are trained on and which are held out, without a look into the future.

    split = leave_last_out(ratings)                       # {"train": indices, "valid": …, "test": …}
    train = split.source("train", ratings)                # a source, whose fingerprint has the hash of the split
    print(split.rule, len(split.parts["test"]), split.leaks(ratings))

An event is later than another if its timestamp is greater or, of equal ones, its line in the file: three quarters of
the ratings of ml-100k share the second with another one of the same user, so results depend on this order. A split by
time inside each user (`leave_last_out`) still trains on what other users did after a held-out event; `split_at_time`
does not. `fold` and `random_split` train on the future of the same users too, as all published numbers of such splits.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping

import numpy as np

from framework.data.sources import Source
from framework.errors import UserError, near

NAMES = ("last", "u1", "u2", "u3", "u4", "u5", "random", "time")  # of `by_name`


@dataclasses.dataclass(frozen=True)
class Leaks:
    """How many training ratings know more than they should.

    Attributes:
      own_future: training ratings that are later than the first held-out one of the same user.
      any_future: training ratings that are later than the first held-out one of anyone.
      repeated: held-out ratings of a user and an item of which there is a training rating.
    """

    own_future: int
    any_future: int
    repeated: int


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """Parts of a source of ratings.

    Attributes:
      rule: how the parts were made, for logs: 'u1: the first of 5 blocks of lines'.
      parts: {name: int64 indices into the ratings, ascending}; no index is in two parts. 'train' is one of them.
    """

    rule: str
    parts: Mapping[str, np.ndarray]

    def digest(self) -> str:
        """Returns the SHA-256 of the rule and of all indices."""
        digest = hashlib.sha256(self.rule.encode())
        for name, indices in self.parts.items():
            digest.update(f" {name} {len(indices)} ".encode() + indices.astype("<i8").tobytes())
        return digest.hexdigest()

    def to_json(self) -> str:
        """Returns the rule, the sizes and the digest, for a file of the run (`make_files`)."""
        sizes = {name: len(indices) for name, indices in self.parts.items()}
        return json.dumps({"rule": self.rule, "sizes": sizes, "sha256": self.digest()}, indent=1)

    def source(self, part: str, source: Source) -> "SplitSource":
        """Returns a part of a source that has one example for each rating, in the order of the ratings.

        Args:
          part: 'train', 'valid' or 'test'.
          source: the ratings, or what was computed of each rating.

        Raises:
          UserError: there is no such part, or the source is too short.
        """
        if part not in self.parts:
            raise UserError(f"the split '{self.rule}' has no part '{part}', only {', '.join(self.parts)}.")
        indices = self.parts[part]
        if len(indices) and indices[-1] >= len(source):
            raise UserError(
                f"'{source.origin}' has {len(source)} examples, but the split '{self.rule}' goes up to {indices[-1]}."
                " Give it the ratings of which the split was made."
            )
        origin = f"{source.origin}; {part} of {self.rule}"
        return SplitSource(source.take(indices), origin, source.is_subset, self.digest())

    def leaks(self, ratings: Source, part: str = "test") -> Leaks:
        """Returns what the training ratings know about the future of a held-out part, and about its ratings."""
        user, item, timestamp = rating_fields(ratings, "user", "item", "timestamp")
        user, item = user.astype(np.int64), item.astype(np.int64)
        place = _places(timestamp)
        train, held_out = self.parts["train"], self.parts[part]
        if not len(held_out):
            return Leaks(0, 0, 0)
        first = np.full(user.max() + 1, len(user))  # [users]: the place of the first held-out rating of each
        np.minimum.at(first, user[held_out], place[held_out])
        pairs = user * (item.max() + 1) + item
        return Leaks(
            own_future=int((place[train] > first[user[train]]).sum()),
            any_future=int((place[train] > place[held_out].min()).sum()),
            repeated=int(np.isin(pairs[held_out], pairs[train]).sum()),
        )


@dataclasses.dataclass(frozen=True, eq=False)
class SplitSource(Source):
    """A part of a source.

    Attributes:
      split: the digest of the split.
    """

    split: str = ""

    def fingerprint(self) -> str | None:
        """Returns the SHA-256 of some examples and of the split."""
        return hashlib.sha256(f"{super().fingerprint()} {self.split}".encode()).hexdigest()


def rating_fields(ratings: Source, *names: str) -> list[np.ndarray]:
    """Returns fields of ratings: 'user' and 'item', rows of tables from 0, and 'timestamp', numbers.

    Raises:
      UserError: a field is missing, 'user' or 'item' is no integer of at least 0, or a timestamp is a text, which sorts
        '9' after '10', or not finite, which sorts after all others.
    """
    return [_field(ratings, name) for name in names]


def _field(ratings: Source, name: str) -> np.ndarray:
    if name not in ratings.arrays:
        raise UserError(f"'{ratings.origin}' has no field '{name}', only {', '.join(ratings.arrays)}.")
    values = ratings.arrays[name]
    what = f"'{name}' of '{ratings.origin}' is {'text' if values.dtype.kind in 'OSU' else values.dtype}"
    if name != "timestamp":
        if values.dtype.kind not in "iu":
            raise UserError(
                f"{what}, not rows of a table: integers from 0. Of ids of any kind,"
                " np.unique(ids, return_inverse=True)[1] makes them."
            )
        if len(values) and values.min() < 0:
            raise UserError(f"{what}, and is {values.min()} in line {values.argmin()}. Rows of a table start at 0.")
    elif values.dtype.kind not in "iuf":
        raise UserError(f"{what}, not seconds or another number that grows with time. Write e.g. array.astype(float).")
    elif not np.isfinite(values).all():
        line = int(np.argmin(np.isfinite(values)))
        raise UserError(f"{what}, and is {values[line]} in line {line}. Leave out ratings without a time.")
    return values


def by_name(ratings: Source, name: str, held_out: str = "test", seed: int = 0) -> Split:
    """Returns a split with the parts 'train' and 'test' by a name that a config can have.

    Args:
      ratings: the ratings in the order of the file.
      name: one of NAMES: 'u1' to 'u5' (`fold`), 'random' (a fifth of the ratings), 'time' (the latest tenth), or 'last'
        (`leave_last_out`): then 'valid' is trained on.
      held_out: of 'last', 'test' or 'valid': with 'valid', 'test' is the last rating but one of each user, and the last
        one is in no part, so that settings are chosen without it.
      seed: of 'random'.

    Raises:
      UserError: there is no such name, or a part would be empty.
    """
    if name not in NAMES:
        raise UserError(f"there is no split '{name}' of ratings.{near(name, NAMES)} Splits: {', '.join(NAMES)}.")
    if name == "random":
        return random_split(ratings, 0.2, seed)
    if name == "time":
        return split_at_time(ratings, 0.1)
    if name != "last":
        return fold(ratings, int(name[1]))
    train, valid, test = (leave_last_out(ratings).parts[part] for part in ("train", "valid", "test"))
    if held_out == "valid":
        return Split("the last rating but one", {"train": train, "test": valid})
    return Split("the last rating of each user", {"train": np.sort(np.concatenate([train, valid])), "test": test})


def fold(ratings: Source, number: int, folds: int = 5) -> Split:
    """Returns a fold: block `number` of the lines of the file is 'test', the rest 'train'.

    Of ml-100k, folds 1 to 5 are the official u1 to u5: blocks of 20,000 lines. The file is not sorted by time.

    Args:
      ratings: the ratings in the order of the file.
      number: from 1 to `folds`.
      folds: the number of blocks.

    Raises:
      UserError: there is no such fold.
    """
    count = len(ratings)
    if not 1 <= number <= folds <= count:
        raise UserError(f"fold {number} of {folds} of {count} ratings: a fold is from 1 to {folds}.")
    lines = np.arange(count)
    start, stop = (count * block // folds for block in (number - 1, number))
    is_test = (start <= lines) & (lines < stop)
    return Split(f"u{number}: block {number} of {folds} of the lines", _parts(train=~is_test, test=is_test))


def random_split(ratings: Source, share: float, seed: int) -> Split:
    """Returns 'train' and 'test', drawn without replacement by NumPy's default generator.

    Args:
      ratings: the ratings.
      share: of the ratings in 'test', above 0 and below 1.
      seed: another seed is another split.

    Raises:
      UserError: the share leaves a part empty.
    """
    count = len(ratings)
    held_out = round(share * count)
    if not 0 < held_out < count:
        raise UserError(f"a share of {share:g} of {count} ratings leaves a part empty. Use a share such as 0.2.")
    is_test = np.zeros(count, bool)
    is_test[np.random.default_rng(seed).permutation(count)[:held_out]] = True
    return Split(f"random {share:.0%} of the ratings, seed {seed}", _parts(train=~is_test, test=is_test))


def leave_last_out(ratings: Source) -> Split:
    """Returns the last rating of each user as 'test', the last but one as 'valid', and the others as 'train'.

    All ratings of a user with fewer than three are in 'train'. Of equal timestamps the later line of the file is the
    later one. No rating of a user in 'train' is later than those held out; ratings of other users may be.
    """
    user, timestamp = rating_fields(ratings, "user", "timestamp")
    order = np.lexsort((np.arange(len(user)), timestamp, user))  # the last key sorts first
    from_last = np.empty(len(user), np.int64)  # 0 for the last rating of a user, 1 for the one before
    counts = np.bincount(user)
    ends = np.cumsum(counts)
    from_last[order] = ends[user[order]] - 1 - np.arange(len(user))
    is_held_out = counts[user] >= 3
    is_test, is_valid = is_held_out & (from_last == 0), is_held_out & (from_last == 1)
    parts = _parts(train=~(is_test | is_valid), valid=is_valid, test=is_test)
    return Split("the last rating of each user, and the last but one", parts)


def split_at_time(ratings: Source, share: float) -> Split:
    """Returns the latest ratings of all users together as 'test', and the earlier ones as 'train': no future at all.

    Users and films whose first rating is late are in 'test' alone. One moment splits all; ratings of that second are
    all in 'test', which therefore may have more than the share.

    Raises:
      UserError: the share leaves a part empty.
    """
    (timestamp,) = rating_fields(ratings, "timestamp")
    held_out = round(share * len(timestamp))
    moment = np.sort(timestamp)[-held_out] if 0 < held_out < len(timestamp) else timestamp.min()
    is_test = timestamp >= moment
    if is_test.all():
        raise UserError(f"a share of {share:g} of {len(timestamp)} ratings leaves a part empty. Use one such as 0.2.")
    return Split(f"the latest {share:.0%} of all ratings", _parts(train=~is_test, test=is_test))


def _parts(**masks: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.flatnonzero(mask) for name, mask in masks.items()}


def _places(timestamp: np.ndarray) -> np.ndarray:
    """Returns the place of each rating in the order of time, and of the file where times are equal."""
    places = np.empty(len(timestamp), np.int64)
    places[np.argsort(timestamp, kind="stable")] = np.arange(len(timestamp))
    return places
