"""Pictures: JPEG and PNG, whose size is read from the header before any pixel is decoded.

    header_of(content)                        # Header(format='jpeg', height=32, width=32, channels=3)
    Image(size=(32, 32)).decode(content)      # uint8 [32, 32, 3]; ValueError says what is wrong

A header of 100 bytes may promise a picture of 16 GB. A JPEG whose scan is overwritten or cut in the middle is grey from
there on for TensorFlow's decoder; the package simplejpeg of the extra `data` finds the damage, if it is installed, and
gives the same pixels in a fifth of the time.
"""

import functools
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tensorflow as tf
from absl import logging

from framework import extras
from framework.errors import UserError

MAX_PIXELS = 2**26  # 8192 x 8192

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; 3 is a palette of RGB colours
_NO_FRAME = {0xC4, 0xC8, 0xCC}  # tables among the markers of JPEG frames, 0xC0 … 0xCF
_COLOURS = {1: "GRAY", 3: "RGB"}  # by channels
_ALONE = {0x01, *range(0xD0, 0xD8)}  # JPEG markers without a length


@dataclass(frozen=True)
class Header:
    """Holds what the header of a picture says; `bits` are those of a channel."""

    format: Literal["jpeg", "png"]
    height: int
    width: int
    channels: int
    bits: int = 8


@dataclass(frozen=True)
class Image:
    """Decodes a picture of a record.

    Attributes:
      size: (height, width) of the decoded picture, in pixels.
      key: the feature of a tf.train.Example that has the bytes of the picture.
      channels: 3 for RGB, 1 for grey.
      convert: whether a picture with other channels, or 16 bits a channel, is converted; otherwise it is damaged.
      fit: makes a picture of another size fit. 'refuse': it is damaged; 'stretch': it is resized; 'crop': the largest
        centred part of the right proportions is resized. Resizing is bilinear, with antialiasing.
      max_pixels: most pixels of a picture, by its header.

    Raises:
      UserError: a value is not one of these.
    """

    size: tuple[int, int]
    key: str = "image/encoded"
    channels: int = 3
    convert: bool = False
    fit: Literal["refuse", "stretch", "crop"] = "refuse"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if len(self.size) != 2 or min(self.size) < 1:
            raise UserError(f"Image(size={self.size}) is not (height, width), e.g. (32, 32).")
        if self.channels not in (1, 3):
            raise UserError(f"Image(channels={self.channels}) is not 1 or 3.")
        if self.fit not in ("refuse", "stretch", "crop"):
            raise UserError(f"Image(fit='{self.fit}') is not 'refuse', 'stretch' or 'crop'.")

    @property
    def spec(self) -> tf.TensorSpec:
        """Returns the spec of a decoded picture."""
        return tf.TensorSpec([*self.size, self.channels], tf.uint8)

    def decode(self, content: bytes) -> np.ndarray:
        """Returns the pixels, uint8 [height, width, channels].

        Raises:
          ValueError: the picture is damaged, too large, or not of this size or these channels.
        """
        header = checked_header(content, self.max_pixels)
        how = "Image(convert=True) converts the picture"
        if header.channels != self.channels and not self.convert:
            raise ValueError(f"it has {header.channels} channel(s), not {self.channels}; {how}")
        if header.bits > 8 and not self.convert:
            raise ValueError(f"it has {header.bits} bits a channel, not 8; {how}")
        size = (header.height, header.width)
        if size != self.size and self.fit == "refuse":
            raise ValueError(
                f"it is {size[0]} x {size[1]} pixels, not {self.size[0]} x {self.size[1]}; Image(fit='crop') fits it"
            )
        pixels = decoded(content, header, self.channels)
        return pixels if size == self.size else self._fitted(pixels)

    def _fitted(self, pixels: np.ndarray) -> np.ndarray:
        if self.fit == "crop":
            pixels = _centre(pixels, self.size)
        resized = tf.image.resize(pixels, self.size, "bilinear", antialias=True).numpy()
        return np.clip(np.rint(resized), 0, 255).astype(np.uint8)


