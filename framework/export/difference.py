"""The difference between the outputs of an exported artefact and those of the trained model."""

import math

import numpy as np
import tensorflow as tf

from framework.errors import UserError
from framework.export.base import Arrays
from framework.export.bounds import Bounds

_ROUNDING = 1e-6  # a column whose spread is a smaller part of its magnitude is constant


class _Columns:
    """Collects, for each column of an output, how large its errors are beside its own spread in the reference."""

    def __init__(self) -> None:
        self._origin: np.ndarray | None = None  # the first row: sums of squares lose no digits to the mean
        self._sums: np.ndarray | float = 0.0  # [count, reference, its square, square of the error][columns]
        self._largest: np.ndarray | float = 0.0

    def add(self, reference: np.ndarray, exported: np.ndarray) -> None:
        """Adds float64 [rows, columns]; values that are not finite on both sides are left out."""
        if not len(reference):
            return
        finite = np.isfinite(reference) & np.isfinite(exported)
        if self._origin is None:
            self._origin = np.where(finite[0], reference[0], 0.0)
        moved = np.where(finite, reference - self._origin, 0.0)
        error = np.where(finite, reference - exported, 0.0)
        self._sums = self._sums + np.stack([part.sum(0) for part in (finite, moved, moved**2, error**2)])
        self._largest = np.maximum(self._largest, np.where(finite, np.abs(reference), 0.0).max(0))

    def lost(self) -> int:
        """Returns how many columns a constant, their mean, would meet better than the artefact does."""
        if self._origin is None:
            return 0
        count, total, squares, errors = np.asarray(self._sums)
        count = np.maximum(count, 1)
        spread = squares - total**2 / count
        is_constant = spread <= count * (_ROUNDING * self._largest) ** 2
        return int(((errors >= spread) & ~is_constant).sum())


