"""What a client asks of a protocol: one request at a time, by a deadline, with the codes of gRPC for what fails."""

import dataclasses
from collections.abc import Mapping
from typing import Protocol

import numpy as np

from framework.serving.signatures import Served

Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class State:
    """The state of a version of a model on a server.

    Attributes:
      version: its number.
      state: 'START', 'LOADING', 'AVAILABLE', 'UNLOADING' or 'END'.
      error_code: name of a code; 'OK' if nothing failed.
      error_message: why it could not be loaded.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


class Transport(Protocol):
    """A protocol to one server. Each call raises `CodeError`, and may come from any thread.

    Args of its methods:
      model, version: the model; None is the newest version.
      seconds: until the deadline, more than 0.

    Attributes:
      names_outputs: whether answers have the names and dtypes of outputs; if not, they are read by the signature, which
        must be that of the version that answered.
    """

    names_outputs: bool

    def predict(
        self, model: str, version: int | None, name: str, signature: Served, inputs: Arrays, seconds: float
    ) -> dict[str, np.ndarray]:
        """Returns the outputs of a signature, {name: array}, for inputs that fit it."""

    def signatures(self, model: str, version: int | None, seconds: float) -> tuple[int, dict[str, Served]]:
        """Returns the version that was asked, and its signatures."""

    def states(self, model: str, seconds: float) -> list[State]:
        """Returns the states of the versions of the model, newest first."""

    def close(self) -> None:
        """Closes the connections."""
