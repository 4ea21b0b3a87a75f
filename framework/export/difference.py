"""The difference between the outputs of an exported artefact and those of the trained model."""

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.export.base import Arrays


class Difference:
    """Collects, batch by batch, how far one output of an artefact is from that of the trained model."""

    def __init__(self, dtype: np.dtype) -> None:
        self.is_floating = tf.as_dtype(dtype).is_floating
        self.errors: list[np.ndarray] = []  # absolute errors of values that are finite on both sides
        self.gaps: list[np.ndarray] = []  # top-1 minus top-2 of the reference, in rows whose argmax differs
        self.max_reference = 0.0
        self.nonfinite = 0
        self.reference_nans = 0
        self.values = 0
        self.rows = 0

    def add(self, reference: np.ndarray, exported: np.ndarray) -> None:
        """Adds the outputs of one batch; whole numbers, bools and texts are equal or not: an error of 0 or 1."""
        self.values += reference.size
        if not self.is_floating:
            self.errors.append((reference != exported).astype(np.float64).ravel())
            return
        reference, exported = reference.astype(np.float64), exported.astype(np.float64)
        finite = np.isfinite(reference) & np.isfinite(exported)
        nan = np.isnan(reference)
        same = (reference == exported) | (nan & np.isnan(exported))
        self.reference_nans += int(nan.sum())
        self.nonfinite += int((~finite & ~same).sum())
        self.errors.append(np.abs(reference[finite] - exported[finite]))
        self.max_reference = max(self.max_reference, np.abs(reference[np.isfinite(reference)]).max(initial=0.0))
        if reference.ndim > 1 and reference.shape[-1] > 1:
            self._add_argmax(reference, exported)

    def _add_argmax(self, reference: np.ndarray, exported: np.ndarray) -> None:
        self.rows += reference.size // reference.shape[-1]
        comparable = ~(np.isnan(reference) | np.isnan(exported)).any(axis=-1)
        reference, exported = reference[comparable], exported[comparable]
        reference = reference[reference.argmax(axis=-1) != exported.argmax(axis=-1)]
        second, first = np.moveaxis(np.partition(reference, -2, axis=-1)[..., -2:], -1, 0)
        self.gaps.append(first - second)

    def bound(self, relative: float) -> float:
        """Returns the largest allowed error; it grows with the largest magnitude of the reference."""
        return relative * max(1.0, self.max_reference) if self.is_floating else 0.0

    def summary(self, relative: float) -> dict[str, float]:
        """Returns the numbers that `ExportReport.outputs` has for an output."""
        errors = np.concatenate(self.errors)
        bound = self.bound(relative)
        return {
            "max_error": float(errors.max(initial=0.0)),
            "p99_error": float(np.percentile(errors, 99)) if errors.size else 0.0,
            "bound": bound,
            "max_reference": float(self.max_reference),
            "argmax_mismatches": int(sum((gaps > bound).sum() for gaps in self.gaps)),
            "nonfinite": self.nonfinite,
        }

    def failures(self, name: str, relative: float) -> list[str]:
        """Returns one line for each way in which the outputs do not agree."""
        summary = self.summary(relative)
        error = summary["max_error"]
        bound = summary["bound"]
        mismatches = summary["argmax_mismatches"]
        texts = []
        if self.reference_nans:
            texts.append(f"{name}: {self.reference_nans} of {self.values} values of the trained model are NaN")
        if self.nonfinite:
            unlike = "values are NaN or infinite, unlike those of the trained model"
            texts.append(f"{name}: {self.nonfinite} of {self.values} {unlike}")
        if error > bound and not self.is_floating:
            texts.append(f"{name}: {int(np.concatenate(self.errors).sum())} of {self.values} values differ")
        elif error > bound:
            texts.append(f"{name}: max error {error:.3g} exceeds the bound {bound:.3g}")
        if mismatches:
            texts.append(
                f"{name}: argmax differs in {mismatches} of {self.rows} rows, ties within {bound:.3g} not counted"
            )
        return texts


def add(
    differences: dict[str, Difference], reference: dict[str, Arrays], exported: dict[str, Arrays], size: int
) -> None:
    """Adds the outputs of a batch to `differences`.

    Args:
      differences: {output: difference}; an output is named '<signature>/<output>' if there are several signatures.
      reference: {signature: outputs} of the trained model.
      exported: {signature: outputs} of the artefact.
      size: number of rows of the batch.

    Raises:
      UserError: the outputs have other names, shapes or dtypes, or the batch is not their first dimension.
    """
    for signature, outputs in reference.items():
        if exported[signature].keys() != outputs.keys():
            raise UserError(
                f"signature '{signature}' returns {', '.join(sorted(exported[signature]))} once exported, but"
                f" {', '.join(sorted(outputs))} from the trained model."
            )
        for key, array in outputs.items():
            name = f"{signature}/{key}" if len(reference) > 1 else key
            other = exported[signature][key]
            if array.shape[:1] != (size,):
                raise UserError(f"output '{name}' has shape {array.shape} for a batch of {size}: put the batch first.")
            if (other.shape, other.dtype) != (array.shape, array.dtype):
                raise UserError(
                    f"output '{name}' is {other.dtype} {other.shape} once exported, but {array.dtype} {array.shape}"
                    " from the trained model."
                )
            differences.setdefault(name, Difference(array.dtype)).add(array, other)
