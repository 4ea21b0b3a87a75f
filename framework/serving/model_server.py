"""TensorFlow Serving itself: tensorflow_model_server, or its docker image, started on an export and waited for.

start = find("127.0.0.1")                       # the binary, or docker; UserError says what to install
serve(start, Path("runs/mnist/exports/saved_model"), "mnist", port=8500, rest_port=8501)
"""

import contextlib
import dataclasses
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from framework.errors import RunError, UserError
from framework.serving.client import Client
from framework.serving.errors import ServingError

BINARY, VARIABLE = "tensorflow_model_server", "TENSORFLOW_MODEL_SERVER"
IMAGE = "tensorflow/serving"
LOOPBACK = "127.0.0.1"
_READY_SECONDS = 600.0  # docker may have to fetch its image first
_LOOK_SECONDS = 0.2
_CONFIGS = {
    "batching.config": ("--enable_batching", "--batching_parameters_file={}"),
    "monitoring.config": ("--monitoring_config_file={}",),
}


@dataclasses.dataclass(frozen=True)
class Server:
    """A program that serves.

    Attributes:
      program: path of tensorflow_model_server or of docker.
      is_docker: whether it is docker.
      host: address at which docker publishes the ports; the binary listens on all interfaces whatever it is.
    """

    program: str
    is_docker: bool
    host: str = LOOPBACK

    def command(self, folder: Path, name: str, port: int, rest_port: int) -> list[str]:
        """Returns the command that serves a folder of versions, with the configs that lie beside them.

        Raises:
          UserError: docker cannot mount a folder of this name.
        """
        folder = folder.resolve()
        if not self.is_docker:
            own = [f"--port={port}", f"--rest_api_port={rest_port}"]
            return [
                self.program,
                *own,
                f"--model_name={name}",
                f"--model_base_path={folder}",
                *_configs(folder, folder),
            ]
        if "," in str(folder) or '"' in str(folder):
            raise UserError(f"{folder} cannot be mounted by docker: its name has a comma or a quote. Move the run.")
        inside = Path("/models") / name
        return [
            *(self.program, "run", "--rm"),
            *("-p", f"{self.host}:{port}:8500", "-p", f"{self.host}:{rest_port}:8501"),
            *("--mount", f"type=bind,source={folder},target={inside},readonly"),
            *("-e", f"MODEL_NAME={name}"),
            IMAGE,
            *_configs(folder, inside),
        ]


def _configs(folder: Path, seen: Path) -> Iterator[str]:
    """Yields the flags of the configs in a folder, by the path at which the server sees it."""
    for file, flags in _CONFIGS.items():
        if (folder / file).is_file():
            yield from (flag.format(seen / file) for flag in flags)


def find(host: str | None) -> Server:
    """Returns the server: $TENSORFLOW_MODEL_SERVER, tensorflow_model_server of the PATH, or docker.

    Args:
      host: address as typed; None if it was not.

    Raises:
      UserError: there is none of them, or the address cannot be kept.
    """
    named = os.environ.get(VARIABLE)
    program = shutil.which(named or BINARY)
    if named and not program:
        raise UserError(f"${VARIABLE}={named} is no program. Set it to the path of {BINARY}, or unset it.")
    if program:
        if host not in (None, "0.0.0.0"):
            raise UserError(
                f"--host={host} has no effect with {program}, which listens on all interfaces. Leave it out, and close"
                " the ports by a firewall, or use docker."
            )
        return Server(program, is_docker=False)
    if docker := shutil.which("docker"):
        return Server(docker, is_docker=True, host=host or LOOPBACK)
    raise UserError(
        f"there is neither {BINARY} in the PATH nor docker. Install the package tensorflow-model-server of TensorFlow"
        f" Serving's apt repository, set ${VARIABLE} to the binary, or try the model out: --development."
    )


def serve(server: Server, folder: Path, name: str, port: int, rest_port: int) -> int:
    """Starts a server, says when it is ready, and returns its status after it ended; SIGTERM and Ctrl-C end it.

    Args:
      server: from `find`.
      folder: exports/<hook>, with a folder for each version.
      name: of the model in requests.
      port: of gRPC.
      rest_port: of REST.

    Raises:
      RunError: the server ended before it was ready, or did not become ready; it is stopped then.
    """
    command = server.command(folder, name, port, rest_port)
    where = f"on {server.host}" if server.is_docker else "ON ALL INTERFACES of this machine, without authentication"
    print(f"{' '.join(command)}\nlistens {where}, ports {port} (gRPC) and {rest_port} (REST)", flush=True)
    stopped = threading.Event()
    # A session of its own: Ctrl-C reaches this process alone, which passes SIGTERM on.
    process = subprocess.Popen(command, start_new_session=True)
    try:
        with _signals(stopped):
            _wait_until_ready(process, stopped, server, name, rest_port)
            while process.poll() is None and not stopped.wait(_LOOK_SECONDS):
                pass
    finally:
        is_ours = process.poll() is None
        _end(process)
    return 0 if is_ours else process.returncode and 1


def _wait_until_ready(
    process: "subprocess.Popen[bytes]", stopped: threading.Event, server: Server, name: str, rest_port: int
) -> None:
    host = LOOPBACK if not server.is_docker or server.host == "0.0.0.0" else server.host
    end = time.monotonic() + _READY_SECONDS
    with Client(f"http://{host}:{rest_port}", name, seconds=2.0, retries=0) as client:
        while not stopped.is_set():
            if process.poll() is not None:
                program = Path(server.program).name
                raise RunError(
                    f"{program} ended with status {process.returncode} before it was ready. It said why above."
                )
            with contextlib.suppress(ServingError):
                ready = [state.version for state in client.states() if state.state == "AVAILABLE"]
                if ready:
                    print(f"ready: http://{host}:{rest_port}/v1/models/{name}, version {ready[0]}", flush=True)
                    return
            if time.monotonic() > end:
                raise RunError(f"{server.program} is not ready after {_READY_SECONDS:.0f} s, and is stopped.")
            stopped.wait(_LOOK_SECONDS)


@contextlib.contextmanager
def _signals(stopped: threading.Event) -> Iterator[None]:
    """Sets the event at SIGTERM and Ctrl-C while the context lasts."""

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()

    former = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(30.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
