"""Ways to run a function of tensors, for tests that compare them."""

import pytest
import tensorflow as tf

MODES = {
    "eager": lambda fn: fn,
    "graph": lambda fn: tf.function(fn, autograph=False),
    "xla": lambda fn: tf.function(fn, autograph=False, jit_compile=True),
}

# What `make test` runs of a test over MODES: a graph has the kernels of eager execution and the trace of XLA.
_FAST = {mode: () if mode != "graph" else pytest.mark.slow for mode in MODES}
FAST_MODES = [pytest.param(mode, marks=marks) for mode, marks in _FAST.items()]
FAST_COMPILED = [pytest.param(MODES[mode], id=mode, marks=marks) for mode, marks in _FAST.items()]
