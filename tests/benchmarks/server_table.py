"""A table that is larger than the memory of a parameter server: trained on two, restored on one, two and three.

    python tests/benchmarks/server_table.py                                   # 3 GB, and 2 GiB for each server
    python tests/benchmarks/server_table.py --gigabytes=0.3 --limit=0.8 --folder=/var/tmp/table

Each server is a process whose memory of its own (heap, tensors, stacks of threads, what Python and TensorFlow take) is
limited by `ulimit -d`; what it is before a variable is made is printed. Stacks have 256 kB by `ulimit -s`, because some
hundred threads reserve 8 MB each by default, and what is freed is given back at once (`FRUGAL`). So one server alone
could not have the table, and the one that it is restored on has no limit. The table is trained by SGD on the rows that
a step looks up, which keeps no slots, and saved as 192 variables, because making or restoring one takes several of its
size. Rows at random, those that were trained and those beside the bounds of variables are compared: looked up on the
servers that trained, read from the checkpoint by their offsets, and looked up on others.
"""

import argparse
import contextlib
import os
import select
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from framework.cli.server import serve
from framework.distribute.cluster import Cluster

# What a server does not need is imported where it is used: it is 0.09 GB.

WIDTH, SHARDS, STEPS, BATCH, EXAMPLES = 64, 192, 60, 512, 20_000
# The allocator of oneDNN takes all that a limit leaves, in ever larger pieces, and gives none back.
FRUGAL = "TF_ENABLE_ONEDNN_OPTS=0 MALLOC_MMAP_THRESHOLD_=1000000 MALLOC_ARENA_MAX=2"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0, help="of the table, 10^9 bytes")
    parser.add_argument("--limit", type=float, default=2.0, help="of each server, GiB")
    parser.add_argument("--folder", help="of the checkpoint; a temporary one by default")
    parser.add_argument("--task", help=argparse.SUPPRESS)  # what a process of this script does
    flags = parser.parse_args()
    if flags.task:
        TASKS[flags.task.partition(" ")[0]](*flags.task.split(" ")[1:])
        return
    rows = round(flags.gigabytes * 1e9 / 4 / WIDTH)
    print(f"a table of {rows:,} x {WIDTH} float32, {rows * WIDTH * 4 / 1e9:.2f} GB, in {SHARDS} variables", flush=True)
    with contextlib.ExitStack() as stack:
        folder = flags.folder or stack.enter_context(tempfile.TemporaryDirectory())
        for what, servers, limit in (
            ("train", 2, flags.limit),
            ("restore", 2, flags.limit),
            ("restore", 3, flags.limit),
            ("restore", 1, 0.0),
        ):
            phase(what, servers, limit, rows, Path(folder).absolute())


# ---- Processes ----


def phase(what: str, servers: int, limit: float, rows: int, folder: Path) -> None:
    """Runs the servers and the chief of one phase, and prints what the chief says and what the servers took."""
    from tests.distribute.test_cluster import local

    tasks = local(2 + servers)
    with contextlib.ExitStack() as stack:
        processes = []
        for index in range(2, 2 + servers):
            ulimit = f"ulimit -s 256 && ulimit -d {round(limit * 2**20)} && {FRUGAL} " if limit else ""
            process = started(f"serve {index} {servers} {','.join(tasks)}", ulimit, stdin=subprocess.PIPE)
            processes.append(stack.enter_context(ended(process)))
        bare = [float(process.stdout.readline()) for process in processes]
        bound = f"of ulimit -d {round(limit * 2**20)} ({limit * 2**30 / 1e9:.2f} GB)" if limit else "without a limit"
        print(f"{what} on {servers} servers {bound}, each {max(bare):.2f} GB without a variable:", flush=True)
        chief = started(f"{what} {servers} {','.join(tasks)} {rows} {folder}")
        with ended(chief):
            said = chief.stdout.read().strip()
            if chief.wait():
                raise SystemExit(f"{what} on {servers} servers failed")
        took = [process.communicate("")[0].split() for process in processes]
    data, resident = (max(float(numbers[place]) for numbers in took) for place in (0, 1))
    print(
        f"  {said}\n  at the peak a server had {data:.2f} GB, and {resident:.2f} GB resident with what it shares",
        flush=True,
    )


def started(task: str, ulimit: str = "", **pipes: int) -> subprocess.Popen:
    command = shlex.join([sys.executable, __file__, f"--task={task}"])
    return subprocess.Popen(["bash", "-c", f"{ulimit}exec {command}"], stdout=subprocess.PIPE, text=True, **pipes)


