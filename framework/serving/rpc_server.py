"""The gRPC side of the development server: Predict, GetModelMetadata and GetModelStatus, by the official protos."""

import math
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import tensorflow as tf

from framework import extras
from framework.errors import UserError
from framework.serving.errors import CodeError
from framework.serving.versions import Versions

_THREADS = 16  # requests that are computed at once; TensorFlow has threads of its own, further requests wait
_MOST_WAITING = 2**31 - 1


class RpcServer:
    """A gRPC server on 127.0.0.1.

    Args:
      versions: what is served.
      port: 0 takes a free one.
      max_bytes: longer requests are answered RESOURCE_EXHAUSTED.

    Raises:
      UserError: tensorflow-serving-api is not installed, or the port is taken.
    """

    def __init__(self, versions: Versions, port: int, max_bytes: int) -> None:
        self._grpc = extras.load("grpc", "serve")
        self._predict = extras.load("tensorflow_serving.apis.predict_pb2", "serve")
        self._metadata = extras.load("tensorflow_serving.apis.get_model_metadata_pb2", "serve")
        self._status = extras.load("tensorflow_serving.apis.get_model_status_pb2", "serve")
        self._versions = versions
        self._max_bytes = max_bytes
        # Requests that wait keep their messages: nothing else bounds them on a development server.
        self._server = self._grpc.server(
            ThreadPoolExecutor(_THREADS, thread_name_prefix="grpc"),
            options=[
                ("grpc.max_receive_message_length", max_bytes),
                ("grpc.max_send_message_length", -1),
                # By its own limits gRPC cancels requests at random while thousands wait.
                ("grpc.server.max_pending_requests", _MOST_WAITING),
                ("grpc.server.max_pending_requests_hard_limit", _MOST_WAITING),
                ("grpc.so_reuseport", 0),  # a second server on the port is an error, and takes no requests
            ],
        )
        self._add("PredictionService", "Predict", self.predict, self._predict.PredictRequest)
        self._add("PredictionService", "GetModelMetadata", self.metadata, self._metadata.GetModelMetadataRequest)
        self._add("ModelService", "GetModelStatus", self.status, self._status.GetModelStatusRequest)
        try:
            self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        except RuntimeError as error:
            raise UserError(f"--port={port} is taken: another server may run. Type another one, or 0.") from error

    def start(self) -> None:
        self._server.start()

    def stop(self, seconds: float) -> None:
        """Takes no further requests, and waits so long for those under way."""
        self._server.stop(seconds).wait()

    def _add(self, service: str, method: str, answer: Callable[[Any], Any], request: Any) -> None:
        def handle(message: Any, context: Any) -> Any:
            try:
                return answer(message)
            except CodeError as error:
                failure = error
            except Exception as error:
                traceback.print_exc()
                failure = CodeError("INTERNAL", f"{type(error).__name__}: {error}")
            return context.abort(self._grpc.StatusCode[failure.code], failure.message)

        handler = self._grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=request.FromString, response_serializer=lambda reply: reply.SerializeToString()
        )
        name = f"tensorflow.serving.{service}"
        self._server.add_generic_rpc_handlers((self._grpc.method_handlers_generic_handler(name, {method: handler}),))

    def predict(self, request: Any) -> Any:
        """Returns the PredictResponse of a PredictRequest."""
        model = self._versions.asked(*_asked(request.model_spec))
        name = request.model_spec.signature_name
        inputs = {key: self._array(key, proto) for key, proto in request.inputs.items()}
        outputs = model.predict(name, inputs, request.output_filter)
        response = self._predict.PredictResponse()
        _fill(response.model_spec, self._versions.name, model.version)
        response.model_spec.signature_name = name or "serving_default"
        for key, array in outputs.items():
            response.outputs[key].CopyFrom(tf.make_tensor_proto(array))
        return response

    def _array(self, key: str, proto: Any) -> np.ndarray:
        """Returns the array of a TensorProto, which may be a shape and the one value that all elements have."""
        size = math.prod(max(0, dim.size) for dim in proto.tensor_shape.dim)
        if size > self._max_bytes:  # of one byte each at least, if they had been sent
            raise CodeError("RESOURCE_EXHAUSTED", f"input '{key}' has {size} elements, of at most {self._max_bytes}")
        try:
            return tf.make_ndarray(proto)
        # KeyError: a dtype that NumPy does not have. OverflowError: a number that is beyond the dtype.
        except (TypeError, ValueError, KeyError, OverflowError) as error:
            raise CodeError("INVALID_ARGUMENT", f"tensor parsing error: {key}") from error

    def metadata(self, request: Any) -> Any:
        """Returns the GetModelMetadataResponse of a request for 'signature_def', the only metadata there is."""
        model = self._versions.asked(*_asked(request.model_spec))
        if not request.metadata_field:
            raise CodeError("INVALID_ARGUMENT", "GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise CodeError("INVALID_ARGUMENT", f"Metadata field {field} is not supported")
        signatures = self._metadata.SignatureDefMap()
        for name, definition in model.definitions.items():
            signatures.signature_def[name].CopyFrom(definition)
        response = self._metadata.GetModelMetadataResponse()
        _fill(response.model_spec, self._versions.name, model.version)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: Any) -> Any:
        """Returns the GetModelStatusResponse of a request."""
        response = self._status.GetModelStatusResponse()
        for state in self._versions.states(*_asked(request.model_spec)):
            row = response.model_version_status.add(version=state.version)
            row.state = self._status.ModelVersionStatus.State.Value(state.state)
            row.status.error_code = 0 if state.error_code == "OK" else getattr(tf.errors, state.error_code)
            row.status.error_message = state.error_message
        return response


def _asked(spec: Any) -> tuple[str, int | None]:
    """Returns name and version of a ModelSpec; a label, which the development server does not have, is not found."""
    if not spec.name:
        raise CodeError("INVALID_ARGUMENT", "ModelSpec has no name specified.")
    if spec.version_label:
        raise CodeError("INVALID_ARGUMENT", f"Unrecognized servable version label: {spec.version_label}")
    return spec.name, spec.version.value if spec.HasField("version") else None


def _fill(spec: Any, name: str, version: int) -> None:
    spec.name = name
    spec.version.value = version
