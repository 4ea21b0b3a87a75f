"""A cluster of worker processes on this machine, for development: started, watched, ended and restarted together.

    status = run_local(2, command, workdir, max_restarts=1)

Each worker runs `command` with a TF_CONFIG of its own on 127.0.0.1. What they print comes out here with their name in
front, and is kept in workdir/workers/. When one fails, all are ended, and the whole cluster starts again from the last
checkpoint: a worker that lost the others cannot go on by itself. (On a real cluster Slurm or Kubernetes does this.)
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

from framework.cluster import Cluster
from framework.run import settle

_GRACE_SECONDS = 10.0


def main(values: flags.FlagValues, overrides: Sequence[str]) -> int:
    """--local_workers=N: checks the input once, and runs N workers; returns the exit status.

    Raises:
      UserError: bad input that can be found before a worker starts.
    """
    overrides = [*overrides, "--config.runtime.strategy=multi_worker"]
    _, final, workdir = settle(values.config, overrides, values.workdir)
    command = [sys.argv[0], f"--config={values.config}", f"--workdir={workdir}", *overrides]
    return run_local(values.local_workers, command, workdir, final.runtime.max_restarts)


def run_local(workers: int, command: Sequence[str], workdir: Path, max_restarts: int) -> int:
    """Runs a cluster to its end.

    Args:
      workers: how many processes.
      command: of each, without the name of the interpreter.
      workdir: the run folder.
      max_restarts: how often the cluster is started again after a worker failed.

    Returns:
      0 if all workers ended well, else the exit status of the first that did not.
    """
    for attempt in range(max_restarts + 1):
        status, asked = _once(workers, command, workdir)
        if status == 0 or asked or status == 2:  # bad input does not get better
            return status
        if attempt < max_restarts:
            logging.warning("starting all workers again (%d of %d restarts)", attempt + 1, max_restarts)
    return status


def _once(workers: int, command: Sequence[str], workdir: Path) -> tuple[int, bool]:
    """One life of the cluster: (exit status, whether a signal asked it to end)."""
    addresses = tuple(f"127.0.0.1:{port}" for port in _free_ports(workers))
    logs = workdir / "workers"
    logs.mkdir(parents=True, exist_ok=True)
    processes: list[subprocess.Popen[str]] = []
    with contextlib.ExitStack() as stack:
        asked = stack.enter_context(_forwarded(processes))
        for index in range(workers):
            log = stack.enter_context((logs / f"worker-{index}.log").open("a"))
            process = subprocess.Popen(
                [sys.executable, *command],
                env={**os.environ, "TF_CONFIG": Cluster(addresses, index).tf_config()},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C reaches us alone, and is passed on once
            )
            processes.append(process)
            reader = threading.Thread(target=_copy, args=(process.stdout, log, f"[worker {index}] "))
            reader.start()
            stack.callback(reader.join)
        try:
            return _first_failure(processes), bool(asked)
        finally:
            _end(processes)


def _first_failure(processes: Sequence[subprocess.Popen[str]]) -> int:
    """Waits for all; as soon as one fails, returns its status, of a signal as a shell would say it."""
    while True:
        statuses = [process.poll() for process in processes]
        for index, status in enumerate(statuses):
            if status:
                how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
                logging.error("worker %d %s: ending all workers", index, how)
                return status if status > 0 else 128 - status
        if all(status == 0 for status in statuses):
            return 0
        time.sleep(0.1)


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """A worker whose peer is gone waits in a collective and does not hear SIGTERM for long: then it is killed."""
    for process in processes:
        if process.poll() is None:
            process.kill()
    for process in processes:
        process.wait(_GRACE_SECONDS)


def _copy(source: IO[str] | None, log: IO[str], prefix: str) -> None:
    for line in source or ():
        log.write(line)
        log.flush()
        sys.stdout.write(prefix + line)
        sys.stdout.flush()
    if source is not None:
        source.close()


@contextlib.contextmanager
def _forwarded(processes: Sequence[subprocess.Popen[str]]) -> Iterator[list[int]]:
    """Passes SIGTERM and SIGINT on to all workers; yields the list of those that came."""
    came: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before: dict[int, Any] = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody uses now; held together, so that no two are the same."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
