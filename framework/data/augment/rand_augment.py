"""RandAugment: a few operations drawn for each picture from a list, all with one magnitude.

    Chain(PadAndCrop(4), Flip(), RandAugment(operations=2, magnitude=9), Normalise(mean, std))

Source: Cubuk et al., 2019, "RandAugment: practical automated data augmentation with a reduced search space". The list
and the strengths are those of torchvision. With m = magnitude / 30:

| operation | strength |
|---|---|
| identity | - |
| shear_x, shear_y | +-0.3 m pixels a pixel, from the upper left corner |
| translate_x, translate_y | +-150/331 m of the width or height, in whole pixels |
| rotate | +-30 m degrees about the centre |
| brightness, color, contrast, sharpness | factor 1 +- 0.9 m: to black, to grey, to the mean grey, to a blur |
| posterize | keeps 8 - round(4 m) bits |
| solarize | inverts values of at least 255 (1 - m) |
| autocontrast | stretches each channel to 0 … 255 |
| equalize | equalises the histogram of each channel |

Each round has three passes over the pixels, of which an operation uses one: a move of pixels, a blend with grey or with
a blurred picture, and a table of 256 values for each channel.
"""

import dataclasses

import numpy as np
import tensorflow as tf

from framework.data.augment.base import Augmentation, choose, column, count
from framework.data.augment.colour import blend, grey
from framework.data.augment.draws import below, check_between
from framework.data.augment.sampling import affine
from framework.data.fields import Batch
from framework.errors import UserError, near
from framework.trace.guards import IN_RANGE

MOVES = ("shear_x", "shear_y", "translate_x", "translate_y", "rotate")
BLENDS = ("color", "sharpness")
TABLES = ("brightness", "posterize", "solarize", "contrast", "autocontrast", "equalize")
OPERATIONS = ("identity", *MOVES, *BLENDS, *TABLES)

_LARGEST = 30  # magnitude
_LEVELS = 256


