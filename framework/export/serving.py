"""What TensorFlow Serving wants beside a SavedModel: configs, and requests that warm a version up.

    SavedModel({SERVING: signature}, serving=Serving("mnist", warm_up=(1, 32)))

    exports/saved_model/models.config, batching.config, monitoring.config      # written once, and then yours to edit
    exports/saved_model/1/assets.extra/tf_serving_warmup_requests              # replayed before the version is served

The requests are protos of the package tensorflow-serving-api: make run EXTRAS=serve.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import tensorflow as tf

from framework import extras
from framework.errors import UserError
from framework.export.base import Arrays, Signature, first_rows

_WARM_UP = "assets.extra/tf_serving_warmup_requests"  # the path that TensorFlow Serving reads
_MOST_REQUESTS = 1000  # TensorFlow Serving refuses a version with more


@dataclasses.dataclass(frozen=True)
class Serving:
    """Says how TensorFlow Serving serves a SavedModel.

    Attributes:
      name: the model in requests, `/v1/models/<name>:predict`, and in the path of the container, `/models/<name>`.
      warm_up: batch sizes; each signature gets a request of each, of held-out examples. () writes none.
      max_batch: most examples of the requests that a server puts together, for batching.config.
      batch_timeout_us: longest time that a request waits for others, in microseconds.

    Raises:
      UserError: a value is out of range.
    """

    name: str
    warm_up: Sequence[int] = ()
    max_batch: int = 32
    batch_timeout_us: int = 1000

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", self.name):
            raise UserError(f"Serving: name='{self.name}' is not a model's name. Use letters, digits and any of _.-")
        sizes = {"max_batch": self.max_batch, **{f"warm_up[{i}]": size for i, size in enumerate(self.warm_up)}}
        for name, value in sizes.items():
            if value < 1:
                raise UserError(f"Serving: {name}={value} is out of range: it must be at least 1.")
        if self.batch_timeout_us < 0:
            raise UserError(f"Serving: batch_timeout_us={self.batch_timeout_us} is out of range: it must be 0 or more.")

    def files(self, is_compiled: bool) -> dict[str, str]:
        """Returns {file: text} of the configs, text protos that flags of tensorflow_model_server name.

        Args:
          is_compiled: whether the signatures are XLA programs: batches are then padded to powers of two, because each
            other size would be compiled anew.
        """
        return {
            "models.config": (
                "model_config_list {\n  config {\n"
                f'    name: "{self.name}"\n    base_path: "/models/{self.name}"\n    model_platform: "tensorflow"\n'
                "  }\n}\n"
            ),
            "batching.config": (
                f"max_batch_size {{ value: {self.max_batch} }}\n"
                f"batch_timeout_micros {{ value: {self.batch_timeout_us} }}\n"
                + "".join(f"allowed_batch_sizes: {size}\n" for size in self._sizes() if is_compiled)
            ),
            "monitoring.config": 'prometheus_config {\n  enable: true\n  path: "/monitoring/prometheus/metrics"\n}\n',
        }

    def _sizes(self) -> list[int]:
        """Returns the powers of two below `max_batch`, and itself."""
        return [
            *(2**power for power in range(self.max_batch.bit_length()) if 2**power < self.max_batch),
            self.max_batch,
        ]

    def write_warm_up(self, version: Path, signatures: Mapping[str, Signature], batch: Arrays) -> None:
        """Writes the requests into the folder of a version; does nothing if `warm_up` is ().

        Args:
          version: the folder, which has the SavedModel.
          signatures: {name: signature}.
          batch: held-out examples; fewer than a request needs are repeated.

        Raises:
          UserError: tensorflow-serving-api is not installed, there are more than 1,000 requests, or the examples do not
            have the inputs of a signature.
        """
        if not self.warm_up:
            return
        logs = extras.load("tensorflow_serving.apis.prediction_log_pb2", "serve")
        if len(signatures) * len(self.warm_up) > _MOST_REQUESTS:
            raise UserError(
                f"Serving: warm_up has {len(self.warm_up)} batch sizes for {len(signatures)} signatures, but TensorFlow"
                f" Serving takes {_MOST_REQUESTS} requests. Leave some out."
            )
        path = version / _WARM_UP
        path.parent.mkdir()
        with tf.io.TFRecordWriter(str(path)) as writer:
            for name, signature in signatures.items():
                signature.check(name, batch, "held-out")
                for size in self.warm_up:
                    log = logs.PredictionLog()
                    request = log.predict_log.request
                    request.model_spec.name = self.name
                    request.model_spec.signature_name = name
                    for key, array in signature.inputs_of(first_rows(batch, size)).items():
                        request.inputs[key].CopyFrom(tf.make_tensor_proto(array, signature.inputs[key].dtype))
                    writer.write(log.SerializeToString(deterministic=True))
