"""The client and the development server together, by both protocols: values against NumPy, and each kind of error.

All tests share one server, so the last ones are those that change it: a new version, and its end.
"""

import http.client
import json
import threading
import urllib.request
from urllib.parse import urlsplit

import numpy as np
import pytest

from framework import serving
from tests.export.fakes import X
from tests.serving.started import development, export

grpc = pytest.importorskip("grpc")
pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="needs the extra 'serve'")

OLD, NEW = np.float32(1.5), np.float32(-2.25)  # factors of the versions 1 and 10
PROTOCOLS = ("grpc", "http")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    assert export(folder, OLD) == 1
    return folder


@pytest.fixture(scope="module")
def server(workdir):
    with development(workdir) as started:
        yield started


@pytest.fixture(scope="module")
def clients(server):
    made = {kind: serving.Client(server.addresses[kind], "scale", seconds=60) for kind in PROTOCOLS}
    yield made
    for client in made.values():
        client.close()


@pytest.fixture(params=PROTOCOLS)
def kind(request):
    return request.param


@pytest.fixture
def client(clients, kind):
    return clients[kind]


def post(server, path, content, headers=None):
    """Status and JSON of the answer to a POST."""
    connection = http.client.HTTPConnection(urlsplit(server.addresses["http"]).netloc, timeout=60)
    try:
        connection.request("POST", f"/v1/models/scale{path}", content, headers or {})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_first_lines_say_what_it_is(server):
    lines = " ".join(line for line in server.lines if line)
    assert "development server, not for production: " in lines and "as 'scale', version 1" in lines


def test_values_are_those_of_numpy(client):
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32) * np.float32([1e-30, 1, 1e30])
    answer = client.predict({"x": x})
    assert list(answer) == ["logits"] and answer["logits"].dtype == np.float32
    np.testing.assert_array_equal(answer["logits"], x * OLD)
    np.testing.assert_array_equal(client.predict({"x": x}, max_batch=7)["logits"], x * OLD)


def test_what_is_no_number_arrives(client):
    x = np.float32([[np.nan, np.inf, -np.inf]])
    np.testing.assert_array_equal(client.predict({"x": x})["logits"], x)


def test_several_dtypes(client):
    answer = client.predict({"id": np.array([3, 0, 2])}, "table", max_batch=2)
    np.testing.assert_array_equal(answer["value"], np.array([3.5, 0.5, 2.5]), strict=True)
    np.testing.assert_array_equal(answer["is_even"], np.array([False, True, True]), strict=True)
    np.testing.assert_array_equal(answer["next"], np.array([4, 1, 3]), strict=True)


def test_texts_are_bytes(client):
    words = ["a", "ü\n", b"", "日本"]
    answer = client.predict({"word": words}, "texts")
    expected = [word.encode() if isinstance(word, str) else word for word in words]
    assert [*answer["raw_bytes"]] == expected and [*answer["text"]] == [b"<%s>" % word for word in expected]
    for raw in (b"\xff\0\xfe", "\ud800".encode(errors="surrogatepass")):  # no UTF-8
        answer = client.predict({"word": np.array([raw], object)}, "texts")
        assert [*answer["raw_bytes"]] == [raw] and [*answer["text"]] == [b"<%s>" % raw]


def test_no_rows(clients):
    assert clients["grpc"].predict({"x": np.zeros([0, 3], np.float32)})["logits"].shape == (0, 3)
    with pytest.raises(serving.RefusedError, match=r"'x' has shape \[0, 3\], which JSON cannot say\. Use a grpc://"):
        clients["http"].predict({"x": np.zeros([0, 3], np.float32)})


def test_signatures_and_states(client):
    signatures = client.signatures()
    assert sorted(signatures) == ["serving_default", "table", "texts"]
    assert signatures["serving_default"].inputs == {"x": serving.Tensor(np.dtype(np.float32), (None, 3))}
    assert signatures["table"].outputs["is_even"] == serving.Tensor(np.dtype(bool), (None,))
    assert client.states() == [serving.State(1, "AVAILABLE")]


