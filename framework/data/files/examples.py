"""Decoders: records become fields. `Examples` parses tf.train.Example, and `Each` calls a function of your own.

decode = Examples({"image": Image((32, 32)), "label": Label(classes=10), "id": tf.io.FixedLenFeature([], tf.int64)})
decode([b"…", b"…"])                      # {"image": uint8 [2, 32, 32, 3], "label": int32 [2], "id": int64 [2]}
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError

from framework.data.fields import Fields
from framework.data.files.pictures import Image
from framework.data.files.records import RecordError
from framework.errors import UserError

_SHOWN = 10  # features of a record that a message lists

Field = Any  # Image, Label, or tf.io.FixedLenFeature, which mypy does not know


@dataclass(frozen=True)
class Label:
    """Reads the class of a record, an int64 feature.

    Attributes:
      classes: how many there are; a label that is not 0 … classes - 1 is damaged.
      key: the feature of a tf.train.Example.
    """

    classes: int
    key: str = "label"


class Examples:
    """Decodes records that are tf.train.Example messages.

    Args:
      fields: {field of the batch: `Image`, `Label`, or the tf.io.FixedLenFeature of the same name}.

    Raises:
      UserError: a value is something else.
    """

    def __init__(self, fields: Mapping[str, Field]) -> None:
        for name, field in fields.items():
            if not isinstance(field, Image | Label | tf.io.FixedLenFeature):
                raise UserError(
                    f"Examples: '{name}' is of type {type(field).__name__}, not data.Image(size), data.Label(classes)"
                    " or tf.io.FixedLenFeature(shape, dtype)."
                )
        if not fields:
            raise UserError("Examples was given no field, e.g. {'label': data.Label(classes=10)}.")
        self._fields = dict(fields)
        self._features = {_key(name, field): _feature(field) for name, field in fields.items()}

    def __repr__(self) -> str:
        return f"Examples({self._fields})"

    @property
    def element_spec(self) -> Fields:
        """Returns {field: spec of one example}."""
        return {name: _spec(field) for name, field in self._fields.items()}

    def __call__(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Returns {field: array [n, ...]} of n records.

        Raises:
          RecordError: a record lacks a feature, or its picture or label is damaged.
        """
        with tf.init_scope(), tf.device("CPU:0"):
            parsed = self._parsed(records)
            return {name: _array(field, parsed[_key(name, field)]) for name, field in self._fields.items()}

    def _parsed(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
        try:
            parsed = tf.io.parse_example(tf.constant(records, tf.string), self._features)
        except tf.errors.InvalidArgumentError:
            for place, record in enumerate(records):
                try:
                    tf.io.parse_single_example(record, self._features)
                except tf.errors.InvalidArgumentError as error:
                    raise RecordError(place, self._missing(record) or _why(error)) from error
            raise
        return {key: tensor.numpy() for key, tensor in parsed.items()}

    def _missing(self, record: bytes) -> str:
        """Returns which feature a record lacks, and which it has; '' if it lacks none, or is no Example."""
        try:
            has = tf.train.Example.FromString(record).features.feature
        except DecodeError:
            return ""
        lacks = [name for name, feature in self._features.items() if name not in has and feature.default_value is None]
        shown = ", ".join(sorted(has)[:_SHOWN]) + (", …" if len(has) > _SHOWN else "") or "none at all"
        return f"it has no feature '{lacks[0]}', but {shown}; Image and Label take key='…'" if lacks else ""


class Each:
    """Decodes one record after the other by a function of bytes that returns {field: array or number}.

    A ValueError of the function, or an InvalidArgumentError of TensorFlow, says that the record is damaged. Any other
    exception is a mistake in the function, and ends the run.
    """

    def __init__(self, decode: Any) -> None:
        if not callable(decode):
            what = type(decode).__name__
            raise UserError(f"decode is of type {what}, not data.Examples({{…}}) or a function of a record's bytes.")
        self._decode = decode

    def __repr__(self) -> str:
        return f"Each({getattr(self._decode, '__qualname__', '')})"

    def __call__(self, records: Sequence[bytes]) -> dict[str, np.ndarray]:
        with tf.init_scope(), tf.device("CPU:0"):
            rows = [self._one(place, record) for place, record in enumerate(records)]
        return {name: self._stacked(name, rows) for name in rows[0]}

    def _one(self, place: int, record: bytes) -> dict[str, np.ndarray]:
        try:
            fields = self._decode(record)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            raise RecordError(place, _why(error)) from error
        if not isinstance(fields, Mapping) or not fields:
            raise UserError(f"decode returned {type(fields).__name__}, not {{field: array or number}} of one record.")
        return {name: _as_array(value) for name, value in fields.items()}

    def _stacked(self, name: str, rows: Sequence[Mapping[str, np.ndarray]]) -> np.ndarray:
        for place, row in enumerate(rows):
            if row.keys() != rows[0].keys() or row[name].shape != rows[0][name].shape:
                shapes = [{field: array.shape for field, array in each.items()} for each in (row, rows[0])]
                raise RecordError(place, f"decode returned {shapes[0]}, but {shapes[1]} of another record")
        return np.stack([row[name] for row in rows])


def _key(name: str, field: Field) -> str:
    return name if isinstance(field, tf.io.FixedLenFeature) else field.key


def _feature(field: Field) -> tf.io.FixedLenFeature:
    if isinstance(field, Image):
        return tf.io.FixedLenFeature([], tf.string)
    return tf.io.FixedLenFeature([], tf.int64) if isinstance(field, Label) else field


def _spec(field: Field) -> tf.TensorSpec:
    if isinstance(field, Image):
        return field.spec
    return tf.TensorSpec([], tf.int32) if isinstance(field, Label) else tf.TensorSpec(field.shape, field.dtype)


def _array(field: Field, values: np.ndarray) -> np.ndarray:
    """Returns a field of the batch, made of the parsed feature [n, ...]."""
    if isinstance(field, Image):
        return _pixels(field, values)
    if isinstance(field, Label):
        is_bad = (values < 0) | (values >= field.classes)
        if is_bad.any():
            place = int(np.argmax(is_bad))
            raise RecordError(place, f"its label is {values[place]}, not one of 0 … {field.classes - 1}")
        return values.astype(np.int32)
    return values


def _pixels(image: Image, contents: np.ndarray) -> np.ndarray:
    pixels = np.empty([len(contents), *image.size, image.channels], np.uint8)
    for place, content in enumerate(contents):
        try:
            pixels[place] = image.decode(content)
        except ValueError as error:
            raise RecordError(place, str(error)) from error
    return pixels


def _as_array(value: Any) -> np.ndarray:
    """Returns a value as an array; bytes as an object, because NumPy's own bytes drop zeros at the end."""
    if isinstance(value, bytes):
        array = np.empty([], object)
        array[()] = value
        return array
    return np.asarray(value)


def _why(error: Exception) -> str:
    text = getattr(error, "message", None) or str(error) or type(error).__name__
    return " ".join(re.sub(r"\[Op:\w+\].*", "", text.split("}} ")[-1]).split())[:200].rstrip(".")
