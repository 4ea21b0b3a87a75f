"""The client by itself: retries, deadlines, batches and arguments, on a transport that answers what a test wants."""

import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from framework import serving
from framework.errors import UserError
from framework.serving import client as module
from framework.serving.errors import CodeError
from framework.serving.signatures import Served, Tensor
from tests.documentation import ROOT

FLOAT = np.dtype(np.float32)
SERVED = {"serving_default": Served({"x": Tensor(FLOAT, (None, 2))}, {"y": Tensor(FLOAT, (None, 2))})}


class Fake:
    """Doubles x, after the codes in `failures`, one a request; `sent` has the rows and seconds of each request."""

    names_outputs = True

    def __init__(self, *failures, signatures=SERVED):
        self.failures = [*failures]
        self.served = signatures
        self.sent = []
        self.looks = 0

    def predict(self, model, version, name, signature, inputs, seconds):
        self.sent.append((len(inputs["x"]), seconds))
        if self.failures:
            raise CodeError(self.failures.pop(0), "said")
        return {"y": 2 * inputs["x"]}

    def signatures(self, model, version, seconds):
        self.looks += 1
        return self.states(model, seconds)[0].version, self.served

    def states(self, model, seconds):
        return [serving.State(1, "AVAILABLE")]

    def close(self):
        pass


X = np.arange(14, dtype=np.float32).reshape(7, 2)


@pytest.fixture
def made(monkeypatch):
    """made(transport, …): a client on it, and the pauses that it took."""

    def make(transport, **settings):
        monkeypatch.setattr(module, "_transport", lambda address, max_bytes: transport)
        return serving.Client("grpc://nowhere:1", "m", **settings)

    return make


@pytest.fixture
def pauses(monkeypatch):
    taken = []
    monkeypatch.setattr(module.time, "sleep", taken.append)
    return taken


def test_unavailable_is_tried_again_with_growing_pauses(made, pauses):
    fake = Fake(*["UNAVAILABLE"] * 3)
    answer = made(fake, retries=3, pause=0.1).predict({"x": X})
    np.testing.assert_array_equal(answer["y"], 2 * X)
    assert len(fake.sent) == 4 and len(pauses) == 3
    assert all(0.5 * longest <= pause <= longest for pause, longest in zip(pauses, (0.1, 0.2, 0.4), strict=True))


def test_retries_end(made, pauses):
    fake = Fake(*["UNAVAILABLE"] * 9)
    with pytest.raises(serving.UnavailableError) as caught:
        made(fake, retries=2).predict({"x": X})
    assert str(caught.value) == "grpc://nowhere:1: the server is unavailable after 3 tries: said"
    assert len(fake.sent) == 3
    with pytest.raises(serving.UnavailableError, match=r"unavailable at the first try: said$"):
        made(Fake("UNAVAILABLE"), retries=0).predict({"x": X})


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARGUMENT", serving.RefusedError),
        ("FAILED_PRECONDITION", serving.RefusedError),
        ("RESOURCE_EXHAUSTED", serving.TooLargeError),
        ("DEADLINE_EXCEEDED", serving.DeadlineError),
        ("NOT_FOUND", serving.UnknownModelError),
        ("INTERNAL", serving.ServingError),
        ("UNKNOWN", serving.ServingError),
        ("ABORTED", serving.ServingError),
    ],
)
def test_nothing_else_is_tried_again(made, pauses, code, error):
    fake = Fake(code)
    with pytest.raises(error) as caught:
        made(fake).predict({"x": X})
    assert caught.type is error and len(fake.sent) == 1 and pauses == []


class Clock:
    """The time of the client, which moves when it sleeps, by `delay` longer than it wants, or when a test says so."""

    def __init__(self, delay=0.0):
        self.now, self.delay = 100.0, delay

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds + self.delay


@pytest.mark.parametrize(
    ("delay", "fewest", "most", "said"), [(0.0, 4, 5, r"after \d tries"), (0.5, 1, 1, "at the first try")]
)
def test_a_retry_never_passes_the_deadline(made, monkeypatch, delay, fewest, most, said):
    """Pauses are 0.02, 0.04, 0.08, 0.16 s less a half at most: three always end in 0.2 s, five never."""
    monkeypatch.setattr(module, "time", clock := Clock(delay))
    fake = Fake(*["UNAVAILABLE"] * 99)
    with pytest.raises(serving.UnavailableError, match=rf"the server is unavailable {said}: said$"):
        made(fake, retries=99, pause=0.02).predict({"x": X}, seconds=0.2)
    assert fewest <= len(fake.sent) <= most and clock.now < 100.2 + delay