@contextlib.contextmanager
def ended(process: subprocess.Popen) -> Iterator[subprocess.Popen]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def gigabytes(name: str) -> float:
    """Returns an entry of this process's status, in 10^9 bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024 / 1e9


def run_server(index: str, servers: str, tasks: str) -> None:
    """Serves until standard input ends; prints the gigabytes of data before, those at the peak, and resident ones."""
    server = serve(Cluster(tuple(tasks.split(",")), int(index), int(servers)))
    peak = gigabytes("VmData")
    print(peak, flush=True)
    while not select.select([sys.stdin], [], [], 0.1)[0]:
        peak = max(peak, gigabytes("VmData"))
    print(peak, gigabytes("VmHWM"), flush=True)
    del server
    os._exit(0)  # a server has no end of its own


def join(servers: str, tasks: str) -> tf.distribute.Server:
    """Makes this process the chief, and returns its one worker."""
    addresses = tuple(tasks.split(","))
    os.environ["TF_CONFIG"] = Cluster(addresses, 0, int(servers)).tf_config()
    return serve(Cluster(addresses, 1, int(servers)))


# ---- Phases ----


def train(servers: str, tasks: str, rows: str, folder: str) -> None:
    from framework.checkpoint.checkpoints import Checkpoints

    worker = join(servers, tasks)
    start = time.perf_counter()
    run, chosen = make_run(int(rows)), sample(int(rows))
    built = time.perf_counter() - start
    before = looked_up(run, chosen)
    losses_of = run.train_block(STEPS).rows
    after = looked_up(run, chosen)
    start = time.perf_counter()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    resident = gigabytes("VmRSS")
    with Checkpoints(Path(folder), 1) as checkpoints:
        path = checkpoints.save(run.state, {})
    seconds, peak = time.perf_counter() - start, gigabytes("VmHWM") - resident
    np.save(Path(folder) / "sample.npy", after)
    stored = from_checkpoint(path, chosen)
    changed = int((before != after).any(1).sum())
    devices = [table.device for table in run.model.films.table]
    print(
        f"made in {built:.0f} s, {[devices.count(device) for device in sorted(set(devices))]} variables a server;"
        f" {len(losses_of)} steps changed {changed} of {len(chosen)} rows; saved in {seconds:.0f} s, which took"
        f" {peak:.2f} GB of the chief; {same(stored, after)} in the checkpoint"
    )
    del worker


def restore(servers: str, tasks: str, rows: str, folder: str) -> None:
    from framework.checkpoint.checkpoints import Checkpoints

    worker = join(servers, tasks)
    run, chosen = make_run(int(rows)), sample(int(rows))
    start = time.perf_counter()
    with Checkpoints(Path(folder), 1) as checkpoints:
        checkpoints.restore(run.state)
    seconds = time.perf_counter() - start
    before = same(looked_up(run, chosen), np.load(Path(folder) / "sample.npy"))
    run.train_block(STEPS)
    print(f"restored in {seconds:.0f} s; {before}; {STEPS} steps more, at step {int(run.state.step)}")
    del worker


def make_run(rows: int):
    """Returns a run whose examples look up one row each, whose numbers shall add up to a target."""
    import tf_keras as keras

    from framework import data, layers, losses
    from tests.small import build

    class Films(keras.Model):
        def __init__(self):
            super().__init__()
            self.films = layers.EmbeddingTable(rows, WIDTH, shards=SHARDS)

        def call(self, rows, training=None):
            return self.films(rows)

    random = np.random.default_rng(1)
    arrays = {"film": trained_rows(rows), "y": random.normal(size=EXAMPLES).astype(np.float32)}

    def make_data(cfg, split):
        return data.make_batches(data.Source(arrays, origin="made up"), cfg, training=split == "train")

    def make_loss(cfg):
        def loss(model, batch, training):
            sums = tf.reduce_sum(model(batch["film"], training=training), 1)
            return {"error": losses.mean_squared_error(sums, batch["y"], batch["weight"])}, {}

        return loss

    functions = {"make_data": make_data, "make_model": lambda cfg: Films(), "make_loss": make_loss}
    settings = {
        "runtime.strategy": "parameter_server",
        "optimizer.name": "sgd",
        "optimizer.table_gradients": "rows",
        "schedule.name": "constant",
        "schedule.warmup": "",
        "schedule.learning_rate": 0.5,
        "data.batch_size": BATCH,
        "train.duration": f"{4 * STEPS} steps",
        "train.block_steps": STEPS,
    }
    return build(functions=functions, **settings)


def trained_rows(rows: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, rows, EXAMPLES).astype(np.int32)


def sample(rows: int) -> np.ndarray:
    """Returns rows at random, some of those that are trained, and those beside the bounds of variables."""
    sizes = [rows // SHARDS + (shard < rows % SHARDS) for shard in range(SHARDS)]
    bounds = np.cumsum(sizes)[:-1]
    drawn = np.random.default_rng(2).integers(1, rows, 2000)
    return np.concatenate([drawn, trained_rows(rows)[:2000], bounds - 1, bounds, [1, rows - 1]]).astype(np.int32)


def looked_up(run, chosen: np.ndarray) -> np.ndarray:
    return run.model.films(tf.constant(chosen)).numpy()


def from_checkpoint(path: Path, chosen: np.ndarray) -> np.ndarray:
    """Returns rows of the table as they are in the file of a checkpoint."""
    from framework.checkpoint.storage import read_manifest

    entries = read_manifest(path)["variables"]
    shards = sorted((name for name in entries if "/table_" in name), key=lambda name: int(name.rpartition("_")[2]))
    found, first = np.zeros([len(chosen), WIDTH], np.float32), 0
    for name in shards:
        shape = tuple(entries[name]["shape"])
        table = np.memmap(path / "arrays.bin", np.float32, "r", entries[name]["offset"], shape)
        is_here = (chosen >= first) & (chosen < first + shape[0])
        found[is_here] = table[chosen[is_here] - first]
        first += shape[0]
    return found


def same(found: np.ndarray, expected: np.ndarray) -> str:
    count = int((found.view(np.uint32) == expected.view(np.uint32)).all(1).sum())
    if count < len(expected):
        raise SystemExit(f"{len(expected) - count} of {len(expected)} rows differ")
    return f"all {count} rows have the same bits"


TASKS = {"serve": run_server, "train": train, "restore": restore}

if __name__ == "__main__":
    main()
