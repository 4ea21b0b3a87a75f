"""framework/distribute/devices.py: TensorFlow's settings of a process."""

import os
import subprocess
import sys

import pytest
import tensorflow as tf

from framework.config import base_config
from framework.distribute import devices
from framework.errors import UserError


def make_config(**values):
    config = base_config()
    for key, value in values.items():
        config.runtime[key] = value
    return config


def in_a_new_process(code):
    """Output of Python code in a process of its own: TensorFlow's settings cannot be taken back."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=os.getcwd())
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()


def test_setup_fixes_threads_and_determinism_for_the_process():
    code = f"""
import sys
sys.path.insert(0, {str(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(devices.__file__)))))!r})
import tensorflow as tf
from framework import compat
from framework.distribute import devices
from framework.config import base_config
from framework.errors import UserError
config = base_config()
config.runtime.threads = 1
config.runtime.deterministic = False
devices.setup(config)
print(tf.config.threading.get_intra_op_parallelism_threads(), compat.is_deterministic())
config.runtime.deterministic = True
tf.constant(1) + 1
devices.setup(config)
devices.setup(config)
print(tf.config.threading.get_intra_op_parallelism_threads(), compat.is_deterministic())
for key, value in (('deterministic', False), ('threads', 2)):
    other = base_config()
    other.runtime.threads = 1
    other.runtime[key] = value
    try:
        devices.setup(other)
    except UserError as error:
        print(error)
"""
    assert in_a_new_process(code) == [
        "1 False",
        "1 True",
        "runtime.deterministic=False, but an earlier run of this process turned determinism on for good."
        " Start a new process or use --config.runtime.deterministic=True.",
        "runtime.threads=2 cannot be set: TensorFlow already runs in this process with 1. Start a new process.",
    ]


def test_threads_that_come_too_late_say_so():
    tf.constant(1) + 1
    running = tf.config.threading.get_intra_op_parallelism_threads()
    with pytest.raises(UserError) as error:
        devices.setup(make_config(threads=running + 3))
    assert str(error.value) == (
        f"runtime.threads={running + 3} cannot be set: TensorFlow already runs in this process with {running}."
        " Start a new process."
    )
