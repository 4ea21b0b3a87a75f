"""Compares named arrays of two computations and names the element furthest beyond its bound.

compare(("eager", "xla"), {"output 0": one}, {"output 0": other})
"""

import numpy as np

from framework.testing.function import Named

# By dtype: what another order of the same sums may change of a tensor's largest magnitude, and the dtype's eps.
_BOUNDS = {
    "float64": (1e-12, 2.0**-52),
    "float32": (1e-5, 2.0**-23),
    "float16": (4e-3, 2.0**-10),
    "bfloat16": (3e-2, 2.0**-7),
}
_MODE_ROUNDINGS = 16
GRADIENT = "gradient by "


def compare(
    sides: tuple[str, str],
    one: Named,
    other: Named,
    rtol: float | None = None,
    atol: float | None = None,
    bitwise: bool = False,
    dtype: str = "",
) -> None:
    """Compares the arrays of two computations.

    Args:
      sides: what the two computations are called.
      one: {name: array} of the first; the names of gradients begin with GRADIENT.
      other: {name: array} of the second.
      rtol: bound, relative to the largest magnitude of an array; by default that of its dtype.
      atol: added to the bound; by default 0, but for gradients 16 roundings of the largest of them all.
      bitwise: floating arrays must have the same bits too; other arrays must always be equal.
      dtype: that the arrays were computed in, whose bounds hold; by default each array's own.

    Raises:
      AssertionError: the computations disagree; the message names the element furthest beyond its bound.
    """
    pair = f"{sides[0]} and {sides[1]} disagree"
    if one.keys() != other.keys():
        names = ", ".join(sorted(one.keys() ^ other.keys()))
        raise AssertionError(f"{pair}: only {sides[0] if one.keys() > other.keys() else sides[1]} has {names}")
    largest = max((_magnitude(x) for name, x in one.items() if name.startswith(GRADIENT)), default=0.0)
    worst, message = 1.0, ""
    for name, x in one.items():
        y, bound = other[name], 0.0
        if x.shape != y.shape or x.dtype != y.dtype:
            raise AssertionError(f"{pair}: {name} is {x.dtype.name}{[*x.shape]} and {y.dtype.name}{[*y.shape]}")
        if x.dtype.name in _BOUNDS and not bitwise:
            relative, eps = _BOUNDS[dtype or x.dtype.name]
            cancelling = _MODE_ROUNDINGS * eps * largest if name.startswith(GRADIENT) else 0.0
            bound = (relative if rtol is None else rtol) * _magnitude(x) + (cancelling if atol is None else atol)
        bits = f"u{x.itemsize}"
        same = x.view(bits) == y.view(bits) if bitwise else (x == y) | ((x != x) & (y != y))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.nan_to_num(np.abs(x.astype(np.float64) - y.astype(np.float64)), nan=np.inf)
            excess = np.where(same, 0.0, difference / max(bound, 1e-300) if bound else np.inf)
        place = np.unravel_index(int(np.argmax(excess)), x.shape) if x.size else ()
        if x.size and excess[place] > worst:
            worst = float(excess[place])
            where = str([int(i) for i in place]) if place else ""
            limit = "equal bits" if bitwise else f"{bound:.3g}"
            message = f"{pair}: {name}{where} is {x[place]} and {y[place]}, a difference of {difference[place]:.3g};"
            message += f" the bound is {limit}, {int((excess > 1).sum())} of {x.size} elements are beyond it"
    if message:
        raise AssertionError(message)


def _magnitude(x: np.ndarray) -> float:
    """Returns the largest finite magnitude; 0 if there is none."""
    wide = np.abs(x.astype(np.float64))
    return float(np.max(wide, where=np.isfinite(wide), initial=0.0))
