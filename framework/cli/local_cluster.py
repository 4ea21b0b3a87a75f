"""Runs a cluster of processes on this machine, for development: starts, watches, ends and restarts them together.

    status = run_local(2, command, workdir, max_restarts=1)
    status = run_local(2, command, workdir, max_restarts=1, servers=1)     # and a chief and a parameter server

Each process runs `command` with its own TF_CONFIG on 127.0.0.1. Its output is printed here, each line after the name
of the process, and kept in workdir/workers/. When one process fails, all end and the whole cluster starts again from
the last checkpoint, because a worker cannot continue without the others. Under parameter servers it can: a lost worker
starts again while the others continue. (On a real cluster Slurm or Kubernetes does this.) All processes end with this
one, even if it is killed; the same command resumes the run.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from absl import flags, logging

from framework.config import with_replicas
from framework.config.overrides import override
from framework.distribute import lifeline
from framework.distribute.cluster import LOCAL_WORKERS, Cluster
from framework.errors import UserError
from framework.experiment import load
from framework.run.request import resolve_request

_BAD_INPUT = 2  # exit status of a process; a restart would end with it again


def main(values: flags.FlagValues, overrides: Sequence[str]) -> int:
    """Runs --local_workers=N workers after checking the input once; returns the exit status.

    Raises:
      UserError: bad input that can be found before a worker starts.
    """
    workers = values.local_workers
    strategy = override(load.load(values.config).get_config(), overrides).runtime.strategy
    if strategy in ("one_device", "multi_worker"):
        overrides = [*overrides, "--config.runtime.strategy=multi_worker"]
    elif strategy != "parameter_server":
        raise UserError(
            f"--local_workers={workers} starts several processes, but runtime.strategy='{strategy}' runs in one."
            " Leave one of them out."
        )
    request = resolve_request(values.config, overrides, values.workdir)
    runtime = request.config.runtime
    if strategy != "parameter_server":
        with_replicas(request.config, workers)
    command = [sys.argv[0], f"--config={values.config}", f"--workdir={request.workdir}", *overrides]
    servers = runtime.parameter_servers if strategy == "parameter_server" else 0
    return run_local(workers, command, request.workdir, runtime.max_restarts, servers)


def run_local(workers: int, command: Sequence[str], workdir: Path, max_restarts: int, servers: int = 0) -> int:
    """Runs a cluster to its end.

    Args:
      workers: number of processes that share the steps.
      command: of each process, without the name of the interpreter.
      workdir: the run folder.
      max_restarts: number of times the cluster starts again after a process failed.
      servers: number of parameter servers; 0 if each worker holds all weights.

    Returns:
      0 if all workers ended well (with servers: the chief did), else the exit status of the first that did not.
    """
    for attempt in range(max_restarts + 1):
        status, asked = _once(workers, command, workdir, servers)
        if status == 0 or asked or status == _BAD_INPUT:
            return status
        if attempt < max_restarts:
            logging.warning("starting all workers again (%d of %d restarts)", attempt + 1, max_restarts)
    return status


def _once(workers: int, command: Sequence[str], workdir: Path, servers: int) -> tuple[int, bool]:
    """Runs the cluster once; returns the exit status and whether a signal asked it to end."""
    tasks = workers + servers + bool(servers)
    addresses = tuple(f"127.0.0.1:{port}" for port in _free_ports(tasks))
    processes = [_Process(Cluster(addresses, index, servers), command, workdir) for index in range(tasks)]
    # The chief needs the others to finish its block.
    with contextlib.ExitStack() as stack, _forwarded(processes[:1] if servers else processes) as asked:
        for process in processes:
            process.start()
            stack.callback(process.end)
        return _first_failure(processes), bool(asked)


class _Process:
    """One process of the cluster and its output."""

    def __init__(self, cluster: Cluster, command: Sequence[str], workdir: Path) -> None:
        self.name, self.has_servers = cluster.name(cluster.index), cluster.servers > 0
        self.kind = cluster.role(cluster.index)[0]
        self._command = command
        workers = len(cluster.tasks) - (cluster.servers + 1 if cluster.servers else 0)
        self._environment = {**os.environ, "TF_CONFIG": cluster.tf_config(), LOCAL_WORKERS: str(workers)}
        self._log = workdir / "workers" / f"{self.name.replace(' ', '-')}.log"

    def start(self) -> None:
        """Starts the process, also after it ended."""
        self._log.parent.mkdir(parents=True, exist_ok=True)
        self._process = lifeline.Process(
            [sys.executable, *self._command],
            self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        arguments = (self._process.stdout, self._log, f"[{self.name}] ")
        self._reader = threading.Thread(target=_copy, args=arguments)
        self._reader.start()

    def status(self) -> int | None:
        """Returns the exit status, 128 + N after signal N as in a shell; None while the process runs."""
        status = self._process.poll()
        return status if status is None or status >= 0 else 128 - status

    def how(self) -> str:
        """Returns how the process ended, for a message."""
        status = self._process.returncode
        return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"

    def send(self, number: int) -> None:
        """Sends a signal to the process, if it runs."""
        if self.status() is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Kills the process: a worker that waits for a lost peer in a collective does not react to SIGTERM for long."""
        self._process.end()
        self._reader.join()


def _first_failure(processes: Sequence[_Process]) -> int:
    """Waits for all processes, or under parameter servers for the chief; returns the status of the first that fails."""
    while True:
        statuses = [process.status() for process in processes]
        if processes[0].has_servers and statuses[0] == 0:
            return 0
        for process, status in zip(processes, statuses, strict=True):
            is_served = process.has_servers and process.kind == "worker"
            if status is not None and is_served and status != _BAD_INPUT:
                logging.warning("%s %s: starting it again, the others continue", process.name, process.how())
                process.end()
                process.start()
            elif status or (status == 0 and process.kind == "ps"):
                logging.error("%s %s: ending all workers", process.name, process.how())
                return status or 1
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(0.1)


def _copy(source: IO[str] | None, path: Path, prefix: str) -> None:
    with path.open("a") as log:
        for line in source or ():
            log.write(line)
            log.flush()
            sys.stdout.write(prefix + line)
            sys.stdout.flush()
    if source is not None:
        source.close()


@contextlib.contextmanager
def _forwarded(processes: Sequence[_Process]) -> Iterator[list[int]]:
    """Forwards SIGTERM and SIGINT to `processes`; yields a list to which each signal is added."""
    received: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for process in processes:
            process.send(number)

    before: dict[int, Any] = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    """Returns ports that no process uses now, all different: the sockets are open at the same time."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
