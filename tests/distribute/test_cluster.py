"""Who the workers are, and what is said when one is not there."""

import json
import socket
import threading
import time

import pytest

from framework.config import UserError
from framework.distribute.cluster import Cluster, resolve

EXAMPLE = (
    'Set e.g. TF_CONFIG=\'{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker",'
    ' "index": 0}}\'.'
)


def tf_config(workers=("a:1", "b:2"), kind="worker", index=1):
    return {"TF_CONFIG": json.dumps({"cluster": {"worker": [*workers]}, "task": {"type": kind, "index": index}})}


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def local(count):
    return tuple(f"127.0.0.1:{port}" for port in free_ports(count))


def test_tf_config_is_read_and_written():
    cluster = resolve(tf_config())
    assert cluster == Cluster(("a:1", "b:2"), 1)
    assert resolve({"TF_CONFIG": cluster.tf_config()}) == cluster


@pytest.mark.parametrize(
    ("nodes", "tasks", "workers"),
    [
        ("n1", "1", ["n1:12222"]),
        ("n1,n[08-10]", "1(x4)", ["n1:12222", "n08:12222", "n09:12222", "n10:12222"]),
        ("a[1,3-4]-ib", "2,1(x2)", ["a1-ib:12222", "a1-ib:12223", "a3-ib:12222", "a4-ib:12222"]),
    ],
)
def test_slurm_is_understood(nodes, tasks, workers):
    environment = {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_PROCID": "0"}
    assert resolve(environment) == Cluster(tuple(workers), 0)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {},
            "runtime.strategy='multi_worker' needs TF_CONFIG, or to be started by Slurm's srun. To try it on this"
            " machine: --local_workers=2.",
        ),
        (
            {"TF_CONFIG": "{"},
            "TF_CONFIG='{' is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)."
            f" {EXAMPLE}",
        ),
        ({"TF_CONFIG": "{}"}, f"TF_CONFIG='{{}}' has no cluster.worker, task.type and task.index. {EXAMPLE}"),
        (tf_config(["a"]), f"TF_CONFIG: the worker 'a' is not host:port with a port of 1 to 65535. {EXAMPLE}"),
        *[
            (
                tf_config([f"a:{port}"]),
                f"TF_CONFIG: the worker 'a:{port}' is not host:port with a port of 1 to 65535. {EXAMPLE}",
            )
            for port in (0, -1, 65536, 99999, 10**30)
        ],
        *[
            (
                {"SLURM_STEP_NODELIST": nodes, "SLURM_STEP_TASKS_PER_NODE": tasks, "SLURM_PROCID": process},
                f"SLURM_STEP_TASKS_PER_NODE={tasks!r}, SLURM_STEP_NODELIST={nodes!r}, SLURM_PROCID={process!r} are not"
                " understood together. Set TF_CONFIG on each worker instead.",
            )
            for nodes, tasks, process in (
                ("n[1-3]", "2", "0"),
                ("n[a-b]", "2", "0"),
                ("n1", "2", "2"),
                ("n1", "2", "x"),
            )
        ],
        (
            tf_config(["a:1", "a:1"]),
            "TF_CONFIG names a worker twice: a:1, a:1. Each needs a host or port of its own.",
        ),
        (
            tf_config(index=2),
            "TF_CONFIG: task 'worker' 2 is none of the 2 workers. The type is 'worker', the index 0 to 1.",
        ),
        (
            tf_config(kind="chief", index=0),
            "TF_CONFIG: task 'chief' 0 is none of the 2 workers. The type is 'worker', the index 0 to 1.",
        ),
    ],
)
def test_a_cluster_that_is_none_is_refused(environment, message):
    with pytest.raises(UserError) as error:
        resolve(environment)
    assert str(error.value) == message


def test_all_go_once_all_are_there():
    workers = local(3)
    times = {}

    def come(index, delay):
        time.sleep(delay)
        Cluster(workers, index).rendezvous(20)
        times[index] = time.monotonic()

    start = time.monotonic()
    threads = [threading.Thread(target=come, args=(index, 0.4 * (2 - index))) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(times) == [0, 1, 2] and min(times.values()) - start > 0.75


def test_a_stranger_at_the_door_is_no_worker():
    workers = local(2)
    chief = threading.Thread(target=lambda: Cluster(workers, 0).rendezvous(20))
    chief.start()
    time.sleep(0.2)
    host, port = workers[0].split(":")
    with socket.create_connection((host, int(port))) as stranger:
        stranger.sendall(b"GET / HTTP/1.1")
    Cluster(workers, 1).rendezvous(20)
    chief.join()


def test_the_chief_says_who_is_missing():
    workers = local(3)
    with pytest.raises(UserError) as error:
        Cluster(workers, 0).rendezvous(0.3)
    assert str(error.value) == (
        f"worker 1 ({workers[1]}), worker 2 ({workers[2]}) of 3 did not come within 0.3 s. Start all of them, or wait"
        " longer: --config.runtime.worker_timeout_seconds=N."
    )


def test_a_worker_without_a_chief_gives_up():
    workers = local(2)
    with pytest.raises(UserError) as error:
        Cluster(workers, 1).rendezvous(0.3)
    assert str(error.value) == (
        f"worker 1 did not get word from the chief ({workers[0]}) within 0.3 s. Look at the chief's log, or wait"
        " longer: --config.runtime.worker_timeout_seconds=N."
    )


def test_a_port_in_use_is_named():
    workers = local(2)
    port = int(workers[1].split(":")[1])
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(UserError) as error:
            Cluster(workers, 1).rendezvous(5)
    assert str(error.value) == (
        f"worker 1 cannot listen on port {port} of TF_CONFIG: Address already in use. Stop what uses it, or give the"
        " workers other ports."
    )
