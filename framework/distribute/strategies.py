"""The `tf.distribute` strategy of a run, by `config.runtime`.

strategy = make_strategy(config)       # None: one device
"""

import functools
import os

import tensorflow as tf
from absl import logging
from ml_collections import ConfigDict

from framework.distribute.cluster import Cluster, resolve, resolve_servers
from framework.errors import UserError


def make_strategy(config: ConfigDict) -> tf.distribute.Strategy | None:
    """Returns the strategy that `runtime.strategy` names, connected to all processes of the run; None for one device.

    Raises:
      UserError: there are fewer devices than `runtime.devices`, TF_CONFIG is missing or wrong, or a process is absent.
    """
    settings = config.runtime
    if settings.strategy == "mirrored":
        return tf.distribute.MirroredStrategy(_devices(settings), cross_device_ops=_cross_device_ops(settings))
    if settings.strategy == "multi_worker":
        return _multi_worker(settings)
    if settings.strategy == "parameter_server":
        return _parameter_server(resolve_servers(os.environ), settings.worker_timeout_seconds)
    if settings.strategy == "tpu":  # written from the documentation: this project's machines have no TPU
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect()
        return tf.distribute.TPUStrategy(resolver)
    return None


def _devices(settings: ConfigDict) -> list[str]:
    """Returns the names of the devices of a mirrored run."""
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


def _cross_device_ops(settings: ConfigDict) -> tf.distribute.CrossDeviceOps:
    """Returns how gradients are summed over the devices of one process."""
    name = settings.all_reduce
    if name == "auto":
        # Virtual CPU devices share their memory. A failed collective would break all later ones of the process.
        name = "nccl" if tf.config.list_physical_devices("GPU") and not settings.virtual_devices else "one_device"
    return {
        "nccl": tf.distribute.NcclAllReduce,
        "hierarchical": tf.distribute.HierarchicalCopyAllReduce,
        "one_device": tf.distribute.ReductionToOneDevice,
    }[name]()


def _multi_worker(settings: ConfigDict) -> tf.distribute.Strategy:
    """Returns the strategy of synchronous workers, as soon as all of them have started."""
    cluster = resolve(os.environ)
    os.environ["TF_CONFIG"] = cluster.tf_config()
    cluster.rendezvous(settings.worker_timeout_seconds)
    tf.get_logger().setLevel("WARNING")  # TensorFlow logs every collective that it traces
    kinds = tf.distribute.experimental.CommunicationImplementation
    kind = {"auto": kinds.AUTO, "nccl": kinds.NCCL, "ring": kinds.RING}[settings.all_reduce]
    options = tf.distribute.experimental.CommunicationOptions(implementation=kind)
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


@functools.cache
def _parameter_server(cluster: Cluster, timeout_seconds: float) -> tf.distribute.Strategy:
    """Returns the strategy of a chief once all its servers and workers listen; a process can connect only once."""
    cluster.await_servers(timeout_seconds)
    os.environ["GRPC_FAIL_FAST"] = "use_caller"
    tf.get_logger().setLevel("WARNING")  # TensorFlow logs every block
    verbosity = logging.get_verbosity()
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(cluster.jobs()), task_type="chief", task_id=0, rpc_layer="grpc"
    )
    logging.set_verbosity(logging.WARNING)  # connecting logs a page of settings
    try:
        return tf.distribute.ParameterServerStrategy(resolver)
    finally:
        logging.set_verbosity(verbosity)
