"""TensorFlow's settings of a whole process: threads, virtual devices, determinism, memory growth.

    devices.setup(config)                 # before the first op

TensorFlow has one of each for a process, not for a run. A process may call `setup` again with the same values, as a
notebook does that builds a second run.
"""

import tensorflow as tf
from ml_collections import ConfigDict

from framework import compat, moved
from framework.errors import UserError


def setup(config: ConfigDict) -> None:
    """Applies `config.runtime` to this process.

    Raises:
      UserError: TensorFlow has started with another value, which it keeps until the process ends.
    """
    _set_threads(config.runtime.threads)
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


def _set_threads(threads: int) -> None:
    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise UserError(
            f"runtime.threads={threads} cannot be set: TensorFlow already runs in this process with"
            f" {tf.config.threading.get_intra_op_parallelism_threads()}. Start a new process."
        ) from error


def _set_virtual_devices(wanted: int) -> None:
    """Makes `wanted` logical CPU devices, unless the process has as many or more."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    existing = tf.config.get_logical_device_configuration(cpu)
    if existing is not None and len(existing) >= wanted:
        return
    try:
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * wanted)
    except RuntimeError as error:
        raise UserError(
            f"runtime.virtual_devices={wanted} cannot be made: TensorFlow already runs in this process with"
            f" {len(tf.config.list_logical_devices('CPU'))}. Start a new process."
        ) from error


__getattr__ = moved.former_names(__name__)
