"""A worker or parameter server of an asynchronous run: it serves the chief, and builds and writes nothing.

    is_served = main(values, overrides)   # False for the chief, and for runs of another kind

The chief sends the computations; what is here is memory and threads. It ends when the chief is gone, or by a signal.
"""

import os
from collections.abc import Sequence

import tensorflow as tf
from absl import flags, logging

from framework import config
from framework.config.overrides import override
from framework.distribute.cluster import Cluster, resolve_servers
from framework.experiment import load

# A step waits in one of these for variables that another task of the same process may hold.
_LEAST_THREADS = 8


def main(values: flags.FlagValues, overrides: Sequence[str]) -> bool:
    """Serves to the end if TF_CONFIG says that this process does; returns whether it did.

    Raises:
      UserError: bad input, or the chief does not come.
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
    """Starts serving in threads of their own, as the task that `cluster` says this process is.

    Args:
      threads: of one op; 0 = all cores.
    """
    os.environ["GRPC_FAIL_FAST"] = "use_caller"  # a peer that is starting again is waited for
    settings = tf.compat.v1.ConfigProto()
    settings.intra_op_parallelism_threads = threads
    settings.inter_op_parallelism_threads = max(_LEAST_THREADS, os.cpu_count() or 1)
    kind, index = cluster.role(cluster.index)
    return tf.distribute.Server(cluster.jobs(), job_name=kind, task_index=index, protocol="grpc", config=settings)
