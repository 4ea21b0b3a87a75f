"""The gRPC API of TensorFlow Serving: the protos of tensorflow-serving-api, which load TensorFlow.

Needs the extra `serve`.
"""

from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format

from framework import extras
from framework.serving.errors import CodeError
from framework.serving.signatures import Served, of_json
from framework.serving.transport import Arrays, State

# The first try to reach a server again, and the longest pause between two; gRPC's own are 1 s and 120 s, in which a
# server that is back would seem to be down.
_RECONNECT_MS = (100, 1000)


class Rpc:
    """A server's gRPC API.

    Args:
      address: 'HOST:PORT'.
      max_bytes: longer requests are refused before they are sent.

    Raises:
      UserError: tensorflow-serving-api is not installed.
    """

    names_outputs = True

    def __init__(self, address: str, max_bytes: int) -> None:
        self._grpc = extras.load("grpc", "serve")
        self._predict = extras.load("tensorflow_serving.apis.predict_pb2", "serve")
        self._metadata = extras.load("tensorflow_serving.apis.get_model_metadata_pb2", "serve")
        self._status = extras.load("tensorflow_serving.apis.get_model_status_pb2", "serve")
        prediction = extras.load("tensorflow_serving.apis.prediction_service_pb2_grpc", "serve")
        models = extras.load("tensorflow_serving.apis.model_service_pb2_grpc", "serve")
        self._max_bytes = max_bytes
        first, longest = _RECONNECT_MS
        self._channel = self._grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_send_message_length", -1),  # `predict` looks itself
                ("grpc.max_receive_message_length", -1),
                ("grpc.initial_reconnect_backoff_ms", first),
                ("grpc.min_reconnect_backoff_ms", first),
                ("grpc.max_reconnect_backoff_ms", longest),
                ("grpc.enable_retries", 0),  # the client has its own
                ("grpc.use_local_subchannel_pool", 1),  # another client's waiting for this address is not ours
            ],
        )
        self._prediction = prediction.PredictionServiceStub(self._channel)
        self._models = models.ModelServiceStub(self._channel)

    def predict(
        self, model: str, version: int | None, name: str, signature: Served, inputs: Arrays, seconds: float
    ) -> dict[str, np.ndarray]:
        size = sum(array.nbytes for array in inputs.values())
        if size <= self._max_bytes:
            request = self.request(model, version, name, inputs)
            size = request.ByteSize()
        if size > self._max_bytes:
            raise CodeError(
                "RESOURCE_EXHAUSTED", f"the request has {size:,} bytes, the client sends {self._max_bytes:,}"
            )
        answer = self._call(self._prediction.Predict, request, seconds)
        return {key: tf.make_ndarray(proto) for key, proto in answer.outputs.items()}

    def request(self, model: str, version: int | None, name: str, inputs: Arrays) -> Any:
        """Returns the PredictRequest of inputs."""
        request = self._predict.PredictRequest()
        _fill(request.model_spec, model, version)
        request.model_spec.signature_name = name
        for key, array in inputs.items():
            request.inputs[key].CopyFrom(tf.make_tensor_proto(array))
        return request

    def signatures(self, model: str, version: int | None, seconds: float) -> tuple[int, dict[str, Served]]:
        request = self._metadata.GetModelMetadataRequest(metadata_field=["signature_def"])
        _fill(request.model_spec, model, version)
        answer = self._call(self._prediction.GetModelMetadata, request, seconds)
        signatures = self._metadata.SignatureDefMap()
        if not answer.metadata["signature_def"].Unpack(signatures):
            raise CodeError("INTERNAL", "the answer is no metadata of a model")
        as_json = json_format.MessageToDict(signatures, preserving_proto_field_name=True)
        return answer.model_spec.version.value, of_json(as_json.get("signature_def", {}))

    def states(self, model: str, seconds: float) -> list[State]:
        request = self._status.GetModelStatusRequest()
        _fill(request.model_spec, model, None)
        answer = self._call(self._models.GetModelStatus, request, seconds)
        codes = {number: name for name, number in tf.errors.__dict__.items() if name.isupper()}
        names = self._status.ModelVersionStatus.State
        states = [
            State(row.version, names.Name(row.state), codes.get(row.status.error_code, "OK"), row.status.error_message)
            for row in answer.model_version_status
        ]
        return sorted(states, key=lambda state: -state.version)

    def close(self) -> None:
        self._channel.close()

    def _call(self, method: Any, request: Any, seconds: float) -> Any:
        try:
            return method(request, timeout=seconds)
        except self._grpc.RpcError as error:
            raise CodeError(error.code().name, error.details() or "") from error


def _fill(spec: Any, model: str, version: int | None) -> None:
    spec.name = model
    if version is not None:
        spec.version.value = version
