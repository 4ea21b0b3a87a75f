"""The REST side of the development server by itself: what a connection is answered, byte by byte."""

import socket
import types

import pytest

from framework.serving.http_server import HttpServer
from framework.serving.transport import State

INNER = b"GET /v1/models/m HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def port():
    server = HttpServer(types.SimpleNamespace(states=lambda name, version: [State(1, "AVAILABLE")]), 0, 2**20)
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
