"""Several worker processes: who they are, and whether all of them are there before anything waits for them.

    cluster = resolve(os.environ)              # TF_CONFIG, or what Slurm sets; None without either
    cluster.rendezvous(timeout_seconds=120)    # returns on all workers at once, or says who is missing

Nothing here imports TensorFlow, whose own start waits for an absent worker without a word.
"""

import dataclasses
import json
import re
import socket
import time
from collections.abc import Mapping

from framework.config import UserError

_EXAMPLE = (
    'Set e.g. TF_CONFIG=\'{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker",'
    ' "index": 0}}\'.'
)
_SLURM_PORT = 12_222


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The workers of a run.

    Attributes:
      workers: 'host:port' of each.
      index: which of them this process is; 0 is the chief, which writes.
    """

    workers: tuple[str, ...]
    index: int

    def tf_config(self) -> str:
        """As TensorFlow reads it from the environment."""
        return json.dumps(
            {"cluster": {"worker": [*self.workers]}, "task": {"type": "worker", "index": self.index}}, sort_keys=True
        )

    def rendezvous(self, timeout_seconds: float) -> None:
        """Waits until every worker is there; the chief counts them on its own port, and lets all go at once.

        Raises:
          UserError: a port is in use, or a worker did not come in time (the chief says which).
        """
        deadline = time.monotonic() + timeout_seconds
        with self._listening() as own:
            if self.index == 0:
                self._await_workers(own, deadline, timeout_seconds)
                return
        self._report_to_chief(deadline, timeout_seconds)

    def _listening(self) -> socket.socket:
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = int(self.workers[self.index].rpartition(":")[2])
        try:
            own.bind(("", port))
            own.listen(len(self.workers))
        except OSError as error:
            own.close()
            raise UserError(
                f"worker {self.index} cannot listen on port {port} of TF_CONFIG: {error.strerror}. Stop what uses it,"
                " or give the workers other ports."
            ) from error
        return own

    def _await_workers(self, own: socket.socket, deadline: float, timeout_seconds: float) -> None:
        here: dict[int, socket.socket] = {}
        try:
            while missing := {*range(1, len(self.workers))} - here.keys():
                own.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = own.accept()
                except OSError:  # nobody came
                    names = ", ".join(f"worker {index} ({self.workers[index]})" for index in sorted(missing))
                    raise UserError(
                        f"{names} of {len(self.workers)} did not come within {timeout_seconds:g} s. Start all of them,"
                        " or wait longer: --config.runtime.worker_timeout_seconds=N."
                    ) from None
                index = _said_by(connection)
                if index in missing:
                    here[index] = connection
                else:
                    connection.close()
            for connection in here.values():
                connection.sendall(b"go")
        finally:
            for connection in here.values():
                connection.close()

    def _report_to_chief(self, deadline: float, timeout_seconds: float) -> None:
        host, _, port = self.workers[0].rpartition(":")
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as chief:
                    chief.sendall(str(self.index).encode())
                    chief.settimeout(
                        max(0.01, deadline - time.monotonic() + 1)
                    )  # the chief gives up first, and says why
                    if chief.recv(2) == b"go":
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise UserError(
                    f"worker {self.index} did not get word from the chief ({self.workers[0]}) within"
                    f" {timeout_seconds:g} s. Look at the chief's log, or wait longer:"
                    " --config.runtime.worker_timeout_seconds=N."
                )
            time.sleep(0.1)


def _said_by(connection: socket.socket) -> int:
    """Which worker it is; -1 for a stranger, or one that died meanwhile."""
    connection.settimeout(1)
    try:
        return int(connection.recv(16))
    except (ValueError, OSError):
        return -1


def resolve(environment: Mapping[str, str]) -> Cluster:
    """The cluster that TF_CONFIG describes, or that Slurm started.

    Raises:
      UserError: neither is there, or TF_CONFIG is not what it should be.
    """
    if "TF_CONFIG" in environment:
        return _from_tf_config(environment["TF_CONFIG"])
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    raise UserError(
        "runtime.strategy='multi_worker' needs TF_CONFIG, or to be started by Slurm's srun. To try it on this machine:"
        " --local_workers=2."
    )


def _from_tf_config(text: str) -> Cluster:
    try:
        config = json.loads(text)
    except ValueError as error:
        raise UserError(f"TF_CONFIG={text!r} is not JSON: {error}. {_EXAMPLE}") from error
    try:
        workers = tuple(config["cluster"]["worker"])
        kind, index = config["task"]["type"], config["task"]["index"]
    except (KeyError, TypeError) as error:
        raise UserError(f"TF_CONFIG={text!r} has no cluster.worker, task.type and task.index. {_EXAMPLE}") from error
    for worker in workers:
        if not re.fullmatch(r"\S+:[0-9]+", str(worker)):
            raise UserError(f"TF_CONFIG: the worker {worker!r} is not host:port. {_EXAMPLE}")
    if len(set(workers)) != len(workers):
        raise UserError(f"TF_CONFIG names a worker twice: {', '.join(workers)}. Each needs a host or port of its own.")
    if kind != "worker" or type(index) is not int or not 0 <= index < len(workers):
        raise UserError(
            f"TF_CONFIG: task {kind!r} {index!r} is none of the {len(workers)} workers. The type is 'worker', the index"
            f" 0 to {len(workers) - 1}."
        )
    return Cluster(workers, index)


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """One worker a task; those of one node have ports of their own."""
    tasks = _slurm_counts(environment["SLURM_STEP_TASKS_PER_NODE"])
    hosts = _slurm_hosts(environment["SLURM_STEP_NODELIST"])
    workers = [f"{host}:{_SLURM_PORT + i}" for host, count in zip(hosts, tasks, strict=True) for i in range(count)]
    return Cluster(tuple(workers), int(environment["SLURM_PROCID"]))


def _slurm_counts(text: str) -> list[int]:
    """[2, 2, 1] of '2(x2),1'."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(
                f"SLURM_STEP_TASKS_PER_NODE={text!r} is not understood. Set TF_CONFIG on each worker instead."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _slurm_hosts(text: str) -> list[str]:
    """['n1', 'n08', 'n09'] of 'n1,n[08-09]'; one bracket a name, which is what Slurm writes for a row of nodes."""
    hosts: list[str] = []
    for name in re.findall(r"[^,\[]+(?:\[[^\]]*\][^,]*)?", text):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", name)
        if match is None:
            hosts.append(name)
            continue
        for span in match[2].split(","):
            low, _, high = span.partition("-")
            hosts += [f"{match[1]}{i:0{len(low)}d}{match[3]}" for i in range(int(low), int(high or low) + 1)]
    return hosts