@pytest.mark.parametrize(
    ("inputs", "signature", "error", "message"),
    [
        (
            {"id": np.arange(2)},
            "tabel",
            serving.UnknownSignatureError,
            "model 'scale' has no signature 'tabel', but serving_default, table, texts. Did you mean 'table'?",
        ),
        (
            {"y": X},
            "serving_default",
            serving.InputNameError,
            "signature 'serving_default' has no input 'y', but x.",
        ),
        ({}, "table", serving.InputNameError, "signature 'table' needs the input 'id' as int64 [None]."),
        (
            {"x": X.astype(np.float64)},
            "serving_default",
            serving.DtypeError,
            "input 'x' is float64; signature 'serving_default' takes float32 [None, 3]. Type .astype('float32').",
        ),
        (
            {"word": [1]},
            "texts",
            serving.DtypeError,
            "input 'word' has a value of type int; signature 'texts' takes bytes or str.",
        ),
        (
            {"x": X[0]},
            "serving_default",
            serving.ShapeError,
            "input 'x' has shape [3]; signature 'serving_default' takes float32 [None, 3].",
        ),
        ({"x": [[1.0], [1.0, 2.0]]}, "serving_default", serving.ShapeError, "input 'x' is no array: its rows have"),
        ({"id": np.array([4])}, "table", serving.RefusedError, ": indices[0] = 4 is not in [0, 4) (INVALID_ARGUMENT)"),
    ],
)
def test_what_does_not_fit_is_a_typed_error_of_one_line(client, inputs, signature, error, message):
    with pytest.raises(error) as caught:
        client.predict(inputs, signature)
    assert message in str(caught.value) and "\n" not in str(caught.value) and caught.type is error


def test_an_unknown_model_and_an_unknown_version(server, kind):
    with serving.Client(server.addresses[kind], "scales") as client:
        with pytest.raises(
            serving.UnknownModelError, match=r"there is no model 'scales' that can be asked: Servable not"
        ):
            client.predict({"x": X})
        with pytest.raises(serving.UnknownModelError):
            client.states()
    unknown = pytest.raises(serving.UnknownVersionError, match=r"model 'scale' is served in version 1, not 7\.$")
    with serving.Client(server.addresses[kind], "scale", version=7) as client, unknown:
        client.predict({"x": X})
    with serving.Client(server.addresses[kind], "scale", version=1) as client:
        np.testing.assert_array_equal(client.predict({"x": X})["logits"], X * OLD)


