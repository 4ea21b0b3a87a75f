"""The REST side of the development server, by http.server of the standard library: a thread for each connection."""

import json
import math
import re
import socket
import threading
import traceback
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NoReturn

import numpy as np
from google.protobuf import json_format

from framework.errors import UserError
from framework.serving.errors import HTTP_STATUS, CodeError
from framework.serving.signatures import DTYPES, Served
from framework.serving.values import from_json, to_json
from framework.serving.versions import Versions

_PREDICT = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?:predict", re.IGNORECASE)
_LOOK = re.compile(r"/v1/models/([^/:]+)(?:/versions/(\d+))?(/metadata)?", re.IGNORECASE)
_HERE = re.compile(r"(127\.0\.0\.1|localhost)(:\d+)?")
_WITHOUT_JSON = [DTYPES[name] for name in ("DT_HALF", "DT_BFLOAT16", "DT_UINT16")]  # json_tensor.cc lacks them
_CHUNK = 2**20
_DIGITS = 18  # of a length: more are no length
_LARGEST = 2**63 - 1  # version
_IDLE_SECONDS = 60.0  # after which a connection without a request is closed


class HttpServer:
    """A REST server on 127.0.0.1.

    Args:
      versions: what is served.
      port: 0 takes a free one.
      max_bytes: longer requests are answered RESOURCE_EXHAUSTED.

    Raises:
      UserError: the port is taken.
    """

    def __init__(self, versions: Versions, port: int, max_bytes: int) -> None:
        handler = type("Handler", (_Handler,), {"versions": versions, "max_bytes": max_bytes})
        try:
            self._server = _Server(("127.0.0.1", port), handler)
        except OSError as error:
            raise UserError(
                f"--rest_port={port} is taken: {error.strerror}. Type another one, or 0 for a free one."
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(target=self._server.serve_forever, name="rest", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Takes no further connections."""
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 1024  # connections that come at once; the default is 5, further ones wait for seconds
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no event."""


class _Handler(BaseHTTPRequestHandler):
    versions: Versions
    max_bytes: int
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def setup(self) -> None:
        super().setup()
        # An answer has two writes, and the second would wait for the client to acknowledge the first: 40 ms.
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_GET(self) -> None:
        if self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers:
            self.close_connection = True  # a body that is not read would be taken for the next request
        self._answered(lambda: self._look())

    def do_POST(self) -> None:
        self._answered(lambda: self._predict(self._body()))

    def do_PUT(self) -> None:
        self.close_connection = True  # its body is not read
        self._answered(self._malformed)

    do_PATCH = do_DELETE = do_OPTIONS = do_PUT

    def log_message(self, *arguments: Any) -> None:
        """A line for each request would hide those that matter."""

    def _answered(self, answer: Callable[[], Any]) -> None:
        try:
            # A page in a browser may name this address by a host name of its own.
            if not _HERE.fullmatch(self.headers.get("Host", "127.0.0.1")):
                self.close_connection = True  # or the page could send a request with another Host as the body of this
                raise CodeError("PERMISSION_DENIED", "the development server answers 127.0.0.1 and localhost alone")
            status, value = 200, answer()
        except CodeError as error:
            status, value = HTTP_STATUS[error.code], {"error": error.message}
        except (ConnectionError, TimeoutError):  # of the client
            raise
        except Exception as error:
            traceback.print_exc()
            status, value = 500, {"error": f"{type(error).__name__}: {error}"}
        content = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def _body(self) -> bytes:
        """Returns the body; one that is too long is read and thrown away, since its sender listens only then."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or len(length) > _DIGITS or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise CodeError("INVALID_ARGUMENT", "a request needs a Content-Length")
        left = int(length)
        if left <= self.max_bytes:
            return self.rfile.read(left)
        while left:
            part = self.rfile.read(min(left, _CHUNK))
            if not part:
                break
            left -= len(part)
        raise CodeError("RESOURCE_EXHAUSTED", f"Received message larger than max ({length} vs. {self.max_bytes})")

    def _malformed(self) -> NoReturn:
        raise CodeError("INVALID_ARGUMENT", f"Malformed request: {self.command} {self.path}")

    def _look(self) -> Any:
        """Returns the status or the metadata of a model."""
        match = _LOOK.fullmatch(self.path.partition("?")[0])
        if not match:
            self._malformed()
        name, version = match[1], _number(match[2])
        if match[3]:
            return self._metadata(name, version)
        return {
            "model_version_status": [
                {
                    "version": str(state.version),
                    "state": state.state,
                    "status": {"error_code": state.error_code, "error_message": state.error_message},
                }
                for state in self.versions.states(name, version)
            ]
        }

    def _metadata(self, name: str, version: int | None) -> Any:
        model = self.versions.asked(name, version)
        signatures = {
            key: json_format.MessageToDict(
                of, always_print_fields_with_no_presence=True, preserving_proto_field_name=True
            )
            for key, of in model.definitions.items()
        }
        return {
            "model_spec": {"name": name, "signature_name": "", "version": str(model.version)},
            "metadata": {"signature_def": {"signature_def": signatures}},
        }

    def _predict(self, body: bytes) -> bytes:
        """Returns the predictions for instances, or the outputs for inputs, as JSON.

        Texts are sent byte by byte, as TensorFlow Serving sends them, also if they are no UTF-8.
        """
        return json.dumps(self._predicted(body), ensure_ascii=False).encode(errors="surrogateescape")

    def _predicted(self, body: bytes) -> Any:
        match = _PREDICT.fullmatch(self.path.partition("?")[0])
        if not match:
            self._malformed()
        try:
            request = json.loads(body, parse_float=_finite)
        except (ValueError, RecursionError) as error:
            raise CodeError("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
        if not isinstance(request, dict) or ("instances" in request) == ("inputs" in request):
            raise CodeError("INVALID_ARGUMENT", "a request is an object with one of 'instances' and 'inputs'")
        model = self.versions.asked(match[1], _number(match[2]))
        name = request.get("signature_name", "")
        if not isinstance(name, str):
            raise CodeError("INVALID_ARGUMENT", "'signature_name' key must be a string value.")
        served = model.signature(name)
        if "inputs" in request:
            outputs = model.predict(name, _arrays(_columns(request["inputs"], served), served))
            shown = {key: _shown(key, array) for key, array in outputs.items()}
            return {"outputs": next(iter(shown.values())) if len(shown) == 1 else shown}
        outputs = model.predict(name, _arrays(_turned(request["instances"], served), served))
        return {"predictions": _rows(outputs)}


def _finite(text: str) -> float:
    """Returns the number of a text; raises ValueError for one like 1e400, which Python takes for infinity."""
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:40]} is too large a number")
    return number


def _number(text: str | None) -> int | None:
    if text is None:
        return None
    if len(text) > len(str(_LARGEST)) or int(text) > _LARGEST:
        raise CodeError("INVALID_ARGUMENT", f"{text[:40]} is not a version: {_LARGEST} is the largest")
    return int(text)


def _columns(inputs: Any, served: Served) -> Mapping[str, Any]:
    """Returns {name: value}; the name of a single input may be left out."""
    is_named = isinstance(inputs, dict) and inputs.keys() != {"b64"}
    return inputs if is_named or len(served.inputs) != 1 else {next(iter(served.inputs)): inputs}


def _turned(instances: Any, served: Served) -> Mapping[str, Any]:
    """Returns {name: values of all rows} of a list of rows, each a value or {name: value}."""
    if not isinstance(instances, list) or not instances:
        raise CodeError("INVALID_ARGUMENT", "'instances' must be a list of at least one row")
    rows = [_columns(row, served) for row in instances]
    if not all(isinstance(row, dict) and row.keys() == rows[0].keys() for row in rows):
        raise CodeError("INVALID_ARGUMENT", "each of 'instances' must be an object with the same keys")
    return {key: [row[key] for row in rows] for key in rows[0]}


def _arrays(columns: Any, served: Served) -> dict[str, np.ndarray]:
    if not isinstance(columns, dict):
        raise CodeError("INVALID_ARGUMENT", f"'inputs' must be an object with {', '.join(sorted(served.inputs))}")
    arrays = {}
    for key, value in columns.items():
        tensor = served.inputs.get(key)
        if tensor is not None and tensor.dtype in _WITHOUT_JSON:
            raise CodeError("UNIMPLEMENTED", f"Conversion of JSON values of input '{key}' to type: {tensor.dtype}")
        try:
            # An unknown input is refused with the others', by the model.
            dtype = np.dtype(object) if tensor is None or tensor.dtype is None else tensor.dtype
            arrays[key] = np.zeros(0) if tensor is None else from_json(value, dtype)
        except (ValueError, RecursionError) as error:
            raise CodeError("INVALID_ARGUMENT", f"Failed to process element of input '{key}': {error}") from error
    return arrays


def _shown(key: str, array: np.ndarray) -> Any:
    """Returns an output as JSON: texts as text, and as base64 if the name ends in _bytes."""
    if array.dtype in _WITHOUT_JSON:
        raise CodeError("INVALID_ARGUMENT", f"Failed to write JSON values of output '{key}' of type: {array.dtype}")
    return to_json(array, by_base64=key.endswith("_bytes"))


def _rows(outputs: Mapping[str, np.ndarray]) -> list[Any]:
    """Returns the outputs row by row: values if there is one output, {name: value} if there are several."""
    lengths = {len(array) if array.ndim else None for array in outputs.values()}
    if len(lengths) != 1 or None in lengths:
        raise CodeError("INVALID_ARGUMENT", "the outputs have no common rows. Send 'inputs' instead of 'instances'")
    shown = {key: _shown(key, array) for key, array in outputs.items()}
    if len(shown) == 1:
        return list(next(iter(shown.values())))
    return [dict(zip(shown, values, strict=True)) for values in zip(*shown.values(), strict=True)]