def test_the_deadline_is_that_of_the_whole_call(made, monkeypatch):
    monkeypatch.setattr(module, "time", clock := Clock())

    class Slow(Fake):
        def predict(self, *arguments):
            clock.now += 0.05
            return super().predict(*arguments)

    slow = Slow()
    with pytest.raises(serving.DeadlineError, match=r"^grpc://nowhere:1: no answer within the time given\. Give more"):
        made(slow).predict({"x": X}, max_batch=1, seconds=0.12)
    assert [seconds for _, seconds in slow.sent] == pytest.approx([0.12, 0.07, 0.02])


def test_rows_are_sent_in_parts(made):
    fake = Fake()
    np.testing.assert_array_equal(made(fake).predict({"x": X}, max_batch=3)["y"], 2 * X)
    assert [rows for rows, _ in fake.sent] == [3, 3, 1]
    whole = Fake()
    made(whole).predict({"x": X})
    assert [rows for rows, _ in whole.sent] == [7]


def test_an_output_without_rows_cannot_be_put_together(made):
    class Mean(Fake):
        def predict(self, *arguments):
            return {"y": super().predict(*arguments)["y"].mean(axis=0, keepdims=True)}

    with pytest.raises(
        serving.ShapeError, match=r"output 'y' has shape \[1, 2\] for 3 rows, .* Leave max_batch out\.$"
    ):
        made(Mean()).predict({"x": X}, max_batch=3)


class Rolling(Fake):
    """Answers version * x, and serves version 2 in place of 1 from the second request on."""

    def predict(self, model, version, name, signature, inputs, seconds):
        answer = super().predict(model, version, name, signature, inputs, seconds)
        newest = self.states(model, seconds)[0].version
        if version not in (None, newest):
            raise CodeError("NOT_FOUND", "said")
        return {"y": answer["y"] / 2 * newest}

    def states(self, model, seconds):
        return [serving.State(1 if len(self.sent) < 2 else 2, "AVAILABLE")]


def test_one_version_answers_all_parts(made):
    fake = Rolling()
    np.testing.assert_array_equal(made(fake).predict({"x": X}, max_batch=3)["y"], 2 * X)
    assert [rows for rows, _ in fake.sent] == [3, 3, 3, 3, 1]
    with pytest.raises(serving.UnknownVersionError, match=r"is served in version 2, not 1\.$"):
        made(Rolling(), version=1).predict({"x": X}, max_batch=3)


class Renaming(Fake):
    """Version 1 doubles x as 'y', version 2 gives it back as float64 'z'; answers do not say which of them it was."""

    names_outputs = False
    version = 1

    def predict(self, model, version, name, signature, inputs, seconds):
        answer = super().predict(model, version, name, signature, inputs, seconds)["y"]
        if version not in (None, self.version):
            raise CodeError("NOT_FOUND", "said")
        [(output, tensor)] = signature.outputs.items()
        return {output: (answer if self.version == 1 else inputs["x"]).astype(tensor.dtype)}

    def signatures(self, model, version, seconds):
        self.looks += 1
        output = {"y": Tensor(FLOAT, (None, 2))} if self.version == 1 else {"z": Tensor(np.dtype(float), (None, 2))}
        return self.version, {"serving_default": Served({"x": Tensor(FLOAT, (None, 2))}, output)}

    def states(self, model, seconds):
        return [serving.State(self.version, "AVAILABLE")]


@pytest.mark.parametrize("max_batch", [None, 3])
def test_outputs_are_those_of_the_version_that_answers(made, max_batch):
    """An answer by REST has no dtypes, and no name of a single output."""
    fake = Renaming()
    client = made(fake)
    np.testing.assert_array_equal(client.predict({"x": X}, max_batch=max_batch)["y"], 2 * X, strict=True)
    fake.version = 2
    answer = client.predict({"x": X}, max_batch=max_batch)
    assert answer.keys() == {"z"}
    np.testing.assert_array_equal(answer["z"], X.astype(float), strict=True)


def test_a_newer_version_is_asked_although_the_older_one_still_answers(made, monkeypatch):
    class Both(Renaming):
        def predict(self, model, version, *arguments):
            return super().predict(model, None, *arguments) if version == 1 else super().predict(model, 2, *arguments)

    monkeypatch.setattr(module, "time", clock := Clock())
    fake = Both()
    client = made(fake)
    client.predict({"x": X})
    fake.version = 2
    clock.now += 1.5
    looks = fake.looks
    assert client.predict({"x": X}).keys() == {"z"} and fake.looks == looks + 1
    client.predict({"x": X})
    assert fake.looks == looks + 1


