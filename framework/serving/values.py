"""NumPy arrays as the JSON values of TensorFlow Serving's REST API, and back.

    to_json(np.float32([[1.5, np.inf]]))                 # [[1.5, Infinity]] as text
    to_json(np.array([b"a", b"\\xff"], object))           # [{"b64": "YQ=="}, {"b64": "/w=="}]
    from_json([[1.5, 2]], np.dtype(np.float32))

Bytes are sent as base64, so that those that are no text arrive too. Numbers keep their bits: float32 is written with as
many digits as tell it from its neighbours. NaN and infinity are written as TensorFlow Serving writes and reads them,
which JSON proper does not have. Nothing here imports TensorFlow.
"""

import base64
import binascii
from typing import Any

import ml_dtypes
import numpy as np


def to_json(array: np.ndarray, by_base64: bool = True) -> Any:
    """Returns nested lists of Python values, which json.dumps writes.

    Args:
      array: of any dtype of `signatures.DTYPES`; an object array holds bytes.
      by_base64: whether bytes become {"b64": …}; if not, they become text, in which a byte that is no UTF-8 is a
        surrogate, which str.encode(errors="surrogateescape") turns back into the byte.
    """
    if array.dtype.kind != "O":
        return array.tolist()
    encode = _encoded if by_base64 else _text
    return np.frompyfunc(encode, 1, 1)(array).tolist() if array.ndim else encode(array.item())


def _encoded(value: bytes) -> dict[str, str]:
    return {"b64": base64.b64encode(value).decode()}


def _text(value: bytes) -> str:
    return value.decode(errors="surrogateescape")


def from_json(value: Any, dtype: np.dtype[Any], surrogates: str = "surrogatepass") -> np.ndarray:
    """Returns an array of nested lists of numbers, truth values, or texts and {"b64": …}, which become bytes.

    Args:
      value: the lists.
      dtype: of the array.
      surrogates: how str.encode writes surrogates in texts: 'surrogateescape' for texts that were decoded so.

    Raises:
      ValueError: the lists have different lengths, or a value is not of the dtype; the message names it.
    """
    if dtype.kind == "O":
        return _bytes_of(value, surrogates)
    array = np.asarray(value)  # ragged lists raise ValueError
    if array.size == 0:
        return array.astype(dtype)
    if dtype.kind in "iu" and array.dtype.kind in "fO":
        array = _large(value, array)
    allowed = {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind, "iuf")  # bfloat16 has kind V
    # NumPy takes truth values between numbers for 0 and 1.
    has_bool = array.dtype.kind in "iuf" and bool in {*map(type, np.asarray(value, object).flat)}
    if array.dtype.kind not in allowed or has_bool:
        kind = "bool" if has_bool else _kind_of(array)
        raise ValueError(f"a value of type {kind} is not of expected type {dtype.name}")
    if array.dtype.kind in "iu" and dtype.kind not in "iu":
        most = 2 ** (ml_dtypes.finfo(dtype).nmant + 1) - 1  # the bound of TensorFlow Serving
        if not np.all((array <= most) & (array >= -most)):
            raise ValueError(f"a whole number is beyond {most}, and {dtype.name} would lose digits of it")
    with np.errstate(over="ignore"):
        converted = array.astype(dtype)
    is_real = dtype.kind not in "iub"
    if not (np.array_equal(np.isfinite(converted), np.isfinite(array)) if is_real else np.all(converted == array)):
        raise ValueError(f"a number is out of the range of {dtype.name}")
    return converted


def _large(value: Any, array: np.ndarray) -> np.ndarray:
    """Returns whole numbers as uint64, which NumPy takes for floating point if others beside them are small."""
    values = np.asarray(value, object)
    if all(type(one) is int and 0 <= one < 2**64 for one in values.flat):
        return values.astype(np.uint64)
    return array


def _kind_of(array: np.ndarray) -> str:
    kinds = {"U": "string", "f": "float", "i": "int", "u": "int", "b": "bool"}
    return kinds.get(array.dtype.kind, type(array.flat[0]).__name__)


def _bytes_of(value: Any, surrogates: str) -> np.ndarray:
    shape = _lengths(value)
    flat: list[bytes] = []
    _collect(value, shape, surrogates, flat)
    array = np.empty(len(flat), object)
    array[:] = flat
    return array.reshape(shape)


def _lengths(value: Any) -> tuple[int, ...]:
    if not isinstance(value, list):
        return ()
    return (len(value), *(_lengths(value[0]) if value else ()))


def _collect(value: Any, shape: tuple[int, ...], surrogates: str, flat: list[bytes]) -> None:
    if not shape:
        flat.append(_one(value, surrogates))
    elif isinstance(value, list) and len(value) == shape[0]:
        for part in value:
            _collect(part, shape[1:], surrogates, flat)
    else:
        raise ValueError("the lists have different lengths")


def _one(value: Any, surrogates: str) -> bytes:
    if isinstance(value, str):
        return value.encode(errors=surrogates)
    if isinstance(value, dict) and value.keys() == {"b64"} and isinstance(value["b64"], str):
        try:
            return base64.b64decode(value["b64"], validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"'{value['b64'][:40]}' is not base64") from error
    raise ValueError(f"a value of type {type(value).__name__} is not of expected type string")
