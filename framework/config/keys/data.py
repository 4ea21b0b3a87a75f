"""Keys of `data`: which examples there are, how they are batched and where they are kept.

Experiments add keys of their own to this section.
"""

from framework.config.key import LARGEST, Key

KEYS = {
    "name": Key("", "the data set, e.g. 'mnist'"),
    "dir": Key("", "folder with the files; tried before $DATA_DIR and downloads; --data_dir sets it"),
    "batch_size": Key(128, "examples in a global batch, all replicas together", low=1, high=LARGEST),
    "replica_batch_size": Key(
        0,
        "examples in the batch of one replica; sets batch_size to this times the replicas; 0 = off",
        low=0,
        high=LARGEST,
    ),
    "shuffle": Key(True, "a new order in each epoch; False = the order of the files"),
    "remainder": Key(
        "wrap",
        "the incomplete last batch of an epoch: wrap fills it from the next epoch, pad with examples of weight 0, drop"
        " leaves it out",
        choices=("wrap", "pad", "drop"),
    ),
    "placement": Key(
        "auto",
        "resident = tensors on the device, stream = tf.data, auto = by size and memory",
        choices=("auto", "resident", "stream"),
    ),
    "resident_limit_mb": Key(
        2048, "auto: stream data larger than this, or than a quarter of memory", low=0, high=LARGEST
    ),
    "parallel_calls": Key(2, "stream: batches prepared in parallel", low=1, high=1024),
    "prefetch_batches": Key(
        8, "stream: batches ready ahead of the step; more of small ones, up to 64 MB", low=1, high=1024
    ),
    "retries": Key(3, "stream: times that a failed read (OSError) is tried again before the run stops", low=0, high=30),
    "retry_seconds": Key(1.0, "stream: wait before the first retry; doubles with each", low=0, high=3600),
}
