"""The REST API of TensorFlow Serving, by http.client of the standard library.

Connections are kept and used again; each serves one thread at a time. A request that fails on a kept one is sent once
more on a new one: the server may have closed it long ago. Nothing here imports TensorFlow.
"""

import contextlib
import http.client
import json
import threading
import time
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from framework.errors import UserError
from framework.serving.errors import CODE_OF_STATUS, CodeError
from framework.serving.signatures import Served, of_json
from framework.serving.transport import Arrays, State
from framework.serving.values import from_json, to_json

_CHUNK = 2**20  # bytes of an answer between two looks at the deadline


class Rest:
    """A server's REST API.

    Args:
      address: 'http://HOST:PORT' or 'https://HOST:PORT', with a path if a proxy adds one.
      max_bytes: requests with a longer body are refused before they are sent.

    Raises:
      UserError: the address has no host, or a port that is no number.
    """

    names_outputs = False  # numbers have no dtype, and a single output has no name

    def __init__(self, address: str, max_bytes: int) -> None:
        parts = urlsplit(address)
        try:
            self._port = parts.port
        except ValueError:
            self._port = -1
        if not parts.hostname or self._port == -1 or parts.query or parts.fragment:
            raise UserError(f"Client: address='{address}' has no host. Type e.g. http://127.0.0.1:8501.")
        self._host = parts.hostname
        self._prefix = parts.path.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._max_bytes = max_bytes
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def predict(
        self, model: str, version: int | None, name: str, signature: Served, inputs: Arrays, seconds: float
    ) -> dict[str, np.ndarray]:
        end = time.monotonic() + seconds
        _refuse_empty(inputs)
        columns = {key: to_json(array) for key, array in inputs.items()}
        body = json.dumps({"signature_name": name, "inputs": columns}).encode()
        if len(body) > self._max_bytes:
            raise CodeError(
                "RESOURCE_EXHAUSTED", f"the request has {len(body):,} bytes, the client sends {self._max_bytes:,}"
            )
        answer = self._ask("POST", f"{_path(model, version)}:predict", body, end)
        try:
            return _outputs(answer["outputs"], signature)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CodeError("INTERNAL", f"the answer is not that of the signature '{name}': {error}") from error

    def signatures(self, model: str, version: int | None, seconds: float) -> tuple[int, dict[str, Served]]:
        answer = self._ask("GET", f"{_path(model, version)}/metadata", b"", time.monotonic() + seconds)
        try:
            signatures = of_json(answer["metadata"]["signature_def"]["signature_def"])
            return int(answer["model_spec"]["version"]), signatures
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CodeError("INTERNAL", f"the answer is no metadata of a model: {error!r}") from error

    def states(self, model: str, seconds: float) -> list[State]:
        answer = self._ask("GET", _path(model, None), b"", time.monotonic() + seconds)
        try:
            rows = answer["model_version_status"]
            states = [
                State(int(row["version"]), row["state"], row["status"]["error_code"], row["status"]["error_message"])
                for row in rows
            ]
        except (KeyError, TypeError, ValueError) as error:
            raise CodeError("INTERNAL", f"the answer is no status of a model: {error!r}") from error
        return sorted(states, key=lambda state: -state.version)

    def close(self) -> None:
        with self._lock:
            while self._idle:
                self._idle.pop().close()

    def _ask(self, method: str, path: str, body: bytes, end: float) -> Any:
        """Returns the JSON of an answer; raises CodeError for any other status than 200."""
        with self._lock:
            connection = self._idle.pop() if self._idle else None
        is_kept = connection is not None
        connection = connection or self._kind(self._host, self._port)
        try:
            status, content = _exchange(connection, method, f"{self._prefix}{path}", body, end)
        except TimeoutError as error:
            connection.close()
            raise CodeError("DEADLINE_EXCEEDED", "no answer within the time given") from error
        except (http.client.HTTPException, OSError) as error:
            connection.close()
            if is_kept:  # closed by the server since, as the others may be: that says nothing of the server
                self.close()
                return self._ask(method, path, body, end)
            raise CodeError("UNAVAILABLE", _said(error)) from error
        except BaseException:
            connection.close()
            raise
        with self._lock:
            self._idle.append(connection)
        try:
            # Servers send texts byte by byte: one that is no UTF-8 is a surrogate here, and a byte again in `_outputs`.
            answer = json.loads(content.decode(errors="surrogateescape"))
        except ValueError:
            answer = {"error": content[:200].decode(errors="replace")}
        if status != 200:
            said = answer.get("error", answer) if isinstance(answer, dict) else answer
            # A surrogate cannot be printed.
            raise CodeError(CODE_OF_STATUS.get(status, "INTERNAL"), str(said).encode(errors="replace").decode())
        return answer


def _said(error: Exception) -> str:
    if isinstance(error, http.client.BadStatusLine) and not isinstance(error, ConnectionError):
        return "its answer is not of HTTP: is it the port of gRPC?"  # bytes of another protocol cannot be printed
    return str(error) or type(error).__name__


def _exchange(
    connection: http.client.HTTPConnection, method: str, path: str, body: bytes, end: float
) -> tuple[int, bytes]:
    """Sends a request and returns status and content; raises TimeoutError at the deadline, also within an answer."""
    connection.timeout = _left(end)
    if connection.sock is not None:
        connection.sock.settimeout(_left(end))
    headers = {"Content-Type": "application/json"} if body else {}
    # A server that refuses a large body may answer and close before it has read all: the answer is worth reading.
    with contextlib.suppress(BrokenPipeError):
        connection.request(method, path, body or None, headers)
    sock = connection.sock
    sock.settimeout(_left(end))
    response = connection.getresponse()
    parts = []
    while not response.isclosed():
        sock.settimeout(_left(end))
        part = response.read1(_CHUNK)
        if not part:
            break
        parts.append(part)
    rest = response.length  # None of an answer that gives no length; another one has ended before it
    response.close()
    if rest:
        raise http.client.IncompleteRead(b"".join(parts), rest)
    return response.status, b"".join(parts)


def _left(end: float) -> float:
    """Returns the seconds until a deadline; raises TimeoutError if it has passed."""
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _path(model: str, version: int | None) -> str:
    return f"/v1/models/{quote(model, safe='')}" + ("" if version is None else f"/versions/{version}")


def _refuse_empty(inputs: Arrays) -> None:
    """Raises CodeError for an array without values, whose shape nested lists cannot say."""
    for key, array in inputs.items():
        if array.size == 0:
            raise CodeError(
                "INVALID_ARGUMENT",
                f"input '{key}' has shape {list(array.shape)}, which JSON cannot say. Use a grpc:// address",
            )


def _outputs(value: Any, signature: Served) -> dict[str, np.ndarray]:
    """Returns {name: array}; the answer leaves the name of a single output out."""
    named = {next(iter(signature.outputs)): value} if len(signature.outputs) == 1 else value
    if named.keys() != signature.outputs.keys():
        raise ValueError(f"it has the outputs {', '.join(sorted(named))}")
    outputs = {}
    for name, tensor in signature.outputs.items():
        if tensor.dtype is None:
            raise ValueError(f"output '{name}' has a dtype that NumPy does not have")
        outputs[name] = from_json(named[name], tensor.dtype, "surrogateescape")
    return outputs