class Difference:
    """Collects, batch by batch, how far one output of an artefact is from that of the trained model."""

    def __init__(self, dtype: np.dtype) -> None:
        self.is_floating = tf.as_dtype(dtype).is_floating
        self.errors: list[np.ndarray] = []  # absolute errors of values that are finite on both sides
        self.gaps: list[np.ndarray] = []  # top-1 minus top-2 of the reference, in rows whose argmax differs
        self.largest = -math.inf  # of the finite values of the reference
        self.smallest = math.inf
        self.nonfinite = 0
        self.reference_nans = 0
        self.values = 0
        self.rows = 0
        self._columns: dict[int, _Columns] = {}  # by their number, which may differ from batch to batch

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
        known = reference[np.isfinite(reference)]
        self.largest = max(self.largest, known.max(initial=-math.inf))
        self.smallest = min(self.smallest, known.min(initial=math.inf))
        width = reference.shape[-1] if reference.ndim > 1 else 1
        if width:
            with np.errstate(invalid="ignore"):  # infinity minus infinity, which is left out
                self._columns.setdefault(width, _Columns()).add(
                    reference.reshape(-1, width), exported.reshape(-1, width)
                )
        if width > 1:
            self._add_argmax(reference, exported)

    def _add_argmax(self, reference: np.ndarray, exported: np.ndarray) -> None:
        self.rows += reference.size // reference.shape[-1]
        comparable = ~(np.isnan(reference) | np.isnan(exported)).any(axis=-1)
        reference, exported = reference[comparable], exported[comparable]
        reference = reference[reference.argmax(axis=-1) != exported.argmax(axis=-1)]
        second, first = np.moveaxis(np.partition(reference, -2, axis=-1)[..., -2:], -1, 0)
        self.gaps.append(first - second)

    @property
    def max_reference(self) -> float:
        """Returns the largest magnitude of the reference; 0 without a finite value."""
        return float(max(self.largest, -self.smallest, 0.0))

    @property
    def _range(self) -> float:
        """Returns the largest minus the smallest value of the reference, or the magnitude if all values are equal."""
        return float(self.largest - self.smallest if self.largest > self.smallest else self.max_reference)

    @property
    def _lost_columns(self) -> int:
        return sum(columns.lost() for columns in self._columns.values())

    def measure_as(self, whole: "Difference") -> None:
        """Takes the magnitudes of the reference from another difference, of which this one is a part."""
        self.largest, self.smallest = whole.largest, whole.smallest

    def bound(self, allowed: float | Bounds) -> float:
        """Returns the largest allowed error of a value, see `ExportHook.bound`."""
        if not self.is_floating:
            return 0.0
        return (
            allowed.max_error * self._range if isinstance(allowed, Bounds) else allowed * max(1.0, self.max_reference)
        )

    def summary(self, allowed: float | Bounds) -> dict[str, float]:
        """Returns the numbers that `ExportReport.outputs` has for an output."""
        errors = np.concatenate(self.errors)
        bound = self.bound(allowed)
        differ = sum(gaps.size for gaps in self.gaps) if self.is_floating else int(errors.sum())
        compared = self.rows if self.is_floating else self.values
        return {
            "max_error": float(errors.max(initial=0.0)),
            "p99_error": float(np.percentile(errors, 99)) if errors.size else 0.0,
            "bound": bound,
            "range": self._range if self.is_floating else 0.0,
            "max_reference": self.max_reference,
            **({"agreement": 1 - differ / compared} if compared else {}),
            "argmax_mismatches": int(sum((gaps > bound).sum() for gaps in self.gaps)),
            "nonfinite": self.nonfinite,
            **({"lost_columns": self._lost_columns} if isinstance(allowed, Bounds) and self.is_floating else {}),
        }

    def failures(self, name: str, allowed: float | Bounds, is_whole: bool = True) -> list[str]:
        """Returns one line for each way in which the outputs do not agree.

        Args:
          name: the output, as the lines name it.
          allowed: the bound of the hook.
          is_whole: False for a few examples, which with `Bounds` are compared with the artefact's own outputs in a
            larger batch: these are closer, so the largest error has the bound of the 99th percentile.
        """
        summary = self.summary(allowed)
        texts = []
        if self.reference_nans:
            texts.append(f"{name}: {self.reference_nans} of {self.values} values of the trained model are NaN")
        if self.nonfinite:
            unlike = "values are NaN or infinite, unlike those of the trained model"
            texts.append(f"{name}: {self.nonfinite} of {self.values} {unlike}")
        bound = summary["bound"]
        if isinstance(allowed, Bounds) and not is_whole:
            bound = allowed.p99_error * self._range
        if self.is_floating and summary["max_error"] > bound:
            texts.append(f"{name}: max error {summary['max_error']:.3g} exceeds the bound {bound:.3g}")
        if isinstance(allowed, Bounds):
            has_quantiles = is_whole or not self.is_floating  # of a few floating values the largest error is bound
            return texts + (self._approximation_failures(name, allowed, summary) if has_quantiles else [])
        if not self.is_floating and summary["max_error"]:
            texts.append(f"{name}: {int(np.concatenate(self.errors).sum())} of {self.values} values differ")
        if mismatches := summary["argmax_mismatches"]:
            ties = f"ties within {summary['bound']:.3g} not counted"
            texts.append(f"{name}: argmax differs in {mismatches} of {self.rows} rows, {ties}")
        return texts

    def _approximation_failures(self, name: str, allowed: Bounds, summary: dict[str, float]) -> list[str]:
        texts = []
        p99_bound = allowed.p99_error * self._range
        if self.is_floating and summary["p99_error"] > p99_bound:
            texts.append(f"{name}: p99 error {summary['p99_error']:.3g} exceeds the bound {p99_bound:.3g}")
        compared, what = (self.rows, "rows have the same argmax") if self.is_floating else (self.values, "values agree")
        differ = round((1 - summary.get("agreement", 1.0)) * compared)
        # The small number makes up for rounding: 2 of 10 are allowed to differ by an agreement of 0.8.
        may_differ = max(1.0, (1 - allowed.agreement) * compared + 1e-6) if allowed.agreement < 1 else 0
        if differ > may_differ:
            texts.append(f"{name}: {compared - differ} of {compared} {what}, below the bound {allowed.agreement:g}")
        return texts


def output_name(signature: str, key: str, signatures: int) -> str:
    """Returns the name of an output in reports of so many signatures."""
    return f"{signature}/{key}" if signatures > 1 else key


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
            name = output_name(signature, key, len(reference))
            other = exported[signature][key]
            if array.shape[:1] != (size,):
                raise UserError(f"output '{name}' has shape {array.shape} for a batch of {size}: put the batch first.")
            if (other.shape, other.dtype) != (array.shape, array.dtype):
                raise UserError(
                    f"output '{name}' is {other.dtype} {other.shape} once exported, but {array.dtype} {array.shape}"
                    " from the trained model."
                )
            differences.setdefault(name, Difference(array.dtype)).add(array, other)