@dataclasses.dataclass(frozen=True)
class RandAugment(Augmentation):
    """Applies operations, each drawn from a list for each picture, with a sign drawn where there is one.

    The pictures are uint8 with 1 or 3 channels; what comes from beyond the edge is black, and values are rounded.

    Attributes:
      operations: how many are applied to a picture, one after the other; one may come twice.
      magnitude: strength of all of them, 0 to 30.
      among: names of the operations that are drawn, of OPERATIONS.
    """

    operations: int = 2
    magnitude: float = 9.0
    among: tuple[str, ...] = OPERATIONS

    def __post_init__(self) -> None:
        check_between("RandAugment: operations", self.operations, 0, 16)
        check_between("RandAugment: magnitude", self.magnitude, 0, _LARGEST)
        for name in self.among:
            if name not in OPERATIONS:
                raise UserError(f"augment.RandAugment: there is no operation '{name}'.{near(name, OPERATIONS)}")
        if not self.among:
            raise UserError("augment.RandAugment: among=() has no operation.")

    def draw(self, batch: Batch) -> tuple[tf.Tensor, ...]:
        """Returns int32 [batch, operations]: 2 * operation + sign, with the operation's place in `among`."""
        images = batch[self.field]
        if images.dtype != tf.uint8 or images.shape[-1] not in (1, 3):
            raise UserError(
                f"augment.RandAugment: '{self.field}' is {images.dtype.name} with {images.shape[-1]} channels, but must"
                " be uint8 with 1 or 3. Put RandAugment before Normalise and before casts."
            )
        return (below(self.stream, images, self.operations, 2 * len(self.among)),)

    def change(self, images: tf.Tensor, *drawn: tf.Tensor) -> tf.Tensor:
        def take_round(place: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            return place + 1, self._changed_once(images, tf.gather(drawn[0], place, axis=1))

        # In a loop, XLA compiles one round, and computes nothing of a round again in the next.
        start = (tf.constant(0), images)
        return tf.while_loop(lambda place, _: place < self.operations, take_round, start, parallel_iterations=1)[1]

    def _changed_once(self, images: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        for names, step in ((MOVES, self._moved), (BLENDS, self._blended), (TABLES, self._looked_up)):
            if set(self.among) & set(names):
                images = tf.ensure_shape(kept(step(images, choice)), images.shape)
        return images

    def _moved(self, images: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        height, width = images.shape[1:3]
        rows = [move(name, sign * self.magnitude, height, width) for name in self.among for sign in (1, -1)]
        matrices = tf.gather(tf.constant(np.array(rows, np.float32)), choice)
        return affine(images, matrices, "constant", 0.0, "nearest")

    def _blended(self, images: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        values, base = tf.cast(images, tf.float32), tf.cast(images, tf.float32)
        if "color" in self.among:
            base = choose(self._is("color", choice), tf.broadcast_to(grey(values), tf.shape(values)), base)
        if "sharpness" in self.among:
            base = choose(self._is("sharpness", choice), blurred(values), base)
        blended = blend(base, values, column(self._factors(choice), 4))
        return tf.cast(tf.clip_by_value(tf.round(blended), 0, 255), tf.uint8)

    def _looked_up(self, images: tf.Tensor, choice: tf.Tensor) -> tf.Tensor:
        """Returns the pictures through the table of 256 values that the choice means for each channel."""
        channels = images.shape[-1]
        fixed = [level_table(name, sign * self.magnitude) for name in self.among for sign in (1, -1)]
        tables = tf.gather(tf.constant(np.array(fixed, np.uint8)), choice)[:, tf.newaxis]
        tables = tf.repeat(tables, channels, axis=1)  # [batch, channels, 256]
        values = tf.cast(images, tf.float32)
        if "contrast" in self.among:
            middle = tf.reduce_mean(grey(values), axis=[1, 2, 3])[:, tf.newaxis, tf.newaxis]
            stretched = blend(middle, tf.range(_LEVELS, dtype=tf.float32), column(self._factors(choice), 3))
            stretched = tf.repeat(_bytes(stretched), channels, axis=1)
            tables = choose(self._is("contrast", choice), stretched, tables)
        if "autocontrast" in self.among:
            low, high = (fn(values, axis=[1, 2])[..., tf.newaxis] for fn in (tf.reduce_min, tf.reduce_max))
            scale = tf.where(high > low, 255 / tf.maximum(high - low, 1), 1.0)
            low = tf.where(high > low, low, 0.0)
            stretched = _bytes((tf.range(_LEVELS, dtype=tf.float32) - low) * scale)
            tables = choose(self._is("autocontrast", choice), stretched, tables)
        if "equalize" in self.among:
            tables = choose(self._is("equalize", choice), equalising(images), tables)
        changed = tf.gather(tf.reshape(kept(tables), [-1]), _place_in_tables(images), name=IN_RANGE)
        return tf.reshape(changed, tf.shape(images))

    def _is(self, name: str, choice: tf.Tensor) -> tf.Tensor:
        return choice // 2 == self.among.index(name)

    def _factors(self, choice: tf.Tensor) -> tf.Tensor:
        """Returns the factor of the blend that is drawn, float32 [batch]; 1 for operations without one."""
        with_factor = ("brightness", "contrast", *BLENDS)
        strength = 0.9 * self.magnitude / _LARGEST
        factors = [1 + sign * strength * (name in with_factor) for name in self.among for sign in (1, -1)]
        return tf.gather(tf.constant(factors, tf.float32), choice)


def move(name: str, magnitude: float, height: int, width: int) -> list[float]:
    """Returns the map from the new picture to the source of an operation, as in `sampling.affine`; of others, none.

    Args:
      name: of OPERATIONS.
      magnitude: with the sign that is drawn, -30 to 30.
    """
    m = magnitude / _LARGEST
    if name == "shear_x":
        return [1, 0.3 * m, 0, 0, 1, 0]
    if name == "shear_y":
        return [1, 0, 0, 0.3 * m, 1, 0]
    if name == "translate_x":
        return [1, 0, int(150 / 331 * m * width), 0, 1, 0]
    if name == "translate_y":
        return [1, 0, 0, 0, 1, int(150 / 331 * m * height)]
    if name == "rotate":
        cosine, sine = np.cos(np.radians(30 * m)), np.sin(np.radians(30 * m))
        x, y = (width - 1) / 2, (height - 1) / 2
        return [cosine, -sine, x - cosine * x + sine * y, sine, cosine, y - sine * x - cosine * y]
    return [1, 0, 0, 0, 1, 0]


def level_table(name: str, magnitude: float) -> np.ndarray:
    """Returns the new value of each of 256 values, for operations that are the same for every picture; of others, none.

    Args:
      name: of OPERATIONS.
      magnitude: with the sign that is drawn, -30 to 30; posterize and solarize have none.
    """
    levels, m = np.arange(_LEVELS), magnitude / _LARGEST
    if name == "brightness":
        return np.clip(np.rint(levels * (1 + 0.9 * m)), 0, 255)
    if name == "posterize":
        dropped = round(4 * abs(m))
        return levels >> dropped << dropped
    if name == "solarize":
        return np.where(levels >= 255 * (1 - abs(m)), 255 - levels, levels)
    return levels


def blurred(values: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the 3 x 3 pixels around each, where the pixel itself counts 5 times; the edge stays."""
    rows, columns = values.shape[1:3]
    if min(rows, columns) < 3:
        return values
    of_three_rows = values[:, :-2] + values[:, 1:-1] + values[:, 2:]
    total = of_three_rows[:, :, :-2] + of_three_rows[:, :, 1:-1] + of_three_rows[:, :, 2:]
    mean = (total + 4 * values[:, 1:-1, 1:-1]) * (1 / 13)
    is_row, is_column = (tf.range(size) % (size - 1) > 0 for size in (rows, columns))  # no edge
    is_inside = (is_row[:, tf.newaxis] & is_column)[..., tf.newaxis]
    return tf.where(is_inside, tf.pad(mean, [[0, 0], [1, 1], [1, 1], [0, 0]]), values)


def equalising(images: tf.Tensor) -> tf.Tensor:
    """Returns the tables by which the values of each channel become equally frequent, uint8 [batch, channels, 256].

    As in PIL: value v becomes (number of smaller values + step // 2) // step, with 255 steps for all but the values of
    the largest level. A channel with a step of 0 stays as it is.
    """
    channels, examples = images.shape[-1], count(images)
    places = tf.reshape(_place_in_tables(images), [-1])
    counts = tf.math.unsorted_segment_sum(tf.ones_like(places), places, examples * channels * _LEVELS, name=IN_RANGE)
    counts = tf.reshape(counts, [-1, _LEVELS])
    levels = tf.range(_LEVELS)
    largest = tf.reduce_max(tf.where(counts > 0, levels, 0), axis=1, keepdims=True)
    of_largest = tf.reduce_sum(tf.where(levels == largest, counts, 0), axis=1, keepdims=True)
    step = (tf.reduce_sum(counts, axis=1, keepdims=True) - of_largest) // 255
    smaller = tf.cumsum(counts, axis=1, exclusive=True)
    equal = tf.math.floordiv(smaller + step // 2, tf.maximum(step, 1), name=IN_RANGE)
    equal = tf.clip_by_value(equal, 0, 255)
    return tf.cast(tf.reshape(tf.where(step > 0, equal, levels), [-1, channels, _LEVELS]), tf.uint8)


def _place_in_tables(images: tf.Tensor) -> tf.Tensor:
    """Returns the place of each value in tables [batch, channels, 256] that are laid end to end, int32."""
    channels = images.shape[-1]
    first = column(tf.range(count(images)), 4) * channels + tf.range(channels)
    return first * _LEVELS + tf.cast(images, tf.int32)


def kept(values: tf.Tensor) -> tf.Tensor:
    """Returns uint8 values as they are; XLA computes them once, and not again for each of their uses.

    The remainder changes nothing, but XLA takes it for expensive: two rounds take a seventh of the time.
    """
    return tf.cast(tf.raw_ops.TruncateMod(x=tf.cast(values, tf.int32), y=tf.constant(257)), tf.uint8)


def _bytes(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.clip_by_value(tf.round(values), 0, 255), tf.uint8)
