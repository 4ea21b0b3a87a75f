"""Load on a model server on this machine: requests a second, and the time of an answer, by the rate of requests.

    python tests/benchmarks/serving_load.py                                          # the development server, an MLP
    python tests/benchmarks/serving_load.py --rates=100,200 --seconds=20 --rows=32
    python tests/benchmarks/serving_load.py --addresses=grpc://127.0.0.1:8500 --model=mnist     # a server that runs

The loop is open: requests come at random moments of the rate (exponential pauses), whether or not earlier ones are
answered, and the time of an answer counts from the moment at which its request was due. So a server that is too slow
shows in the times, and not in fewer requests. Server and load share the processors. After a rate of which less than
95 % is answered within its seconds and one more, higher ones are left out. Needs the extra `serve`.
"""

import argparse
import contextlib
import dataclasses
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from framework import serving
from framework.export import SERVING, SavedModel, Serving, Signature, export_all
from tests.benchmarks.compare import machine

ROOT = Path(__file__).resolve().parents[2]
NAME, WIDTH = "mlp", 784
ANSWER_SECONDS = 60.0  # the deadline of a request
WARM_REQUESTS = 50
REST_THREADS = 128  # connections of the REST client; a request for which none is free waits, and its wait counts
ENOUGH = 0.95

Send = Callable[
    [Callable[[bool], None]], None
]  # starts a request and returns at once; calls done(whether it succeeded)


@dataclasses.dataclass
class Load:
    """What a rate of requests led to.

    Attributes:
      seconds: [n] time of each answer that came, from the moment at which its request was due.
      late: [n] how much later than due a request was sent, because the load itself had no processor.
      failed: number of requests that failed.
      answered: answers that came before the last request was due, or within a second of it, per second of the load.
    """

    seconds: np.ndarray
    late: np.ndarray
    failed: int
    answered: float


def open_loop(send: Send, due: np.ndarray) -> Load:
    """Sends a request at each of the moments `due` (seconds from now, ascending), and waits for all answers."""
    lock, ended = threading.Lock(), threading.Event()
    seconds: list[float] = []
    ends: list[float] = []
    failed = 0

    def done_at(moment: float) -> Callable[[bool], None]:
        def done(succeeded: bool) -> None:
            nonlocal failed
            now = time.perf_counter()
            with lock:
                if succeeded:
                    seconds.append(now - moment)
                    ends.append(now)
                else:
                    failed += 1
                if len(seconds) + failed == len(due):
                    ended.set()

        return done

    start, late = time.perf_counter(), []
    for moment in start + due:
        while (left := moment - time.perf_counter()) > 0:
            time.sleep(left)
        late.append(time.perf_counter() - moment)
        send(done_at(moment))
    ended.wait(2 * ANSWER_SECONDS)
    in_time = sum(end <= start + due[-1] + 1 for end in ends)
    return Load(np.array(seconds), np.array(late), failed, in_time / due[-1])


