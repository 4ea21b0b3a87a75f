"""The layers of a run's model as a table: what each returns for a batch, and how many numbers it learns.

print(table(run))

    layer     class    output     parameters
    flatten   Flatten  [128, 784]          0
    dense     Dense    [128, 128]    100,480
    dense_1   Dense    [128, 10]       1,290
              in all                 101,770
"""

from collections.abc import Iterable, Iterator

import tensorflow as tf
import tf_keras as keras

from framework import paths
from framework.pages.listing import aligned
from framework.run.run import Run

_HEADINGS = ("layer", "class", "output", "parameters")
_MOST_CHARACTERS = 34  # of a path, a class or a shape, so that a line has about 80 columns at most
_MOST_ROWS = 16
_OPEN = (keras.Model, keras.layers.InputLayer)  # whose own layers are shown instead


def table(run: Run, most: int = _MOST_ROWS) -> str:
    """Returns the table of the layers of the model in the order of their calls, without the layers inside of layers.

    Args:
      run: as built.
      most: rows; if there are more layers, those in the middle are left out.
    """
    rows = list(_rows(run))
    if len(rows) > most:
        left_out, half = len(rows) - most + 1, most // 2
        rows[half : half + left_out] = [("…", f"{left_out} more", "", "")]
    trained = _count(paths.trainable(run.model).values())
    others = _count(paths.variables(run.model).values()) - trained
    rows.append(("", "in all", "", f"{trained:,}" + (f", and {others:,} not trainable" if others else "")))
    width = max((len(numbers.partition(",  ")[0]) for *_, numbers in rows[:-1]), default=0)
    return aligned([_HEADINGS, *((*map(_cut, names), f"{numbers:>{width}}") for *names, numbers in rows)])


def _rows(run: Run) -> Iterator[tuple[str, str, str, str]]:
    calls: dict[int, tuple[int, str]] = {}
    for place, call in enumerate(run.probe.calls):
        calls.setdefault(id(call.layer), (place, call.output))
    never = (len(run.probe.calls), "not called")
    for path, layer in sorted(_parts(run.model), key=lambda part: calls.get(id(part[1]), never)[0]):
        output = calls.get(id(layer), never)[1]
        yield path, type(layer).__name__, output, f"{_count(layer.trainable_weights):,}"


def _parts(model: keras.Model | dict[str, keras.Model]) -> Iterator[tuple[str, keras.layers.Layer]]:
    """Yields path and layer of the layers that are inside of models alone."""
    inside: list[str] = []
    for path, layer in paths.objects(model).items():
        is_part = isinstance(layer, keras.layers.Layer) and not isinstance(layer, _OPEN)
        if is_part and not any(path.startswith(f"{outer}/") for outer in inside):
            inside.append(path)
            yield path, layer


def _count(variables: Iterable[tf.Variable]) -> int:
    return sum(variable.shape.num_elements() for variable in {id(one): one for one in variables}.values())


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else f"{text[: _MOST_CHARACTERS - 1]}…"
