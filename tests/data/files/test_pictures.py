"""framework/data/files/pictures.py: the header comes before pixels; what does not fit is damaged or converted."""

import io
import logging
import struct
import sys
import zlib

import numpy as np
import PIL.Image
import pytest
import tensorflow as tf

from framework import extras
from framework.data.files import pictures
from framework.data.files.pictures import Header, Image, header_of, verify
from framework.errors import UserError
from tests.data.files import made


def line_of(fn, *args):
    with pytest.raises(ValueError) as caught:
        fn(*args)
    return str(caught.value)


def flat(side=16):
    """A picture without noise, which JPEG keeps nearly."""
    return np.kron(made.pixels(1, side // 8), np.ones([8, 8, 1], np.uint8))


@pytest.mark.parametrize(("kind", "name"), [("PNG", "png"), ("JPEG", "jpeg")])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_header_has_the_size_and_channels(kind, name, channels):
    content = made.encoded(made.pixels(0, 16, channels)[:, :9], kind)
    assert header_of(content) == Header(name, 16, 9, channels)


def test_headers_of_progressive_jpeg_palette_and_alpha():
    assert header_of(made.encoded(flat(), "JPEG", progressive=True, comment=b"x" * 300)) == Header("jpeg", 16, 16, 3)
    alpha = np.concatenate([flat(), flat()[..., :1]], -1)
    assert header_of(made.encoded(alpha)) == Header("png", 16, 16, 4)


def test_png_is_decoded_exactly_and_jpeg_as_pillow_does():
    array = made.pixels(3, 16)
    np.testing.assert_array_equal(Image((16, 16)).decode(made.encoded(array)), array)
    content = made.encoded(array, "JPEG", quality=80)
    np.testing.assert_array_equal(Image((16, 16)).decode(content), made.by_pillow(content))


def test_other_channels_are_damaged_or_converted():
    grey = made.pixels(2, 8, 1)
    content = made.encoded(grey)
    assert line_of(Image((8, 8)).decode, content) == (
        "it has 1 channel(s), not 3; Image(convert=True) converts the picture"
    )
    np.testing.assert_array_equal(Image((8, 8), convert=True).decode(content), np.repeat(grey, 3, -1))
    colour = made.encoded(flat(), "JPEG")
    assert line_of(Image((16, 16), channels=1).decode, colour).startswith("it has 3 channel(s), not 1;")
    converted = Image((16, 16), channels=1, convert=True).decode(colour)
    np.testing.assert_array_equal(converted, made.by_pillow(colour, "L"))


def test_16_bits_a_channel_are_damaged_or_converted():
    array = made.pixels(5, 4).astype(np.uint16) * 256 + 255
    content = tf.io.encode_png(array).numpy()
    assert header_of(content) == Header("png", 4, 4, 3, bits=16)
    assert line_of(Image((4, 4)).decode, content) == (
        "it has 16 bits a channel, not 8; Image(convert=True) converts the picture"
    )
    np.testing.assert_array_equal(Image((4, 4), convert=True).decode(content), array // 256)


def test_cmyk_is_damaged_or_converted():
    content = io.BytesIO()
    PIL.Image.fromarray(flat()).convert("CMYK").save(content, "JPEG", quality=100)
    assert line_of(Image((16, 16)).decode, content.getvalue()).startswith("it has 4 channel(s), not 3;")
    converted = Image((16, 16), convert=True).decode(content.getvalue())
    assert np.abs(converted.astype(int) - flat()).max() <= 8


def weights(size, to):
    """float64 [to, size]: bilinear resizing with antialiasing, as a triangle that covers two pixels of the result."""
    scale = size / to
    centres = (np.arange(to) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, np.newaxis]) / max(scale, 1)
    triangle = np.maximum(0, 1 - distance)
    return triangle / triangle.sum(1, keepdims=True)


@pytest.mark.parametrize(
    ("fit", "shape", "part"),
    [
        ("stretch", (12, 8), np.s_[:, :]),
        ("crop", (12, 8), np.s_[2:10, :]),
        ("crop", (3, 7), np.s_[:, 2:5]),
        ("stretch", (2, 3), np.s_[:, :]),
    ],
)
def test_another_size_is_damaged_or_made_to_fit(fit, shape, part):
    array = made.pixels(4, 12)[: shape[0], : shape[1]]
    content = made.encoded(array)
    assert line_of(Image((4, 4)).decode, content).startswith(f"it is {shape[0]} x {shape[1]} pixels, not 4 x 4;")
    wanted = array[part].astype(np.float64)
    wanted = np.einsum("ip,jq,pqc->ijc", weights(wanted.shape[0], 4), weights(wanted.shape[1], 4), wanted)
    got = Image((4, 4), fit=fit).decode(content)
    assert got.dtype == np.uint8 and np.abs(got - wanted).max() <= 0.501


def png_of(width, height):
    """A PNG of 45 bytes whose header promises a picture."""
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "decoded", lambda *_: pytest.fail("pixels were decoded"))
    assert line_of(Image((4, 4), fit="crop").decode, png_of(60_000, 50_000)) == (
        "it is 50000 x 60000 = 3000000000 pixels, more than max_pixels=67108864"
    )
    assert line_of(Image((16, 16), max_pixels=255).decode, made.encoded(flat(), "JPEG")) == (
        "it is 16 x 16 = 256 pixels, more than max_pixels=255"
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_truncated_picture_is_damaged_wherever_it_ends(kind):
    content = made.encoded(flat(), kind)
    verify(content, 256)
    for size in {*range(0, len(content) - 12, 23), len(content) - 13, len(content) - (2 if kind == "JPEG" else 13)}:
        assert line_of(verify, content[:size], 256)


def scan_of(content):
    """The place of the first byte of the scan of a JPEG with one scan."""
    marker = content.index(b"\xff\xda")
    return marker + 2 + int.from_bytes(content[marker + 2 : marker + 4])


def overwritten(content):
    middle = (scan_of(content) + len(content)) // 2
    return content[:middle] + bytes(len(content) - 2 - middle) + content[-2:]


def cut_inside(content):
    return content[: scan_of(content) + 100] + content[-2:]


@pytest.mark.parametrize("damage", [overwritten, cut_inside])
def test_a_jpeg_damaged_in_the_middle_is_damaged(damage):
    pytest.importorskip("simplejpeg", reason="needs the extra 'data'")
    whole = made.encoded(made.pixels(7, 32), "JPEG", quality=80)
    content = damage(whole)
    # TensorFlow decodes it, to other pixels.
    assert (tf.io.decode_jpeg(content).numpy() != tf.io.decode_jpeg(whole).numpy()).mean() > 0.4
    line = line_of(Image((32, 32)).decode, content)
    assert (
        line.startswith("the JPEG is damaged or cut off (Corrupt JPEG data: ")
        and line_of(verify, content, 1024) == line
    )


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"optimize": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_whole_jpegs_of_all_kinds_are_not_damaged(mode, options):
    content = io.BytesIO()
    PIL.Image.fromarray(made.pixels(8, 40)).convert(mode).save(content, "JPEG", **options)
    verify(content.getvalue(), 1600)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1}, {"quality": 5}])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (32, 32), (33, 31)])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_pixels_are_those_of_tensorflow_with_simplejpeg_or_without(options, size, channels):
    pytest.importorskip("simplejpeg", reason="needs the extra 'data'")
    content = made.encoded(made.pixels(9, 40, channels)[: size[0], : size[1]], "JPEG", **options)
    expected = tf.io.decode_jpeg(content, channels, dct_method="INTEGER_ACCURATE").numpy()
    np.testing.assert_array_equal(Image(size, channels=channels).decode(content), expected)


