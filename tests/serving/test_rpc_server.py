"""The gRPC side of the development server by itself: requests that no client of this project sends."""

import types

import numpy as np
import pytest
import tensorflow as tf

from framework.serving.errors import CodeError
from framework.serving.rpc_server import RpcServer

predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="needs the extra 'serve'")
BYTES = 2**10


@pytest.fixture(scope="module")
def predict():
    """predict(TensorProto) -> the array that the model got."""
    got = {}
    model = types.SimpleNamespace(version=1, predict=lambda name, inputs, outputs: got.update(inputs) or {})
    versions = types.SimpleNamespace(name="m", asked=lambda name, version: model)
    server = RpcServer(versions, 0, BYTES)

    def call(proto, name="m"):
        request = predict_pb2.PredictRequest()
        request.model_spec.name = name
        request.inputs["x"].CopyFrom(proto)
        server.predict(request)
        return got.pop("x")

    yield call
    server.stop(0.0)


def splat(*shape):
    """A shape and one value."""
    proto = tf.make_tensor_proto([1.5], tf.float32)
    proto.tensor_shape.Clear()
    for size in shape:
        proto.tensor_shape.dim.add(size=size)
    return proto


def test_one_value_may_be_that_of_all_elements(predict):
    np.testing.assert_array_equal(predict(splat(2, 3)), np.full([2, 3], 1.5, np.float32), strict=True)
    assert predict(splat(BYTES)).shape == (BYTES,)


@pytest.mark.parametrize("shape", [(BYTES + 1,), (10**12,), (2**62, 2**62)])
def test_a_short_request_for_a_huge_array_is_refused(predict, shape):
    with pytest.raises(CodeError) as caught:
        predict(splat(*shape))
    size = shape[0] if len(shape) == 1 else 2**124
    assert (caught.value.code, caught.value.message) == (
        "RESOURCE_EXHAUSTED",
        f"input 'x' has {size} elements, of at most {BYTES}",
    )


@pytest.mark.parametrize("dtype", [tf.variant, tf.resource, None])
def test_a_dtype_that_arrays_do_not_have_is_refused(predict, dtype):
    proto = splat(1)
    proto.dtype = 0 if dtype is None else dtype.as_datatype_enum
    with pytest.raises(CodeError) as caught:
        predict(proto)
    assert (caught.value.code, caught.value.message) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_a_number_beyond_the_dtype_is_refused(predict):
    proto = tf.make_tensor_proto([1], tf.int8)
    proto.ClearField("tensor_content")
    proto.int_val[:] = [300]
    with pytest.raises(CodeError) as caught:
        predict(proto)
    assert (caught.value.code, caught.value.message) == ("INVALID_ARGUMENT", "tensor parsing error: x")


def test_a_request_names_a_model(predict):
    with pytest.raises(CodeError) as caught:
        predict(splat(1), name="")
    assert (caught.value.code, caught.value.message) == ("INVALID_ARGUMENT", "ModelSpec has no name specified.")
