"""What bounds the memory of a step, seen in the program that XLA makes of it.

No activation of a whole batch where there are micro-batches; and what is to be computed again is.
`tests/benchmarks/remat_memory.py` measures the megabytes.
"""

import re

import pytest
import tensorflow as tf
import tf_keras as keras

from tests.small import BATCH, build

BLOCKS, WIDTH = 4, 32


def make_model(cfg):
    blocks = [keras.layers.Dense(WIDTH, "tanh", name=f"block_{i}") for i in range(BLOCKS)]
    return keras.Sequential([*blocks, keras.layers.Dense(3)])


@pytest.mark.parametrize(("micro_batches", "remat"), [(1, ""), (4, "block_.")])
def test_a_compiled_step(micro_batches, remat):
    settings = {"train.compile": "xla", "train.micro_batches": micro_batches, "train.remat": remat}
    built = build(functions={"make_model": make_model}, **settings)
    program = built.train_block.compiled.function.experimental_get_compiler_ir(tf.constant(1), [], {}, 0)(
        "optimized_hlo"
    )
    # Were the second computation found to be the first, and merged with it, there would be one of each.
    assert len(re.findall(r" tanh\(", program)) == (2 * BLOCKS if remat else BLOCKS)
    shapes = {f"f32[{size},{WIDTH}]": size for size in (BATCH, BATCH // micro_batches)}
    assert {size for shape, size in shapes.items() if shape in program} == {BATCH // micro_batches}
