"""Keys of `runtime`: devices, processes and threads."""

from framework.config.key import Key

# Strategies whose runs are several processes.
SEVERAL_PROCESSES = ("multi_worker", "parameter_server")

# Strategies that have a choice of all-reduce algorithms, with the algorithms.
ALL_REDUCE = {"mirrored": ("auto", "nccl", "hierarchical", "one_device"), "multi_worker": ("auto", "nccl", "ring")}

KEYS = {
    "deterministic": Key(True, "deterministic ops of TensorFlow: same run, same bits"),
    "threads": Key(0, "threads of one op; 0 = all cores", low=0, high=1024),
    "strategy": Key(
        "one_device",
        "mirrored = devices of one process, multi_worker = several processes, parameter_server = asynchronous workers",
        choices=("one_device", "mirrored", "multi_worker", "parameter_server", "tpu"),
    ),
    "devices": Key(
        0, "replicas in this process; 0 = one for each device", low=0, high=1024, only_with={"strategy": ("mirrored",)}
    ),
    "virtual_devices": Key(
        0, "virtual CPU devices in place of GPUs; 0 = none", low=0, high=64, only_with={"strategy": ("mirrored",)}
    ),
    "all_reduce": Key(
        "auto",
        "algorithm that sums gradients; mirrored has hierarchical and one_device, multi_worker has ring",
        choices=tuple(dict.fromkeys(name for names in ALL_REDUCE.values() for name in names)),
        only_with={"strategy": tuple(ALL_REDUCE)},
    ),
    "all_reduce_dtype": Key(
        "full",
        "dtype in which gradients are sent; bfloat16 halves the bytes",
        choices=("full", "bfloat16"),
        only_with={"strategy": ("mirrored", "multi_worker", "tpu")},
    ),
    "worker_timeout_seconds": Key(
        120, "wait for other processes at the start", low=1, high=86_400, only_with={"strategy": SEVERAL_PROCESSES}
    ),
    "parameter_servers": Key(
        1,
        "--local_workers: processes that hold the weights",
        low=1,
        high=1024,
        only_with={"strategy": ("parameter_server",)},
    ),
    "max_restarts": Key(
        0,
        "--local_workers: restarts of the cluster after a worker died",
        low=0,
        high=1_000_000,
        only_with={"strategy": SEVERAL_PROCESSES},
    ),
}