@pytest.mark.parametrize(
    ("x", "y", "said"),
    [
        ((None, 2), (3, 2), r"output 'y' is float32 \[3, 2\]"),
        ((None, 2), (), r"output 'y' is float32 \[\]"),
        ((7, 2), (None, 2), r"input 'x' is float32 \[7, 2\]"),
    ],
)
def test_what_has_no_rows_by_its_signature_is_not_sent_in_parts(made, x, y, said):
    """The first output would have as many rows as each part, by chance."""
    fake = Fake(signatures={"serving_default": Served({"x": Tensor(FLOAT, x)}, {"y": Tensor(FLOAT, y)})})
    with pytest.raises(serving.ShapeError, match=rf"^{said}, with no dimension for the rows, so they cannot be sent"):
        made(fake).predict({"x": np.concatenate([X, X])[:6] if x[0] is None else X}, max_batch=3)
    assert fake.sent == []


def test_inputs_of_different_numbers_of_rows_cannot_be_sent_in_parts(made):
    two = {"serving_default": Served({"x": Tensor(FLOAT, None), "z": Tensor(FLOAT, None)}, {})}
    for z, said in ((X[:3], "'x' 7, 'z' 3"), (np.float32(1), "'x' 7, 'z' has no rows")):
        with pytest.raises(serving.ShapeError, match=rf"numbers of rows differ: {said}\.$"):
            made(Fake(signatures=two)).predict({"x": X, "z": z}, max_batch=3)


def test_signatures_are_asked_once_and_again_when_inputs_do_not_fit(made):
    fake = Fake()
    client = made(fake)
    client.predict({"x": X})
    client.predict({"x": X})
    assert fake.looks == 1
    wide = X.astype(np.float64)
    with pytest.raises(serving.DtypeError):
        client.predict({"x": wide})
    assert fake.looks == 2
    fake.served = {"serving_default": Served({"x": Tensor(np.dtype(np.float64), (None, 2))}, {})}
    np.testing.assert_array_equal(client.predict({"x": wide})["y"], 2 * wide)
    assert fake.looks == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"address": "127.0.0.1:8500"}, "address='127.0.0.1:8500' is no address of a server. Type e.g. grpc://127"),
        ({"address": "ftp://x"}, "address='ftp://x' is no address of a server."),
        ({"address": "http://:1"}, "address='http://:1' has no host. Type e.g. http://127.0.0.1:8501."),
        ({"address": "http://x:port"}, "address='http://x:port' has no host."),
        ({"address": "grpc://127.0.0.1"}, "address='grpc://127.0.0.1' has no port. Type e.g. grpc://127.0.0.1:8500."),
        ({"model": ""}, "model='' is no name. Type that of the server, e.g. 'mnist'."),
        ({"version": -1}, f"version=-1 is out of range: it must be from 0 to {2**63 - 1}."),
        ({"version": True}, "version=True is no whole number. Type e.g. 1."),
        ({"version": 2**63}, f"version={2**63} is out of range: it must be from 0 to {2**63 - 1}."),
        ({"model": "\ud800"}, "model='\\ud800' is no name."),
        ({"seconds": 0}, "seconds=0 is out of range: it must be more than 0 and at most 1000000000."),
        ({"seconds": float("nan")}, "seconds=nan is out of range: it must be more than 0"),
        ({"seconds": float("inf")}, "seconds=inf is out of range: it must be more than 0"),
        ({"retries": 2.5}, "retries=2.5 is no whole number. Type e.g. 1."),
        ({"retries": -1}, "retries=-1 is out of range: it must be 0 or more."),
        ({"pause": -0.1}, "pause=-0.1 is out of range: it must be 0 or more."),
        ({"max_bytes": 0}, "max_bytes=0 is out of range: it must be from 1 to 2147483647."),
    ],
)
def test_arguments_that_are_wrong(arguments, message):
    with pytest.raises(UserError) as caught:
        serving.Client(**{"address": "http://127.0.0.1:1", "model": "m", **arguments})
    assert message in str(caught.value)


def test_a_batch_of_no_rows_is_refused(made):
    with pytest.raises(UserError, match=r"^predict: max_batch=0 is out of range: it must be at least 1\.$"):
        made(Fake()).predict({"x": X}, max_batch=0)


def test_a_batch_that_is_no_whole_number_is_refused(made):
    with pytest.raises(UserError, match=r"^predict: max_batch=2\.0 is no whole number\. Type e\.g\. 1\.$"):
        made(Fake()).predict({"x": X}, max_batch=2.0)


@pytest.mark.parametrize("inputs", [[X], X, None])
def test_inputs_without_names_are_refused(made, inputs):
    with pytest.raises(UserError, match=r"^predict: inputs is a value of type \w+\. Give \{name: array\}, e\.g\. "):
        made(Fake()).predict(inputs)


def test_another_byte_order_is_said(made):
    with pytest.raises(serving.DtypeError) as caught:
        made(Fake()).predict({"x": X.astype(X.dtype.newbyteorder())})
    name = X.dtype.name
    assert str(caught.value).startswith(f"input 'x' is {name} in the byte order of other machines; signature")
    assert str(caught.value).endswith(f"Type .astype('{name}').")


