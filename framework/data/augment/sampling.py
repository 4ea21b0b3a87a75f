"""Moving pixels: crops that may reach beyond a picture, and affine maps, by gathering.

crop(images, top, left, 32, 32, "reflect")                # pixels are copied, so bits do not change
affine(images, matrices, "constant", 0.0, "bilinear")     # what ImageProjectiveTransformV3 does, which XLA lacks
"""

import tensorflow as tf

from framework.data.augment.base import column, count, levels, of_levels
from framework.errors import UserError

# What stands beyond the edge of the row a b c d, in the words of np.pad:
# zeros 0 0|a b c d|0 0, edge a a|a b c d|d d, reflect c b|a b c d|c b, symmetric b a|a b c d|d c.
CROP_FILLS = ("zeros", "edge", "reflect", "symmetric")
# The same for affine maps, in the words of Keras but for `symmetric`, which Keras calls `reflect`.
FILLS = ("constant", "nearest", "symmetric", "wrap")
INTERPOLATIONS = ("nearest", "bilinear")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises UserError unless the value is one of the choices."""
    if value not in choices:
        raise UserError(f"augment.{name}={value!r} must be one of {', '.join(choices)}.")


def crop(images: tf.Tensor, top: tf.Tensor, left: tf.Tensor, height: int, width: int, fill: str) -> tf.Tensor:
    """Returns a part [batch, height, width, channels] of each picture.

    Args:
      images: [batch, rows, columns, channels], of any dtype.
      top: int32 [batch], the row of the first pixel; may be negative.
      left: int32 [batch], its column.
      fill: one of CROP_FILLS, for what reaches beyond the picture.
    """
    rows, columns, channels = images.shape[1:]
    y = top[:, tf.newaxis] + tf.range(height)  # [batch, height]
    x = left[:, tf.newaxis] + tf.range(width)
    first = tf.range(count(images))[:, tf.newaxis] * rows
    place = (first + _mirrored(y, rows, fill))[:, :, tf.newaxis] * columns + _mirrored(x, columns, fill)[:, tf.newaxis]
    pixels = tf.gather(tf.reshape(images, [-1, channels]), place)
    if fill != "zeros":
        return pixels
    is_inside = ((y >= 0) & (y < rows))[:, :, tf.newaxis] & ((x >= 0) & (x < columns))[:, tf.newaxis]
    return tf.where(is_inside[..., tf.newaxis], pixels, tf.zeros([], images.dtype))


def middle(images: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Returns the largest part about the middle of pictures [..., rows, columns, channels] that is height : width."""
    rows, columns = tf.unstack(tf.shape(images)[-3:-1])
    tall = tf.minimum(rows, columns * height // width)
    wide = tf.minimum(columns, rows * width // height)
    top, left = (rows - tall) // 2, (columns - wide) // 2
    return images[..., top : top + tall, left : left + wide, :]


def resized(images: tf.Tensor, height: int, width: int) -> tf.Tensor:
    """Returns pictures [..., height, width, channels] by bilinear interpolation, computed in their floating dtype.

    The pixels are those of tf.image.resize, which computes in float32.
    """
    for axis, size in ((-2, width), (-3, height)):
        length = tf.shape(images)[axis]
        at = (tf.range(size, dtype=images.dtype) + 0.5) * (tf.cast(length, images.dtype) / size) - 0.5
        first = tf.floor(at)
        place = tf.cast(first, tf.int32)
        low = tf.gather(images, tf.maximum(place, 0), axis=axis)
        high = tf.gather(images, tf.minimum(place + 1, length - 1), axis=axis)
        images = low + (high - low) * tf.reshape(at - first, [size, *[1] * (-1 - axis)])
    return images


def _mirrored(place: tf.Tensor, size: int, fill: str) -> tf.Tensor:
    """Returns the place in 0 … size - 1 of the pixel that stands at a place beyond the edge."""
    if fill == "reflect" and size > 1:
        place = tf.math.floormod(place, 2 * size - 2)
        return tf.minimum(place, 2 * size - 2 - place)
    if fill == "symmetric":
        place = tf.math.floormod(place, 2 * size)
        return tf.minimum(place, 2 * size - 1 - place)
    return tf.clip_by_value(place, 0, size - 1)


def affine(images: tf.Tensor, matrices: tf.Tensor, fill: str, value: float, interpolation: str) -> tf.Tensor:
    """Returns pictures whose pixel (x, y) is that of the source at (a x + b y + c, d x + e y + f).

    Args:
      images: [batch, height, width, channels]; uint8 is computed in float32 and rounded.
      matrices: float32 or float64 [batch, 6], a to f.
      fill: one of FILLS, for what lies beyond the source.
      value: of such pixels, if `fill` is 'constant'; in the unit of the pictures.
      interpolation: one of INTERPOLATIONS.
    """
    rows, columns, channels = images.shape[1:]
    a, b, c, d, e, f = (column(row, 3) for row in tf.unstack(matrices, axis=1))
    x = tf.range(columns, dtype=matrices.dtype)
    y = tf.range(rows, dtype=matrices.dtype)[:, tf.newaxis]
    # Coordinates in pictures with a frame of one pixel of the fill value.
    source_x = _folded(a * x + b * y + c, columns, fill)
    source_y = _folded(d * x + e * y + f, rows, fill)
    is_nearest = interpolation == "nearest"
    values = images if is_nearest else levels(images)[0]
    frame = [[0, 0], [1, 1], [1, 1], [0, 0]]
    framed = tf.reshape(tf.pad(values, frame, constant_values=tf.cast(value, values.dtype)), [-1, channels])
    first = tf.range(count(images))[:, tf.newaxis, tf.newaxis] * (rows + 2)

    def pixels(at_x: tf.Tensor, at_y: tf.Tensor) -> tf.Tensor:
        at_x = tf.clip_by_value(tf.cast(at_x, tf.int32) + 1, 0, columns + 1)
        at_y = tf.clip_by_value(tf.cast(at_y, tf.int32) + 1, 0, rows + 1)
        return tf.gather(framed, (first + at_y) * (columns + 2) + at_x)

    if is_nearest:
        return pixels(_rounded(source_x), _rounded(source_y))
    x_0, y_0 = tf.floor(source_x), tf.floor(source_y)
    to_right = tf.cast(source_x - x_0, values.dtype)[..., tf.newaxis]
    to_bottom = tf.cast(source_y - y_0, values.dtype)[..., tf.newaxis]
    above = pixels(x_0, y_0) * (1 - to_right) + pixels(x_0 + 1, y_0) * to_right
    below = pixels(x_0, y_0 + 1) * (1 - to_right) + pixels(x_0 + 1, y_0 + 1) * to_right
    return of_levels(above * (1 - to_bottom) + below * to_bottom, images.dtype)


def _rounded(x: tf.Tensor) -> tf.Tensor:
    """Returns the nearest whole number, of two the one further from 0, as ImageProjectiveTransformV3 does."""
    return tf.where(x < 0, tf.math.ceil(x - 0.5), tf.floor(x + 0.5))


def _folded(x: tf.Tensor, size: int, fill: str) -> tf.Tensor:
    """Returns coordinates beyond the edge as those of the pixels that stand there, by TensorFlow's formulas.

    Its 'wrap' has a period of size - 1 pixels for the first one beyond an edge, and goes back by `size`.
    """
    if fill == "constant":
        return x
    if fill == "symmetric" and size > 1:
        twice = 2.0 * size
        low = x + twice * tf.floor(-x / twice)
        low = tf.where(low < -size, low + twice, -low - 1)
        high = x - twice * tf.floor(x / twice)
        high = tf.where(high >= size, twice - high - 1, high)
        x = tf.where(x < 0, low, tf.where(x > size - 1, high, x))
    if fill == "wrap" and size > 1:
        low = x + size * (tf.floor(-x / (size - 1)) + 1)
        high = x - size * tf.floor(x / (size - 1))
        x = tf.where(x < 0, low, tf.where(x > size - 1, high, x))
    return tf.clip_by_value(x, 0, size - 1)
