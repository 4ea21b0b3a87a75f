"""The shapes with the least padding: the lengths to which the examples of a data set are padded.

    lengths = np.array([[5, 9, 30], [6, 7, 28]])            # of two fields, such as the source and target of a sentence
    least_padding(lengths, count=2)                         # [[9, 7], [30, 28]]
    places(shapes, lengths)                                 # of each example in the first shape that holds it

Shapes are nested: each is at least as long in every field as the one before. Of all nested shapes, dynamic programming
finds those with the fewest places, the sum of the lengths to which all examples are padded. If examples have more than
MOST_LENGTHS different lengths in a field, shapes have so many of these.
"""

import numpy as np

MOST_LENGTHS = {1: 256, 2: 48}  # {fields: most lengths of a field that a shape may have}


def least_padding(lengths: np.ndarray, count: int) -> np.ndarray:
    """Returns at most `count` shapes, int64 [shapes, fields], the shortest first; the last holds every example.

    Args:
      lengths: int [fields, examples], of one or two fields.
      count: the most shapes.
    """
    most = MOST_LENGTHS[len(lengths)]
    grid = [_candidates(field, most) for field in lengths]
    inside = np.zeros([len(each) for each in grid], np.int64)
    np.add.at(inside, tuple(np.searchsorted(each, field) for each, field in zip(grid, lengths, strict=True)), 1)
    for axis in range(len(grid)):
        inside = np.cumsum(inside, axis)  # how many examples a shape holds
    shapes = np.stack(np.meshgrid(*grid, indexing="ij"), axis=-1).reshape(-1, len(grid))
    chosen = _nested(inside, shapes.sum(axis=1).reshape(inside.shape), count)
    return shapes[chosen]


def _candidates(lengths: np.ndarray, most: int) -> np.ndarray:
    """Returns the lengths that a shape may have: all, or `most` with about equally many examples between them."""
    values, counts = np.unique(lengths, return_counts=True)
    if len(values) <= most:
        return values
    share = (np.cumsum(counts) - 1) * most // len(lengths)
    return values[np.flatnonzero(np.diff(share, append=most))]


def _nested(inside: np.ndarray, places: np.ndarray, count: int) -> list[int]:
    """Returns at most `count` nested shapes with the fewest places in all, as flat indices of the grid of shapes.

    Args:
      inside: int, how many examples the shape of each point of the grid holds.
      places: int, how many places one of them takes there.
      count: the most shapes.
    """
    costs = inside * places  # of one shape, then of at most two, …: the places of all examples that the last one holds
    before = []
    for _ in range(1, count):
        shorter = np.full(inside.shape, -1)
        longer = costs.copy()
        for point in np.ndindex(inside.shape):
            below = tuple(slice(index + 1) for index in point)
            totals = costs[below] + (inside[point] - inside[below]) * places[point]
            least = totals.argmin()
            if totals.flat[least] < longer[point]:
                longer[point] = totals.flat[least]
                shorter[point] = np.ravel_multi_index(np.unravel_index(least, totals.shape), inside.shape)
        costs = longer
        before.append(shorter)
    chosen = [inside.size - 1]
    for shorter in reversed(before):
        if shorter.flat[chosen[0]] >= 0:
            chosen.insert(0, int(shorter.flat[chosen[0]]))
    return chosen
