"""The processes of a run, and a rendezvous that names the ones that are missing.

    cluster = resolve(os.environ)              # from TF_CONFIG, or from what Slurm sets
    cluster.rendezvous(timeout_seconds=120)    # returns on all workers at once, or names the missing ones

    cluster = resolve_servers(os.environ)      # from TF_CONFIG with a chief, workers and parameter servers
    cluster.await_servers(timeout_seconds=120) # on the chief: returns once all serve, or names the missing ones

TensorFlow would wait for an absent worker without a word. Nothing here imports TensorFlow.
"""

import dataclasses
import json
import re
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from framework.errors import UserError

_EXAMPLE = (
    'Set e.g. TF_CONFIG=\'{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker",'
    ' "index": 0}}\'.'
)
_SERVERS_EXAMPLE = (
    'Set e.g. TF_CONFIG=\'{"cluster": {"chief": ["host0:2222"], "worker": ["host1:2222", "host2:2222"], "ps":'
    ' ["host3:2222"]}, "task": {"type": "chief", "index": 0}}\'.'
)
LOCAL_WORKERS = "FRAMEWORK_LOCAL_WORKERS"  # environment variable of workers that --local_workers starts: how many
_SLURM_PORT = 12_222  # of the first worker of a node; the next one has the next port
_LAST_PORT = 65_535
_LOST_SECONDS = 5.0  # without a chief: shorter gaps are a restart, or the change from one listener to the next


@dataclasses.dataclass(frozen=True)
class Cluster:
    """The processes of a run.

    Attributes:
      tasks: 'host:port' of each process.
      index: place of this process among them; 0 is the chief, which writes the run folder.
      servers: number of parameter servers, which are the last of the tasks. If there are some, the chief computes no
        steps; without any, every process is a worker.
    """

    tasks: tuple[str, ...]
    index: int
    servers: int = 0

    def tf_config(self) -> str:
        """Returns TF_CONFIG as TensorFlow reads it from the environment of this process."""
        kind, index = self.role(self.index)
        return json.dumps({"cluster": self.jobs(), "task": {"type": kind, "index": index}}, sort_keys=True)

    def jobs(self) -> dict[str, list[str]]:
        """Returns {'worker': ['host:port', …]}, or the same with 'chief', 'worker' and 'ps'."""
        jobs: dict[str, list[str]] = {}
        for index, task in enumerate(self.tasks):
            jobs.setdefault(self.role(index)[0], []).append(task)
        return jobs

    def role(self, index: int) -> tuple[str, int]:
        """Returns the job of a process and its place in that job: ('worker', 1)."""
        first = len(self.tasks) - self.servers
        if not self.servers:
            return "worker", index
        if index == 0:
            return "chief", 0
        return ("worker", index - 1) if index < first else ("ps", index - first)

    def name(self, index: int) -> str:
        """Returns the name of a process in messages: 'worker 1', 'ps 0', or 'chief' beside the workers."""
        kind, number = self.role(index)
        return kind if kind == "chief" else f"{kind} {number}"

    def rendezvous(self, timeout_seconds: float) -> None:
        """Waits until every worker has started: workers report to the chief's port, and it answers all at once.

        Raises:
          UserError: a port is in use, or a worker did not start in time (the chief names it).
        """
        deadline = time.monotonic() + timeout_seconds
        with self._listening() as own:
            if self.index == 0:
                self._await_workers(own, deadline, timeout_seconds)
                return
        self._report_to_chief(deadline, timeout_seconds)

    def _listening(self) -> socket.socket:
        """Returns a socket that listens on the port of this process."""
        own = socket.socket()
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        port = int(self.tasks[self.index].rpartition(":")[2])
        try:
            own.bind(("", port))
            own.listen(len(self.tasks))
        except OSError as error:
            own.close()
            raise UserError(
                f"{self.name(self.index)} cannot listen on port {port} of TF_CONFIG: {error.strerror}. Stop what uses"
                " it, or give the workers other ports."
            ) from error
        return own

    def _await_workers(self, own: socket.socket, deadline: float, timeout_seconds: float) -> None:
        """Waits for the report of every other worker, and answers all of them."""
        here: dict[int, socket.socket] = {}
        try:
            while missing := {*range(1, len(self.tasks))} - here.keys():
                own.settimeout(max(0.01, deadline - time.monotonic()))
                try:
                    connection, _ = own.accept()
                except OSError:  # no report in time
                    raise self._missing(missing, timeout_seconds) from None
                index = _reported_index(connection)
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
        """Reports to the chief until it answers."""
        host, _, port = self.tasks[0].rpartition(":")
        while True:
            try:
                with socket.create_connection((host, int(port)), timeout=1) as chief:
                    chief.sendall(str(self.index).encode())
                    # A second longer than the chief, which gives up first and says why.
                    chief.settimeout(max(0.01, deadline - time.monotonic() + 1))
                    if chief.recv(2) == b"go":
                        return
            except OSError:
                pass
            if time.monotonic() > deadline:
                raise self._unheard(timeout_seconds)
            time.sleep(0.1)

    def await_servers(self, timeout_seconds: float) -> None:
        """Waits, on the chief, until every other process listens.

        Raises:
          UserError: the chief's port is in use, or a process does not listen in time.
        """
        self.check_port()
        deadline = time.monotonic() + timeout_seconds
        missing = {*range(1, len(self.tasks))}
        while missing := {index for index in missing if not is_open(self.tasks[index])}:
            if time.monotonic() > deadline:
                raise self._missing(missing, timeout_seconds)
            time.sleep(0.1)

    def outlive_chief(self, timeout_seconds: float) -> None:
        """Waits, on the other processes, until the chief has started and ended.

        Raises:
          UserError: the chief did not start in time.
        """
        deadline = time.monotonic() + timeout_seconds
        while not is_open(self.tasks[0]):
            if time.monotonic() > deadline:
                raise self._unheard(timeout_seconds)
            time.sleep(0.2)
        seen = time.monotonic()
        while time.monotonic() < seen + _LOST_SECONDS:
            time.sleep(0.5)
            if is_open(self.tasks[0]):
                seen = time.monotonic()

    def check_port(self) -> None:
        """Raises UserError if another process listens on the port of this process."""
        self._listening().close()

    def _missing(self, missing: Iterable[int], timeout_seconds: float) -> UserError:
        names = ", ".join(f"{self.name(index)} ({self.tasks[index]})" for index in sorted(missing))
        return UserError(
            f"{names} of {len(self.tasks)} did not come within {timeout_seconds:g} s. Start all of them,"
            " or wait longer: --config.runtime.worker_timeout_seconds=N."
        )

    def _unheard(self, timeout_seconds: float) -> UserError:
        return UserError(
            f"{self.name(self.index)} did not get word from the chief ({self.tasks[0]}) within"
            f" {timeout_seconds:g} s. Look at the chief's log, or wait longer:"
            " --config.runtime.worker_timeout_seconds=N."
        )