def test_a_rest_client_on_another_protocol_says_so():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x00\x00\x12\x04\x00\x00\x00\x00\x00\n")

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with serving.Client(address, "m", retries=0) as client, pytest.raises(serving.UnavailableError) as caught:
            client.states()
        thread.join()
    assert str(caught.value).endswith("at the first try: its answer is not of HTTP: is it the port of gRPC?")


def test_values_under_a_mask_are_not_sent(made):
    masked = np.ma.array(X, mask=X > 3)
    with pytest.raises(serving.DtypeError, match=r"^input 'x' is masked, and masks are not sent\. Type e\.g\."):
        made(Fake()).predict({"x": masked})
    np.testing.assert_array_equal(made(Fake()).predict({"x": np.ma.array(X)})["y"], 2 * X)


def test_a_text_that_is_no_utf8_is_refused(made):
    texts = {"serving_default": Served({"x": Tensor(np.dtype(object), (None,))}, {})}
    with pytest.raises(serving.DtypeError, match=r"^input 'x' has the text 'a\\ud800', which is no UTF-8\. Send bytes"):
        made(Fake(signatures=texts)).predict({"x": ["a\ud800"]})


def test_an_answer_that_breaks_off_is_that_of_a_server_that_is_gone():
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            for _ in range(2):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: 99\r\n\r\n{")

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        said = "unavailable after 2 tries: IncompleteRead"
        with (
            serving.Client(address, "m", retries=1, pause=0.01) as client,
            pytest.raises(serving.UnavailableError, match=said),
        ):
            client.states()
        thread.join()


def test_a_rest_client_does_not_load_tensorflow():
    code = (
        "import sys; from framework import serving; from framework.modes import serve;"
        " serving.Client('http://127.0.0.1:1', 'm').close();"
        " print([name for name in ('tensorflow', 'tf_keras', 'grpc') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n", done.stdout


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"HTTP/1.1 200 OK\r\n"])
def test_a_server_that_does_not_end_its_answer_meets_the_deadline(answer):
    """Also one that goes on sending: each byte comes in time, the answer does not."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        ended = threading.Event()

        def serve():
            connection, _ = listening.accept()
            with connection:
                connection.sendall(answer)
                while not ended.wait(0.05):
                    if answer.endswith(b"{"):
                        connection.sendall(b" ")

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        try:
            with serving.Client(address, "m", seconds=0.3) as client, pytest.raises(serving.DeadlineError):
                client.states()
        finally:
            ended.set()
            thread.join()
        assert 0.25 < time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (200, b"<html>", serving.ServingError, "the answer is no status of a model"),
        (200, b"[]", serving.ServingError, "the answer is no status of a model"),
        (500, b'{"error": "broken"}', serving.ServingError, "broken (INTERNAL)"),
        (400, b'{"error": "bad \xff"}', serving.RefusedError, "bad ? (INVALID_ARGUMENT)"),
        (400, b'{"error": "bad"}', serving.RefusedError, "bad (INVALID_ARGUMENT)"),
        (413, b"<html>", serving.TooLargeError, "<html>. Send fewer rows"),
        (503, b"", serving.UnavailableError, "unavailable after 2 tries"),
        (504, b"{}", serving.DeadlineError, "no answer within the time given"),
    ],
)
def test_answers_of_a_server_or_proxy(status, body, error, said):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            for _ in range(2 if status == 503 else 1):
                connection, _ = listening.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n" % (status, len(body)))
                    connection.sendall(b"Connection: close\r\n\r\n" + body)

        thread = threading.Thread(target=serve)
        thread.start()
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        with serving.Client(address, "m", retries=1, pause=0.01) as client, pytest.raises(error) as caught:
            client.states()
        thread.join()
        assert caught.type is error and said in str(caught.value)


def test_connections_that_the_server_has_closed_are_no_failures():
    """As after its restart: a client of many threads keeps more of them than it has retries."""
    body = b'{"model_version_status": []}'

    def serve(listening, count):
        for _ in range(count):
            connection, _ = listening.accept()
            open_.append(connection)
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    open_ = []
    with socket.create_server(("127.0.0.1", 0)) as listening:
        with serving.Client(f"http://127.0.0.1:{listening.getsockname()[1]}", "m", retries=0) as client:
            thread = threading.Thread(target=serve, args=(listening, 3), daemon=True)
            thread.start()
            kept = client._transport._idle
            for _ in range(2):  # as two threads at once
                taken, kept[:] = [*kept], []
                assert client.states() == []
                kept += taken
            for connection in open_:
                connection.close()
            assert len(kept) == 2 and client.states() == []
            thread.join()
        open_[-1].close()
