"""What the process runs on: TensorFlow's global settings and the run header.

    runtime.setup(config)                 # before the first op: threads, determinism, memory growth
    header = runtime.environment()        # versions, devices, CPU, git commit, command

These settings belong to the process, not to a run: TensorFlow has one of each. `setup` may be called again with the
same values, which is what a second `framework.build` of a notebook does.
"""

import functools
import importlib.metadata
import os
import platform
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework import compat
from framework.distribute.cluster import Cluster, resolve, resolve_servers
from framework.errors import UserError

_MEMORY, _GROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.max")
_PACKAGES = ("tensorflow", "tf-keras", "numpy", "absl-py", "ml-collections", "tensorboard", "ai-edge-litert")


def setup(config: ConfigDict) -> None:
    """Applies `config.runtime`.

    Raises:
      UserError: a setting differs from what an earlier `setup` of this process fixed for good.
    """
    threads = config.runtime.threads
    if tf.config.threading.get_intra_op_parallelism_threads() != threads:
        try:
            tf.config.threading.set_intra_op_parallelism_threads(threads)
        except RuntimeError as error:
            raise UserError(
                f"runtime.threads={threads} cannot be set: TensorFlow already runs in this process with"
                f" {tf.config.threading.get_intra_op_parallelism_threads()}. Start a new process."
            ) from error
    if config.runtime.virtual_devices:
        _set_virtual_devices(config.runtime.virtual_devices)
    if config.runtime.deterministic:
        tf.config.experimental.enable_op_determinism()
    elif compat.is_deterministic():
        raise UserError(
            "runtime.deterministic=False, but an earlier run of this process turned determinism on for good."
            " Start a new process or use --config.runtime.deterministic=True."
        )
    for device in tf.config.list_physical_devices("GPU"):
        if not tf.config.experimental.get_memory_growth(device):
            tf.config.experimental.set_memory_growth(device, True)


def _set_virtual_devices(wanted: int) -> None:
    """So many logical CPU devices, if TensorFlow has not started; a process that has as many or more will do."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    there = tf.config.get_logical_device_configuration(cpu)
    if there is not None and len(there) >= wanted:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
    except RuntimeError as error:
        raise UserError(
            f"runtime.virtual_devices={wanted} cannot be made: TensorFlow already runs in this process with"
            f" {len(tf.config.list_logical_devices('CPU'))}. Start a new process."
        ) from error


def make_strategy(config: ConfigDict) -> tf.distribute.Strategy | None:
    """The strategy of `config.runtime`; None for one device.

    Raises:
      UserError: more devices are asked for than there are, or no TF_CONFIG.
    """
    settings = config.runtime
    if settings.strategy == "mirrored":
        return tf.distribute.MirroredStrategy(_devices(settings), cross_device_ops=_cross_device_ops(settings))
    if settings.strategy == "multi_worker":
        cluster = resolve(os.environ)
        os.environ["TF_CONFIG"] = cluster.tf_config()
        cluster.rendezvous(settings.worker_timeout_seconds)
        tf.get_logger().setLevel("WARNING")  # it tells of every collective that is traced
        kinds = tf.distribute.experimental.CommunicationImplementation
        kind = {"auto": kinds.AUTO, "nccl": kinds.NCCL, "ring": kinds.RING}[settings.all_reduce]
        options = tf.distribute.experimental.CommunicationOptions(implementation=kind)
        return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    if settings.strategy == "parameter_server":
        cluster = resolve_servers(os.environ)
        return _connected(cluster, settings.worker_timeout_seconds)
    if settings.strategy == "tpu":  # as documented; this project's machines have none
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    return None


@functools.cache
def _connected(cluster: Cluster, timeout_seconds: float) -> tf.distribute.Strategy:
    """A process connects to one cluster, once."""
    cluster.await_servers(timeout_seconds)
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    tf.get_logger().setLevel("WARNING")  # it tells of every block
    verbosity = logging.get_verbosity()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs()), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    logging.set_verbosity(logging.WARNING)  # connecting prints a page of settings
    try:
        return tf.distribute.ParameterServerStrategy(resolver)
    finally:
        logging.set_verbosity(verbosity)


def _devices(settings: ConfigDict) -> list[str]:
    """Names of the devices of a mirrored run."""
    kind = "GPU" if tf.config.list_physical_devices("GPU") and not settings.virtual_devices else "CPU"
    there = [f"{kind}:{index}" for index in range(len(tf.config.list_logical_devices(kind)))]
    there = there[: settings.virtual_devices or None]
    wanted = settings.devices or len(there)
    if wanted > len(there):
        raise UserError(
            f"runtime.devices={wanted} is more than there are: {', '.join(there)}. Use --config.runtime.devices="
            f"{len(there)}, or --config.runtime.virtual_devices={wanted} to try it on virtual CPU devices."
        )
    return there[:wanted]


def _cross_device_ops(settings: ConfigDict) -> tf.distribute.CrossDeviceOps | None:
    """How gradients are summed over the devices of one process; None leaves it to TensorFlow (NCCL on GPUs)."""
    name = settings.all_reduce
    if name == "auto":
        # Virtual CPU devices share their memory. A collective that fails would poison all later ones of the process.
        name = "nccl" if tf.config.list_physical_devices("GPU") and not settings.virtual_devices else "one_device"
    return {
        "nccl": tf.distribute.NcclAllReduce,
        "hierarchical": tf.distribute.HierarchicalCopyAllReduce,
        "one_device": tf.distribute.ReductionToOneDevice,
    }[name]()


class Interrupt:
    """While open, SIGTERM and SIGINT are requests; the second one is the usual end.

    In a thread other than the main one, where Python allows no handler, signals stay as they are.
    """

    def __init__(self) -> None:
        self.is_requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._request)
        return self

    def __exit__(self, *error: object) -> None:
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        self.is_requested = True
        logging.warning("%s: finishing the block and saving; once more ends at once", signal.Signals(number).name)
        self._restore()


def memory() -> int | None:
    """Bytes of memory of the host, or of the control group (cgroup v2) that this process is in; None without /proc.

    Not what is free, which is another number at each start. That of an accelerator is not looked at.
    """
    try:
        lines = dict(line.split(":") for line in _MEMORY.read_text().splitlines())
        size = 1024 * int(lines["MemTotal"].split()[0])
    except (OSError, KeyError):
        return None
    try:
        return min(size, int(_GROUP.read_text()))
    except (OSError, ValueError):  # no such group, or one without a limit: 'max'
        return size


def environment() -> dict[str, Any]:
    """The run header: what someone needs to know to get the same numbers again."""
    return {
        "command": shlex.join([Path(sys.executable).name, *sys.argv]),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "devices": [f"{device.device_type}: {device.name}" for device in tf.config.list_physical_devices()],
        "git": git_commit(),
    }


def git_commit(folder: Path | None = None) -> dict[str, Any]:
    """{'commit': 40 hex digits, 'dirty': bool} of a checkout, by default our own; the commit is '' outside one."""
    root = folder or Path(__file__).parents[2]

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return {"commit": "", "dirty": False}


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