def is_open(address: str) -> bool:
    """Returns whether a process listens at 'host:port'."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


def _reported_index(connection: socket.socket) -> int:
    """Returns the index that a worker reports; -1 if it is no worker, or died meanwhile."""
    connection.settimeout(1)
    try:
        return int(connection.recv(16))
    except (ValueError, OSError):
        return -1


def resolve(environment: Mapping[str, str]) -> Cluster:
    """Returns the cluster of workers that TF_CONFIG describes, or that Slurm started.

    Raises:
      UserError: the environment has neither, or TF_CONFIG is wrong.
    """
    if "TF_CONFIG" in environment:
        return _from_tf_config(environment["TF_CONFIG"])
    if "SLURM_STEP_NODELIST" in environment and "SLURM_PROCID" in environment:
        return _from_slurm(environment)
    raise UserError(
        "runtime.strategy='multi_worker' needs TF_CONFIG, or to be started by Slurm's srun. To try it on this machine:"
        " --local_workers=2."
    )


def resolve_servers(environment: Mapping[str, str]) -> Cluster:
    """Returns the cluster of chief, workers and parameter servers that TF_CONFIG describes.

    Raises:
      UserError: TF_CONFIG is missing or wrong.
    """
    if "TF_CONFIG" not in environment:
        raise UserError(
            "runtime.strategy='parameter_server' needs TF_CONFIG. To try it on this machine: --local_workers=2."
        )
    jobs, kind, index = _parsed(environment["TF_CONFIG"], ("chief", "worker", "ps"), _SERVERS_EXAMPLE)
    if len(jobs["chief"]) != 1 or not jobs["worker"] or not jobs["ps"]:
        raise UserError(
            f"TF_CONFIG has {len(jobs['chief'])} chiefs, {len(jobs['worker'])} workers and {len(jobs['ps'])} ps. There"
            f" is one chief, and at least one of each of the others. {_SERVERS_EXAMPLE}"
        )
    if kind not in jobs or type(index) is not int or not 0 <= index < len(jobs[kind]):
        raise UserError(
            f"TF_CONFIG: task {kind!r} {index!r} is none of the cluster. The type is 'chief', 'worker' or 'ps', the"
            " index counts from 0 among those of its type."
        )
    first = {"chief": 0, "worker": 1, "ps": 1 + len(jobs["worker"])}[kind]
    return Cluster((*jobs["chief"], *jobs["worker"], *jobs["ps"]), first + index, len(jobs["ps"]))


def _from_tf_config(text: str) -> Cluster:
    jobs, kind, index = _parsed(text, ("worker",), _EXAMPLE)
    workers = tuple(jobs["worker"])
    if kind != "worker" or type(index) is not int or not 0 <= index < len(workers):
        raise UserError(
            f"TF_CONFIG: task {kind!r} {index!r} is none of the {len(workers)} workers. The type is 'worker', the index"
            f" 0 to {len(workers) - 1}."
        )
    return Cluster(workers, index)


def _parsed(text: str, kinds: Sequence[str], example: str) -> tuple[dict[str, list[str]], Any, Any]:
    """Returns ({job: addresses}, job and index of this process) of TF_CONFIG, which must have the jobs `kinds`."""
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"TF_CONFIG={text!r} is not JSON: {error}. {example}") from error
    try:
        jobs = {kind: list(config["cluster"][kind]) for kind in kinds}
        kind, index = config["task"]["type"], config["task"]["index"]
    except (KeyError, TypeError) as error:
        wanted = ", ".join(f"cluster.{kind}" for kind in kinds)
        raise UserError(f"TF_CONFIG={text!r} has no {wanted}, task.type and task.index. {example}") from error
    addresses = [(kind, address) for kind, job in jobs.items() for address in job]
    for job, address in addresses:
        match = re.fullmatch(r"\S+:([0-9]{1,5})", str(address))
        if match is None or not 1 <= int(match[1]) <= _LAST_PORT:
            raise UserError(
                f"TF_CONFIG: the {job} {address!r} is not host:port with a port of 1 to {_LAST_PORT}. {example}"
            )
    if len({address for _, address in addresses}) != len(addresses):
        named = ", ".join(address for _, address in addresses)
        what = "a worker" if len(kinds) == 1 else "an address"
        raise UserError(f"TF_CONFIG names {what} twice: {named}. Each needs a host or port of its own.")
    return jobs, kind, index


def _from_slurm(environment: Mapping[str, str]) -> Cluster:
    """Returns a cluster with a worker for each Slurm task; workers of one node have consecutive ports."""
    names = ("SLURM_STEP_TASKS_PER_NODE", "SLURM_STEP_NODELIST", "SLURM_PROCID")
    try:
        tasks, hosts = _slurm_counts(environment[names[0]]), _slurm_hosts(environment[names[1]])
        workers = [f"{host}:{_SLURM_PORT + i}" for host, count in zip(hosts, tasks, strict=True) for i in range(count)]
        index = range(len(workers))[int(environment[names[2]])]
    except (KeyError, ValueError, IndexError) as error:
        shown = ", ".join(f"{name}={environment.get(name, '')!r}" for name in names)
        raise UserError(f"{shown} are not understood together. Set TF_CONFIG on each worker instead.") from error
    return Cluster(tuple(workers), index)


def _slurm_counts(text: str) -> list[int]:
    """Returns the tasks of each node: [2, 2, 1] for '2(x2),1'."""
    counts: list[int] = []
    for group in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", group)
        if match is None:
            raise UserError(
                f"SLURM_STEP_TASKS_PER_NODE={text!r} is not understood. Set TF_CONFIG on each worker instead."
            )
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def _slurm_hosts(text: str) -> list[str]:
    """Returns the nodes: ['n1', 'n08', 'n09'] for 'n1,n[08-09]'. A name has one bracket at most, as Slurm writes it."""
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
