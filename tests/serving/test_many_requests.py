"""1,000 requests at once: each is answered, with its own values."""

import http.client
import json
import resource
import threading
from urllib.parse import urlsplit

import numpy as np
import pytest
import tensorflow as tf

from framework import serving
from tests.serving.started import development, export

pytest.importorskip("tensorflow_serving.apis.predict_pb2", reason="needs the extra 'serve'")
pytestmark = pytest.mark.slow

FACTOR, MANY = np.float32(1.5), 1000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server that is started with the right to 512 open files, and takes more; this process has them from then on."""
    folder = tmp_path_factory.mktemp("served")
    export(folder, FACTOR)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        with development(folder) as started:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            yield started
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def row(number):
    return np.float32([[number, -number, number / 7]])


def test_by_grpc(server):
    """Four times as many: by its own limits gRPC would cancel some at random."""
    with serving.Client(server.addresses["grpc"], "scale") as client:
        rpc = client._transport
        asked = [
            rpc._prediction.Predict.future(rpc.request("scale", None, "", {"x": row(number)}), timeout=120)
            for number in range(4 * MANY)
        ]
        for number, future in enumerate(asked):
            logits = tf.make_ndarray(future.result().outputs["logits"])
            np.testing.assert_array_equal(logits, row(number) * FACTOR)


def test_by_rest_on_1000_connections_that_are_open_together(server):
    start, answers, failures = threading.Barrier(MANY), {}, []
    place = urlsplit(server.addresses["http"]).netloc
    connections = [http.client.HTTPConnection(place, timeout=120) for _ in range(MANY)]

    def ask(number, connection):
        try:
            start.wait(60)
            connection.request("POST", "/v1/models/scale:predict", json.dumps({"inputs": row(number).tolist()}))
            answers[number] = json.loads(connection.getresponse().read())["outputs"]
        except Exception as error:
            failures.append(error)

    try:
        for connection in connections:
            connection.connect()
        threads = [threading.Thread(target=ask, args=each) for each in enumerate(connections)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        for connection in connections:
            connection.close()
    assert failures == [] and len(answers) == MANY
    for number, answer in answers.items():
        np.testing.assert_array_equal(np.float32(answer), row(number) * FACTOR)
