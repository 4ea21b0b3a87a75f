"""Serves the chief of an asynchronous run, as a worker or parameter server; builds and writes nothing.

    has_served = main(values, overrides)   # False for the chief, and for runs of another kind

The chief sends the computations; this process lends its memory and threads until the chief is gone or a signal ends it.
"""

import os
from collections.abc import Sequence

import tensorflow as tf
from absl import flags, logging

from framework import config
from framework.config.overrides import override
from framework.distribute.cluster import Cluster, resolve_servers
from framework.experiment import load

# A step blocks one of these threads while it waits for variables that another task of the process may hold.
_LEAST_THREADS = 8


def main(values: flags.FlagValues, overrides: Sequence[str]) -> bool:
    """Serves until the chief is gone if TF_CONFIG makes this process a server; returns whether it served.

    Raises:
      UserError: bad input, or no chief within `runtime.worker_timeout_seconds`.
    """
    loaded = load.load(values.config)
    final = config.finalize(override(loaded.get_config(), overrides), loaded.own)
    if final.runtime.strategy != "parameter_server":
        return False
    cluster = resolve_servers(os.environ)
    if cluster.index == 0:
        return False
    cluster.check_port()
    serve(cluster, final.runtime.threads)
    logging.info("%s: serving", cluster.name(cluster.index))
    cluster.outlive_chief(final.runtime.worker_timeout_seconds)
    logging.info("%s: the chief is gone", cluster.name(cluster.index))
    return True


def serve(cluster: Cluster, threads: int = 0) -> tf.distribute.Server:
    """Starts a server in background threads, for the task of this process in `cluster`.

    Args:
      cluster: all tasks, and which of them this process is.
      threads: threads of one op; 0 = all cores.
    """
    os.environ["GRPC_FAIL_FAST"] = "use_caller"  # wait for a peer that is starting again
    settings = tf.compat.v1.ConfigProto()
    settings.intra_op_parallelism_threads = threads
    settings.inter_op_parallelism_threads = max(_LEAST_THREADS, os.cpu_count() or 1)
    kind, index = cluster.role(cluster.index)
    return tf.distribute.Server(cluster.jobs(), job_name=kind, task_index=index, protocol="grpc", config=settings)