def test_the_server_itself_answers_as_serving_does(clients):
    """Requests that the client would not send: the codes are those of TensorFlow Serving's predict_util.cc."""
    rpc = clients["grpc"]._transport
    for signature, inputs, code, said in (
        ("tabel", {"x": X}, "FAILED_PRECONDITION", 'Serving signature key "tabel" not found.'),
        ("", {"x": X.astype(np.float64)}, "INVALID_ARGUMENT", "input 'x' is float64, but the signature takes float32"),
        ("", {"x": X[0]}, "INVALID_ARGUMENT", "input 'x' has shape [3], but the signature takes float32 [None, 3]"),
        ("", {"x": X, "y": X}, "INVALID_ARGUMENT", "input size does not match signature: 2!=1 len({x,y}) != len({x})."),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            rpc._prediction.Predict(rpc.request("scale", None, signature, inputs), timeout=60)
        assert caught.value.code().name == code and said in caught.value.details()
    request = rpc.request("scale", None, "table", {"id": np.arange(2)})
    request.output_filter.append("next")
    assert list(rpc._prediction.Predict(request, timeout=60).outputs) == ["next"]


@pytest.mark.parametrize(
    ("path", "request_", "status", "answer"),
    [
        (":predict", {"instances": [[1, 2, 3]]}, 200, {"predictions": [[1.5, 3.0, 4.5]]}),
        (":predict", {"instances": [{"x": [2, 0, 0]}]}, 200, {"predictions": [[3.0, 0.0, 0.0]]}),
        ("/versions/1:predict", {"inputs": [[2, 4, 8]]}, 200, {"outputs": [[3.0, 6.0, 12.0]]}),
        (
            ":predict",
            {"signature_name": "texts", "instances": ["a", {"b64": "w7w="}]},
            200,
            {
                "predictions": [
                    {"text": "<a>", "raw_bytes": {"b64": "YQ=="}},
                    {"text": "<ü>", "raw_bytes": {"b64": "w7w="}},
                ]
            },
        ),
        (
            ":predict",
            {"signature_name": "table", "inputs": [1]},
            200,
            {"outputs": {"value": [1.5], "is_even": [False], "next": [2]}},
        ),
        (":predict", {"signature_name": "no", "instances": [1]}, 400, 'Serving signature key "no" not found.'),
        (":predict", {"instances": [["a", "b", "c"]]}, 400, "a value of type string is not of expected type float32"),
        (
            ":predict",
            {"signature_name": "table", "inputs": [1.5]},
            400,
            "a value of type float is not of expected type int64",
        ),
        (":predict", {"instances": [[1, 2], [3]]}, 400, "Failed to process element of input 'x': "),
        (":predict", {"instances": []}, 400, "'instances' must be a list of at least one row"),
        (":predict", {"x": 1}, 400, "a request is an object with one of 'instances' and 'inputs'"),
        (":predict", [], 400, "a request is an object with one of 'instances' and 'inputs'"),
        (":classify", {}, 400, "Malformed request: POST /v1/models/scale:classify"),
        ("/versions/9:predict", {"instances": [[1, 2, 3]]}, 404, "Servable not found for request: Specific(scale, 9)"),
    ],
)
def test_rest_requests_by_hand(server, path, request_, status, answer):
    got, value = post(server, path, json.dumps(request_))
    assert got == status
    assert answer in value["error"] if isinstance(answer, str) else value == answer


def test_a_body_that_is_no_json_and_a_host_that_is_not_this_one(server):
    status, answer = post(server, ":predict", b"{")
    assert status == 400 and answer["error"].startswith("JSON Parse error: ")
    status, answer = post(server, ":predict", b"{}", {"Host": "example.org"})
    assert status == 403 and "127.0.0.1 and localhost alone" in answer["error"]


def test_status_and_metadata_have_the_form_of_serving(server):
    def get(path):
        with urllib.request.urlopen(f"{server.addresses['http']}/v1/models/scale{path}", timeout=60) as answer:
            return json.loads(answer.read())

    row = {"version": "1", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
    assert get("") == get("/versions/1") == {"model_version_status": [row]}
    metadata = get("/metadata")
    assert metadata["model_spec"] == {"name": "scale", "signature_name": "", "version": "1"}
    x = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]["inputs"]["x"]
    assert x["dtype"] == "DT_FLOAT" and [size["size"] for size in x["tensor_shape"]["dim"]] == ["-1", "3"]


def test_a_request_of_100_mb(server, clients):
    x = np.zeros([9_000_000, 3], np.float32)
    with pytest.raises(
        serving.TooLargeError, match=r"the request has 108,000,000 bytes, the client sends 67,108,864\. Send"
    ):
        clients["grpc"].predict({"x": x})
    too_large = pytest.raises(serving.TooLargeError, match=r"larger than max \(1080000\d\d vs\. 67108864\)")
    with serving.Client(server.addresses["grpc"], "scale", max_bytes=2**28, seconds=60) as client, too_large:
        client.predict({"x": x})
    status, answer = post(server, ":predict", b" " * 100_000_000)
    assert status == 429 and answer == {"error": "Received message larger than max (100000000 vs. 67108864)"}
    too_large = pytest.raises(serving.TooLargeError, match=r"bytes, the client sends 1,000\.")
    with serving.Client(server.addresses["http"], "scale", max_bytes=1000, seconds=60) as client, too_large:
        client.predict({"x": np.ones([500, 3], np.float32)})
    for client in clients.values():  # the server goes on
        np.testing.assert_array_equal(client.predict({"x": X})["logits"], X * OLD)


# --- what changes the server: in this order --------------------------------------------------------------------------


def test_a_new_version_comes_while_requests_run(workdir, server, clients):
    """No request fails; each answer is that of one version, and after the first of the new one, none is of the old."""
    ended, failures, seen = threading.Event(), [], {kind: [] for kind in PROTOCOLS}

    def ask(kind):
        try:
            while not ended.wait(0.01):
                seen[kind].append(float(clients[kind].predict({"x": np.ones([1, 3], np.float32)})["logits"][0, 0]))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=ask, args=[kind]) for kind in PROTOCOLS]
    for thread in threads:
        thread.start()
    try:
        half = workdir / "exports/saved_model/9"
        half.mkdir()
        server.wait(r"version 9 is not served: it is half-written: it has no saved_model\.pb")
        assert export(workdir, NEW) == 10
    finally:
        server.wait("version 10 is served instead of 1")
        ended.wait(0.2)
        ended.set()
        for thread in threads:
            thread.join()
    assert failures == []
    for answers in seen.values():
        change = answers.index(NEW)
        assert change > 0 and set(answers[:change]) == {OLD} and set(answers[change:]) == {NEW}
    for client in clients.values():
        assert [(state.version, state.state, state.error_code) for state in client.states()] == [
            (10, "AVAILABLE", "OK"),
            (9, "END", "FAILED_PRECONDITION"),
            (1, "END", "OK"),
        ]


def test_a_server_that_is_killed_is_a_typed_error(server, kind):
    with serving.Client(server.addresses[kind], "scale", pause=0.01, seconds=60) as client:
        if server.process.poll() is None:
            client.predict({"x": X})
            server.process.kill()
            server.process.wait()
        with pytest.raises(serving.UnavailableError, match=r": the server is unavailable after 4 tries: "):
            client.predict({"x": X})