def arrivals(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Returns the moments of `rate * seconds` requests, with exponential pauses; the last one is at the end."""
    moments = np.cumsum(np.random.default_rng(seed).exponential(size=round(rate * seconds)))
    return moments * (seconds / moments[-1])


@contextlib.contextmanager
def by_grpc(client: serving.Client, inputs: Mapping[str, np.ndarray]) -> Iterator[Send]:
    """Sends by futures of gRPC: nothing waits."""
    rpc: Any = client._transport
    request = rpc.request(client._model, None, SERVING, inputs)

    def send(done: Callable[[bool], None]) -> None:
        future = rpc._prediction.Predict.future(request, timeout=ANSWER_SECONDS)
        future.add_done_callback(lambda answer: done(answer.code().name == "OK"))

    yield send


@contextlib.contextmanager
def by_rest(client: serving.Client, inputs: Mapping[str, np.ndarray]) -> Iterator[Send]:
    """Sends by threads with a connection each."""
    waiting: queue.SimpleQueue[Callable[[bool], None] | None] = queue.SimpleQueue()

    def work() -> None:
        while (done := waiting.get()) is not None:
            try:
                client.predict(inputs)
            except serving.ServingError:
                done(False)
            else:
                done(True)

    threads = [threading.Thread(target=work) for _ in range(REST_THREADS)]
    for thread in threads:
        thread.start()
    try:
        yield waiting.put
    finally:
        for _ in threads:
            waiting.put(None)
        for thread in threads:
            thread.join()


@contextlib.contextmanager
def development_server() -> Iterator[list[str]]:
    """Starts the development server on a net of 784-128-10, and yields its addresses."""
    random = np.random.default_rng(0)
    net = tf.Module()
    net.weights = [
        tf.Variable(random.normal(size=size).astype(np.float32) * 0.05) for size in ((WIDTH, 128), (128, 10))
    ]

    def fn(model: Any, inputs: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {"logits": tf.nn.relu(inputs["image"] @ model.weights[0]) @ model.weights[1]}

    signature = Signature(fn, {"image": tf.TensorSpec([None, WIDTH], tf.float32)})
    batch = {"image": random.normal(size=(32, WIDTH)).astype(np.float32), "weight": np.ones(32, np.float32)}
    with tempfile.TemporaryDirectory() as folder:
        hook = SavedModel({SERVING: signature}, serving=Serving(NAME, warm_up=(1, 32)))
        [report] = export_all([hook], net, [batch], {}, Path(folder, "exports"))
        if not report.passed:
            raise SystemExit(report.failure)
        command = [sys.executable, "launch.py", "--mode=serve", f"--workdir={folder}", "--development"]
        with subprocess.Popen(
            [*command, "--port=0", "--rest_port=0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as server:
            try:
                yield [re.search(r"(grpc|http)://[\d.:]+", server.stdout.readline())[0] for _ in _lines(server)]
            finally:
                server.terminate()
                server.communicate()


def _lines(server: "subprocess.Popen[str]") -> Iterator[int]:
    """Yields twice, after the line that says what the server is: before its two addresses."""
    if "development server" not in server.stdout.readline():
        raise SystemExit("the server did not start")
    yield from range(2)


def made_up(tensor: serving.Tensor, rows: int) -> np.ndarray:
    """Returns normal numbers, which are as long in JSON as real ones, or zeros, or empty texts."""
    shape = (rows, *(size or 1 for size in tensor.shape[1:]))
    if tensor.dtype.kind == "O":
        return np.full(shape, b"", object)
    if tensor.dtype.kind != "f":
        return np.zeros(shape, tensor.dtype)
    return np.random.default_rng(0).normal(size=shape).astype(tensor.dtype)


def measure(address: str, model: str, rates: Sequence[float], seconds: float, rows: int) -> None:
    """Prints a row for each rate."""
    with serving.Client(address, model, seconds=ANSWER_SECONDS, retries=0) as client:
        tensors = client.signatures()[SERVING].inputs
        inputs = {name: made_up(tensor, rows) for name, tensor in tensors.items()}
        for _ in range(WARM_REQUESTS):
            client.predict(inputs)
        kind = address.partition("://")[0]
        with (by_grpc if kind == "grpc" else by_rest)(client, inputs) as send:
            for rate in rates:
                load = open_loop(send, arrivals(rate, seconds))
                p50, p99 = np.percentile(load.seconds, [50, 99]) * 1000 if len(load.seconds) else (np.nan, np.nan)
                print(
                    f"| {kind} | {rows} | {rate:,.0f} | {load.answered:,.0f} | {p50:.1f} | {p99:.1f} | {load.failed} |"
                    f" {np.percentile(load.late, 99) * 1000:.1f} |",
                    flush=True,
                )
                if load.answered < ENOUGH * rate:
                    break


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="50,100,200,400,800,1600", help="requests a second")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each rate")
    parser.add_argument("--rows", type=int, default=1, help="of a request")
    parser.add_argument("--addresses", help="of servers that run, instead of the development server")
    parser.add_argument("--model", default=NAME)
    flags = parser.parse_args()
    rates = [float(rate) for rate in flags.rates.split(",")]
    print(f"{machine()}, TensorFlow {tf.__version__}")
    with contextlib.ExitStack() as stack:
        addresses = flags.addresses.split(",") if flags.addresses else stack.enter_context(development_server())
        print("| protocol | rows | asked/s | answered/s | p50, ms | p99, ms | failed | sent late, p99, ms |")
        print("|---|---|---|---|---|---|---|---|")
        for address in addresses:
            measure(address, flags.model, rates, flags.seconds, flags.rows)


if __name__ == "__main__":
    main()
