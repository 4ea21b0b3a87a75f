"""Arrays as JSON values, by way of the text that is sent."""

import base64
import json

import ml_dtypes
import numpy as np
import pytest

from framework.serving.signatures import DTYPES, Tensor, of_json
from framework.serving.values import from_json, to_json

EDGES = {
    "f": [0.0, -0.0, 0.1, 1 / 3, np.inf, -np.inf],
    "V": [0.0, 0.5, np.inf, -3.0],
    "b": [True, False],
}


def edges(dtype):
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return np.array([limits.min, 0, 1, limits.max], dtype)
    values = np.array(EDGES[dtype.kind], dtype)
    if dtype.kind == "f":
        limits = np.finfo(dtype)
        values = np.append(values, np.array([limits.max, limits.tiny, limits.smallest_subnormal], dtype))
    return values


@pytest.mark.parametrize("dtype", [dtype for dtype in DTYPES.values() if dtype.kind != "O"], ids=str)
def test_numbers_keep_their_bits(dtype):
    array = edges(dtype).reshape(1, -1)
    back = from_json(json.loads(json.dumps(to_json(array))), dtype)
    assert back.dtype == dtype and back.shape == array.shape and back.tobytes() == array.tobytes()


def test_nan_stays_nan():
    back = from_json(json.loads(json.dumps(to_json(np.float32([np.nan])))), np.dtype(np.float32))
    assert np.isnan(back).all()


def test_bytes_are_base64_and_texts_may_be_plain():
    array = np.array([[b"a", b"\xff\0"]], object)
    value = to_json(array)
    assert value == [[{"b64": base64.b64encode(one).decode()} for one in array[0]]]
    assert from_json(value, np.dtype(object)).tolist() == array.tolist()
    (texts,) = to_json(array, by_base64=False)
    assert from_json(texts, np.dtype(object), "surrogateescape").tolist() == array[0].tolist()
    assert from_json(["ü", {"b64": ""}], np.dtype(object)).tolist() == ["ü".encode(), b""]
    assert from_json("ü", np.dtype(object)).shape == () and to_json(np.array(b"a", object)) == {"b64": "YQ=="}


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        ([1, "a"], np.float32, "a value of type string is not of expected type float32"),
        ([1.5], np.int32, "a value of type float is not of expected type int32"),
        ([True], np.int32, "a value of type bool is not of expected type int32"),
        ([1], np.bool_, "a value of type int is not of expected type bool"),
        ([[1.5], [True]], np.float32, "a value of type bool is not of expected type float32"),
        ([0, False], np.int64, "a value of type bool is not of expected type int64"),
        ([2**24], np.float32, "a whole number is beyond 16777215, and float32 would lose digits of it"),
        ([-(2**53) - 1], np.float64, f"a whole number is beyond {2**53 - 1}, and float64 would lose digits of it"),
        ([None], np.float32, "a value of type NoneType is not of expected type float32"),
        ([[1], [1, 2]], np.float32, "inhomogeneous"),
        ([300], np.uint8, "a number is out of the range of uint8"),
        ([-1], np.uint8, "a number is out of the range of uint8"),
        ([1e300], np.float32, "a number is out of the range of float32"),
        ([1], object, "a value of type int is not of expected type string"),
        ([["a"], ["a", "b"]], object, "the lists have different lengths"),
        ([["a"], "b"], object, "the lists have different lengths"),
        ([{"b64": "?"}], object, "'?' is not base64"),
        ([{"b65": "YQ=="}], object, "a value of type dict is not of expected type string"),
    ],
)
def test_what_is_no_array_of_the_dtype(value, dtype, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        from_json(value, np.dtype(dtype))


def test_whole_numbers_may_be_floating_point_values():
    for dtype in (np.float32, np.float64):
        most = 2 ** (np.finfo(dtype).nmant + 1) - 1
        assert from_json([most, -most], np.dtype(dtype)).tolist() == [most, -most]


def test_signatures_of_the_json_of_their_proto():
    served = of_json(
        {
            "__saved_model_init_op": {"outputs": {"x": {"dtype": "DT_INVALID"}}},
            "a": {
                "inputs": {"x": {"dtype": "DT_BFLOAT16", "tensor_shape": {"dim": [{"size": "-1"}, {"size": "3"}]}}},
                "outputs": {
                    "y": {"dtype": "DT_STRING", "tensor_shape": {"unknown_rank": True}},
                    "z": {"dtype": "DT_VARIANT", "tensor_shape": {}},
                },
            },
        }
    )
    assert list(served) == ["a"]
    assert served["a"].inputs == {"x": Tensor(np.dtype(ml_dtypes.bfloat16), (None, 3))}
    assert served["a"].outputs == {"y": Tensor(np.dtype(object), None), "z": Tensor(None, ())}
    shown = [str(tensor) for tensor in (*served["a"].inputs.values(), *served["a"].outputs.values())]
    assert shown == ["bfloat16 [None, 3]", "bytes of any shape", "unknown []"]
