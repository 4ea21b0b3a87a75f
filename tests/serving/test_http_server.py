"""The REST side of the development server by itself: what a connection is answered, byte by byte."""

import json
import socket
import types

import numpy as np
import pytest

from framework.serving.http_server import HttpServer
from framework.serving.signatures import Served, Tensor
from framework.serving.transport import State

INNER = b"GET /v1/models/m HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def port():
    served = {
        "": Served({"word": Tensor(np.dtype(object), (None,))}, {}),
        "mean": Served({"x": Tensor(np.dtype(float), (None,))}, {}),
        "half": Served({"x": Tensor(np.dtype(np.float16), (None,))}, {}),
    }
    model = types.SimpleNamespace(
        signature=served.__getitem__,
        predict=lambda name, inputs: {**inputs, "mean": np.mean(inputs["x"])} if name else inputs,
    )
    versions = types.SimpleNamespace(
        states=lambda name, version: {"m": [State(1, "AVAILABLE")]}[name], asked=lambda name, version: model
    )
    server = HttpServer(versions, 0, 2**20)
    server.start()
    yield server.port
    server.stop()


def answered(port, request):
    """Returns all that the server sends until it closes the connection."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        received = b""
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize(
    ("line", "host", "status"),
    [("POST /v1/models/m:predict", "evil.example", 403), ("GET /v1/models/m", "127.0.0.1", 200)],
)
def test_a_body_that_is_not_read_is_no_request(port, line, host, status):
    """A page of a host that is refused would otherwise be answered to what it sends as the body."""
    head = f"{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(INNER)}\r\n\r\n"
    received = answered(port, head.encode() + INNER)
    assert received.startswith(b"HTTP/1.1 %d " % status) and received.count(b"HTTP/1.1 ") == 1
    assert b"\r\nConnection: close\r\n" in received


def test_a_connection_is_kept_for_the_next_request(port):
    received = answered(port, INNER + INNER.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
    assert received.count(b"HTTP/1.1 200 ") == 2


@pytest.mark.parametrize("header", ["Content-Length: " + 5000 * "1", "Content-Length: 0\r\nTransfer-Encoding: chunked"])
def test_a_body_without_a_known_length_is_no_request(port, header, capfd):
    received = answered(port, f"POST /v1/models/m:predict HTTP/1.1\r\n{header}\r\n\r\n".encode() + INNER)
    assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1 ") == 1
    assert b"a request needs a Content-Length" in received and "Traceback" not in capfd.readouterr().err


def posted(port, path, content):
    head = f"POST {path} HTTP/1.1\r\nConnection: close\r\nContent-Length: {len(content)}\r\n\r\n"
    return answered(port, head.encode() + content)


@pytest.mark.parametrize("number", [str(2**63), 5000 * "1"])
def test_a_version_that_is_no_int64_is_refused(port, number, capfd):
    received = posted(port, f"/v1/models/m/versions/{number}:predict", b'{"inputs": ["a"]}')
    assert received.startswith(b"HTTP/1.1 400 ") and b"is not a version" in received
    assert "Traceback" not in capfd.readouterr().err


def test_lists_that_are_too_deep_are_refused(port, capfd):
    """Python reads some that are too deep for functions that call themselves."""
    for depth in range(900, 1000):
        received = posted(
            port,
            "/v1/models/m:predict",
            json.dumps({"inputs": None}).encode().replace(b"null", depth * b"[" + depth * b"]"),
        )
        assert received.startswith(b"HTTP/1.1 400 "), depth
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"signature_name": "mean", "instances": [1.5]}', b"the outputs have no common rows."),  # one is a scalar
        (b'{"signature_name": "mean", "inputs": [1e400]}', b"JSON Parse error: 1e400 is too large a number"),
    ],
)
def test_what_has_no_answer_is_refused(port, content, said, capfd):
    received = posted(port, "/v1/models/m:predict", content)
    assert received.startswith(b"HTTP/1.1 400 ") and said in received
    assert "Traceback" not in capfd.readouterr().err


def test_infinity_is_a_number(port):
    received = posted(port, "/v1/models/m:predict", b'{"signature_name": "mean", "inputs": [Infinity]}')
    assert received.startswith(b"HTTP/1.1 200 ") and b'"mean": Infinity' in received


def test_a_dtype_that_tensorflow_serving_has_not_in_json_is_refused(port):
    """Or a model would be tried out by requests that fail in production."""
    received = posted(port, "/v1/models/m:predict", b'{"signature_name": "half", "inputs": [1.5]}')
    assert received.startswith(b"HTTP/1.1 501 ") and b"of input 'x' to type: float16" in received


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "OPTIONS"])
def test_another_method_is_malformed(port, method):
    """Its body is no request of its own."""
    head = f"{method} /v1/models/m HTTP/1.1\r\nContent-Length: {len(INNER)}\r\n\r\n"
    received = answered(port, head.encode() + INNER)
    assert received.startswith(b"HTTP/1.1 400 ") and received.count(b"HTTP/1.1 ") == 1
    assert f'"Malformed request: {method} /v1/models/m"'.encode() in received


def test_what_follows_a_question_mark_is_no_part_of_the_name(port):
    received = answered(port, b"GET /v1/models/m?x=1 HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200 ")
    assert posted(port, "/v1/models/m:predict?x=1", b'{"inputs": ["a"]}').startswith(b"HTTP/1.1 200 ")
