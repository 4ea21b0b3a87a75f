"""Serving exports: a client, a development server, and the start of TensorFlow Serving.

    with serving.Client("grpc://127.0.0.1:8500", "mnist") as client:
        logits = client.predict({"image": images})["logits"]

`--mode=serve` starts a server. The page of this room is README.md.
"""

from framework.serving.client import Client
from framework.serving.errors import (
    DeadlineError,
    DtypeError,
    InputNameError,
    RefusedError,
    ServingError,
    ShapeError,
    TooLargeError,
    UnavailableError,
    UnknownModelError,
    UnknownSignatureError,
    UnknownVersionError,
)
from framework.serving.signatures import Served, Tensor
from framework.serving.transport import State

__all__ = [
    "Client",
    "DeadlineError",
    "DtypeError",
    "InputNameError",
    "RefusedError",
    "Served",
    "ServingError",
    "ShapeError",
    "State",
    "Tensor",
    "TooLargeError",
    "UnavailableError",
    "UnknownModelError",
    "UnknownSignatureError",
    "UnknownVersionError",
]
