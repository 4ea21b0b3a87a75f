"""The check of `check_layer` on continuity: differences over a small step cannot see that an output jumps.

`tf.round(x)` has a gradient of 0, and so have its differences over 1e-5 nearly everywhere, while the output follows the
input. The same holds for floor, sign, argmax, comparisons and casts to integers.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from framework.testing.built_layer import PRODUCTS
from framework.testing.layer_checks import Examined

_SEGMENTS = 8  # of the line, at first
_SUSPECTS = 2  # the elements that are looked at closely
_BISECTIONS = 18  # a segment of 1/8 becomes 5e-7
_STABLE = 6  # over the last bisections a kink shrinks by 2 each, a jump stays, and a pole grows
_SMALLEST = 1e-7  # jump, of the outputs' largest magnitude
_SMOOTH = 1e-3  # what has fallen to this share of its first bend is no jump


def check_jumps(examined: Examined) -> None:
    """Along a line through the inputs and weights, no output jumps.

    The line is long: each input moves by about its magnitude, each weight by half of that. The second difference of an
    output over a segment, f(begin) - 2 f(middle) + f(end), falls by 4 with each bisection where f is smooth and by 2
    around a kink; around a jump it stays. A jump below a thousandth of the bend over an eighth of the line is missed.

    Raises:
      AssertionError: an output jumps; the message names its element and by how much.
    """
    layer = examined.layer
    if not layer.sources(layer.inputs) or not examined.upstream:
        return
    with layer.state:
        line = _Line(examined)
        points = np.linspace(-1, 1, 2 * _SEGMENTS + 1)
        values = [line.at(t) for t in points]
        segments = [
            _Segment((points[i], points[i + 2]), (values[i], values[i + 1], values[i + 2]))
            for i in range(0, 2 * _SEGMENTS, 2)
        ]
        bends = np.array([segment.bends for segment in segments])  # [segments, elements]
        smallest = _SMALLEST * max(np.max(np.abs(values), initial=0.0, where=np.isfinite(values)), 1e-300)
        for element in np.argsort(-bends.max(axis=0))[:_SUSPECTS]:
            jump = _bisected(line, segments[int(np.argmax(bends[:, element]))], int(element), smallest)
            if jump:
                height = jump / abs(line.factors[element])
                raise AssertionError(
                    f"{line.name(int(element))} jumps by {height:.3g} where inputs and weights move by 1e-6, which its"
                    " gradient does not tell. Rounding, sign, argmax, comparisons and casts to integers jump: say why"
                    " it is meant in exempt={'jumps': …}"
                )


@dataclasses.dataclass(frozen=True)
class _Segment:
    """A part of the line: its ends, and the outputs [elements] at its begin, middle and end."""

    ends: tuple[float, float]
    values: tuple[np.ndarray, np.ndarray, np.ndarray]

    @property
    def bends(self) -> np.ndarray:
        """The magnitude of each output's second difference; 0 where it is not finite."""
        begin, middle, end = self.values
        with np.errstate(invalid="ignore", over="ignore"):
            return np.nan_to_num(np.abs(begin - 2 * middle + end), nan=0.0, posinf=0.0)


class _Line:
    """The floating outputs of a layer in training along a line through its inputs and weights, from -1 to 1."""

    def __init__(self, examined: Examined) -> None:
        self._layer, self._trace = examined.layer, examined.trace
        random = np.random.default_rng(examined.subject.seed)
        self._layer.state.restore()
        self._sources = self._layer.sources(self._layer.inputs)
        self._start = {name: source.numpy() for name, source in self._sources.items()}
        self._along = {}
        for name, x in self._start.items():
            share = 1.0 if name in self._layer.inputs else 0.5
            self._along[name] = share * np.maximum(np.abs(x), np.std(x)) * random.normal(size=x.shape)
        upstream = examined.upstream
        self.factors = np.concatenate([np.ravel(x) for x in upstream.values()])
        self._shapes = {place: tuple(x.shape) for place, x in upstream.items()}

    def at(self, t: float) -> np.ndarray:
        """Returns all elements of the outputs, [elements], each times a fixed normal number."""
        self._layer.state.restore()
        inputs = dict(self._layer.inputs)
        for name, start in self._start.items():
            value = start + t * self._along[name]
            if name in inputs:
                inputs[name] = tf.constant(value)
            else:
                self._sources[name].assign(value)
        return np.asarray(self._trace(inputs)[PRODUCTS])

    def name(self, element: int) -> str:
        """Returns 'output 0[2, 3]' for an element."""
        for place, shape in self._shapes.items():
            size = int(np.prod(shape))
            if element < size:
                return f"output {place}{[int(i) for i in np.unravel_index(element, shape)]}"
            element -= size
        raise IndexError(element)


def _bisected(line: _Line, segment: _Segment, element: int, smallest: float) -> float:
    """Returns the jump of an element inside a segment; 0 if it has none."""
    bends = [segment.bends[element]]
    for _ in range(_BISECTIONS):
        (begin, end), (first, middle, last) = segment.ends, segment.values
        centre = (begin + end) / 2
        halves = (
            _Segment((begin, centre), (first, line.at((begin + centre) / 2), middle)),
            _Segment((centre, end), (middle, line.at((centre + end) / 2), last)),
        )
        segment = max(halves, key=lambda half: half.bends[element])
        bends.append(segment.bends[element])
        if bends[-1] < max(smallest, _SMOOTH * bends[0]):
            return 0.0
    return float(bends[-1]) if 0.5 < bends[-1] / bends[-1 - _STABLE] < 2 else 0.0
