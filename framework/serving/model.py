"""A SavedModel as a server holds it: loaded by TensorFlow alone, warmed up, and asked with arrays.

    model = Model.load(Path("exports/saved_model/2"))
    model.predict("serving_default", {"image": images}, outputs=())

What a caller does wrong is answered with the codes and, as far as they are known, the words of TensorFlow Serving
(its predict_util.cc, which names them; checked against the stored source, not against a running server).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from framework import extras
from framework.errors import said_by_tensorflow
from framework.serving.errors import HTTP_STATUS, CodeError
from framework.serving.fitting import SERVING
from framework.serving.signatures import Served, of_json

WARM_UP = "assets.extra/tf_serving_warmup_requests"
_CODES = {getattr(tf.errors, name): name for name in HTTP_STATUS}


@dataclasses.dataclass(frozen=True)
class Model:
    """A version of a model that is ready for requests.

    Attributes:
      version: its number.
      loaded: what tf.saved_model.load returned, which keeps the variables alive.
      definitions: {name: SignatureDef} of the SavedModel.
      signatures: the same as NumPy dtypes and shapes.
    """

    version: int
    loaded: Any
    definitions: Mapping[str, meta_graph_pb2.SignatureDef]
    signatures: Mapping[str, Served]

    @classmethod
    def load(cls, path: Path) -> "Model":
        """Loads a version's folder and replays its warm-up requests; raises what TensorFlow raises if it cannot."""
        saved = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        definitions = dict(saved.meta_graphs[0].signature_def)
        as_json = {
            name: json_format.MessageToDict(of, preserving_proto_field_name=True) for name, of in definitions.items()
        }
        model = cls(int(path.name), tf.saved_model.load(str(path)), definitions, of_json(as_json))
        model._warm_up(path / WARM_UP)
        return model

    def _warm_up(self, path: Path) -> None:
        if not path.exists():
            return
        logs = extras.load("tensorflow_serving.apis.prediction_log_pb2", "serve")
        for record in tf.data.TFRecordDataset(str(path)):
            log = logs.PredictionLog.FromString(record.numpy())
            if log.WhichOneof("log_type") == "predict_log":
                request = log.predict_log.request
                inputs = {key: tf.make_ndarray(proto) for key, proto in request.inputs.items()}
                self.predict(request.model_spec.signature_name, inputs)

    def signature(self, name: str) -> Served:
        """Returns a signature; '' is that which servers call by default."""
        served = self.signatures.get(name or SERVING)
        if served is None:
            raise CodeError("FAILED_PRECONDITION", f'Serving signature key "{name or SERVING}" not found.')
        return served

    def predict(
        self, name: str, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] = ()
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature; of all if `outputs` names none.

        Raises:
          CodeError: the request does not fit the signature, or an operation fails.
        """
        served = self.signature(name)
        _check(served, inputs, outputs)
        function = self.loaded.signatures[name or SERVING]
        try:
            answer = function(**{key: tf.constant(array) for key, array in inputs.items()})
            return {key: tensor.numpy() for key, tensor in answer.items() if not outputs or key in outputs}
        except tf.errors.OpError as error:
            code = _CODES.get(error.error_code, "UNKNOWN")
            raise CodeError(code, said_by_tensorflow(str(error.message))) from error


def _check(served: Served, inputs: Mapping[str, np.ndarray], outputs: Sequence[str]) -> None:
    """Raises CodeError INVALID_ARGUMENT unless a request has the inputs of a signature."""
    extra, missing = sorted(inputs.keys() - served.inputs), sorted(served.inputs.keys() - inputs)
    if extra or missing:
        sent, wanted = sorted(inputs), sorted(served.inputs)
        raise CodeError(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(sent)}!={len(wanted)} len({{{','.join(sent)}}}) !="
            f" len({{{','.join(wanted)}}}). Sent extra: {{{','.join(extra)}}}."
            f" Missing but required: {{{','.join(missing)}}}.",
        )
    for key, tensor in served.inputs.items():
        array = inputs[key]
        if array.dtype != tensor.dtype:
            given = "bytes" if array.dtype == object else array.dtype.name
            raise CodeError("INVALID_ARGUMENT", f"input '{key}' is {given}, but the signature takes {tensor}")
        if not tensor.takes(array.shape):
            shape = list(array.shape)
            raise CodeError("INVALID_ARGUMENT", f"input '{key}' has shape {shape}, but the signature takes {tensor}")
    for key in outputs:
        if key not in served.outputs:
            raise CodeError(
                "INVALID_ARGUMENT",
                f"output tensor alias not found in signature: {key} Outputs expected to be in the set"
                f" {{{','.join(sorted(served.outputs))}}}.",
            )