def test_without_simplejpeg_one_warning_says_what_is_not_checked(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    pictures.strict_decoder.cache_clear()
    pictures._warn_of_grey.cache_clear()
    content = made.encoded(made.pixels(7, 32), "JPEG")
    with caplog.at_level(logging.WARNING):
        verify(cut_inside(content), 1024)
        verify(content, 1024)
    pictures.strict_decoder.cache_clear()
    assert [record.getMessage() for record in caplog.records] == [
        "JPEGs are not checked for damage in the middle, which decodes to grey: simplejpeg is not installed. Type"
        f" python -m pip install {' '.join(extras.pins('data'))}"
    ]


def test_what_is_no_picture_is_said():
    assert line_of(header_of, b"GIF89a....") == "it is no JPEG or PNG: it begins with b'GIF89a..'"
    assert line_of(header_of, b"\xff\xd8\xff\xe0") == "the header is damaged or cut off"
    assert line_of(header_of, b"") == "it is no JPEG or PNG: it begins with b''"
    assert line_of(verify, made.encoded(flat(), "JPEG")[:-40], 256).startswith("the JPEG is damaged or cut off")


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"size": (0, 4)}, "Image(size=(0, 4)) is not (height, width), e.g. (32, 32)."),
        ({"size": (4, 4), "channels": 4}, "Image(channels=4) is not 1 or 3."),
        ({"size": (4, 4), "fit": "pad"}, "Image(fit='pad') is not 'refuse', 'stretch' or 'crop'."),
    ],
)
def test_bad_values_are_refused(values, line):
    with pytest.raises(UserError) as caught:
        Image(**values)
    assert str(caught.value) == line
