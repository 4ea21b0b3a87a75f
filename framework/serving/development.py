"""A small model server for trying a model out on this machine: TensorFlow Serving's APIs, and nothing for production.

    serve(Path("runs/mnist/exports/saved_model"), "mnist", port=8500, rest_port=8501)

It listens on 127.0.0.1 alone. It has no batching, no limit of memory, no encryption and no authentication.
"""

import resource
import signal
import threading
from pathlib import Path

from framework import extras
from framework.serving.client import MAX_BYTES
from framework.serving.http_server import HttpServer
from framework.serving.rpc_server import RpcServer
from framework.serving.versions import Versions

_POLL_SECONDS = 1.0
_LAST_SECONDS = 5.0  # for requests under way when the server is stopped


def serve(folder: Path, name: str, port: int, rest_port: int, is_trusted: bool = False) -> int:
    """Serves the newest version in a folder until SIGTERM or Ctrl-C, and returns 0.

    Args:
      folder: exports/<hook>, with a folder for each version; new ones are served as they come.
      name: of the model in requests.
      port: of gRPC; 0 takes a free one, which the first lines name.
      rest_port: of REST; 0 takes a free one.
      is_trusted: whether versions are served that the manifest does not know.

    Raises:
      UserError: there is no version to serve, a port is taken, or a package is missing.
    """
    extras.load("tensorflow_serving.apis.predict_pb2", "serve")
    # A connection is a file, and 1,024 are the most of a usual shell.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    versions = Versions(folder, name, is_trusted, lambda line: print(line, flush=True))
    rpc, http = RpcServer(versions, port, MAX_BYTES), HttpServer(versions, rest_port, MAX_BYTES)
    try:
        versions.start(_POLL_SECONDS)
        rpc.start()
        http.start()
        version = versions.asked(name, None).version
        print(f"development server, not for production: {folder} as '{name}', version {version}")
        print(f"  gRPC  grpc://127.0.0.1:{rpc.port}")
        print(f"  REST  http://127.0.0.1:{http.port}/v1/models/{name}", flush=True)
        stopped.wait()
    finally:
        http.stop()
        rpc.stop(_LAST_SECONDS)
        versions.stop()
    print("stopped", flush=True)
    return 0
