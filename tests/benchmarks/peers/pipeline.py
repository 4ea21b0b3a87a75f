"""tf.data of resident examples, for the peers whose loops take a data set.

for batch in batches('mlp'): ...      # {'image': float32 [128, 784], 'label': int32 [128]}, shuffled, without end
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[3]))

import tensorflow as tf

from tests.benchmarks.workloads import arrays


def batches(workload: str, shown: Callable[[dict[str, tf.Tensor]], Any] = lambda batch: batch) -> tf.data.Dataset:
    """Whole batches are gathered by a permutation of each epoch: shuffling examples one by one costs more.

    Args:
      shown: batch -> what a loop wants of it.
    """
    examples = {name: tf.constant(array) for name, array in arrays.arrays(workload).items()}
    size, batch = len(next(iter(examples.values()))), arrays.BATCH[workload]

    def epoch(_: tf.Tensor) -> tf.data.Dataset:
        order = tf.random.shuffle(tf.range(size, dtype=tf.int32))[: size // batch * batch]
        return tf.data.Dataset.from_tensor_slices(tf.reshape(order, [-1, batch]))

    def gathered(index: tf.Tensor) -> Any:
        return shown({name: tf.gather(array, index) for name, array in examples.items()})

    orders = tf.data.Dataset.counter().flat_map(epoch)
    return orders.map(gathered, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