def verify(content: bytes, max_pixels: int) -> None:
    """Raises ValueError unless a picture can be decoded, whatever its size and channels are."""
    decoded(content, checked_header(content, max_pixels), 0)


def checked_header(content: bytes, max_pixels: int) -> Header:
    """Returns the header of a picture.

    Raises:
      ValueError: it has more pixels, or is no JPEG or PNG.
    """
    header = header_of(content)
    pixels = header.height * header.width
    if pixels > max_pixels:
        raise ValueError(f"it is {header.height} x {header.width} = {pixels} pixels, more than max_pixels={max_pixels}")
    return header


def decoded(content: bytes, header: Header, channels: int) -> np.ndarray:
    """Returns the pixels of a picture, uint8 [height, width, channels]; 0 channels are those of the picture.

    Raises:
      ValueError: the picture is damaged.
    """
    strict = strict_decoder() if header.format == "jpeg" else None
    if strict is not None and header.channels in _COLOURS and channels in (0, header.channels):
        try:
            return strict(content, _COLOURS[header.channels])  # the pixels of TensorFlow's, 5 times as fast
        except ValueError as error:
            raise ValueError(f"the JPEG is damaged or cut off ({error})") from error
    try:
        if header.format == "png":
            return tf.raw_ops.DecodePng(contents=content, channels=channels).numpy()
        # The accurate cosine transform, as Pillow and libjpeg have it; TensorFlow's default differs between machines.
        pixels = tf.raw_ops.DecodeJpeg(contents=content, channels=channels, dct_method="INTEGER_ACCURATE").numpy()
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"the {header.format.upper()} is damaged or cut off") from error
    _check_scan(content)
    return pixels


@functools.cache
def strict_decoder() -> Callable[..., np.ndarray] | None:
    """Returns a decoder of JPEGs that refuses what libjpeg warns of; None if it is not installed."""
    try:
        return extras.load("simplejpeg", "data").decode_jpeg
    except UserError:
        return None


@functools.cache
def _warn_of_grey() -> None:
    logging.warning(
        "JPEGs are not checked for damage in the middle, which decodes to grey: simplejpeg is not installed. Type"
        " python -m pip install %s",
        " ".join(extras.pins("data")),
    )


def _check_scan(content: bytes) -> None:
    """Raises ValueError if the scan of a JPEG has too few or too many bytes for its pixels."""
    decode = strict_decoder()
    if decode is None:
        _warn_of_grey()
        return
    try:
        decode(content, "GRAY")  # reads all of the scan, and computes the brightness alone
    except ValueError as error:
        raise ValueError(f"the JPEG is damaged or cut off ({error})") from error


def header_of(content: bytes) -> Header:
    """Returns the header of a picture.

    Raises:
      ValueError: it is no JPEG or PNG, or the header is cut off.
    """
    try:
        if content.startswith(_PNG):
            width, height, bits, colour = struct.unpack_from(">IIBB", content, 16)
            return Header("png", height, width, _PNG_CHANNELS[colour], max(8, bits))  # fewer bits become 8
        if content.startswith(b"\xff\xd8"):
            return _jpeg_header(content)
    except (struct.error, IndexError, KeyError):
        raise ValueError("the header is damaged or cut off") from None
    raise ValueError(f"it is no JPEG or PNG: it begins with {content[:8]!r}")


def _jpeg_header(content: bytes) -> Header:
    """Returns the size and channels in the first frame marker of a JPEG."""
    place = 2
    while True:
        if content[place] != 0xFF:
            raise IndexError
        marker = content[place + 1]
        if marker == 0xFF:  # padding
            place += 1
        elif marker in _ALONE:
            place += 2
        elif 0xC0 <= marker <= 0xCF and marker not in _NO_FRAME:
            height, width, channels = struct.unpack_from(">HHB", content, place + 5)
            return Header("jpeg", height, width, channels)
        else:
            place += 2 + struct.unpack_from(">H", content, place + 2)[0]


def _centre(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Returns the largest centred part that has the proportions of `size`."""
    height, width = pixels.shape[:2]
    scale = min(height / size[0], width / size[1])
    rows, columns = max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]
