"""Training by buckets of length beside PyTorch and JAX: step times on the same batches of many shapes, by turns.

    python tests/benchmarks/beside_buckets.py                                # 12 shapes, an epoch a turn
    python tests/benchmarks/beside_buckets.py --precision=bfloat16 --peers=torch,jax --repetitions=11

The workload is `workloads/buckets.py`: made-up sentences of 3 to 40 tokens in batches of at most 4,096 places a side.
Peers train on the batches of our first epoch, which lie in memory, over and over; we go on to the next epochs, of as
many batches of each shape. Each compiles a program for each shape. Turns and ratios are those of `compare.py`.
"""

import argparse
import importlib
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from framework import config
from tests.benchmarks import compare
from tests.benchmarks.peers import epochs
from tests.benchmarks.peers.protocol import BUCKETS, PRECISIONS
from tests.benchmarks.turns import ROOT, Process

# {peer: (script, how it runs)}
PEERS = {
    "torch": ("pytorch_buckets.py", "eager:"),
    "torch_compile": ("pytorch_buckets.py", "compile:"),
    "jax": ("jax_buckets.py", ""),
}


def write_epoch(path: Path) -> int:
    """Writes the batches of the first epoch for the peers; prints what they hold and returns how many they are."""
    workload = importlib.import_module("tests.benchmarks.workloads.buckets")
    batches = workload.epoch(workload.make_data(config.finalize(workload.get_config("")), "train"))
    epochs.write(path, batches)
    shapes = sorted({batch["source"].shape for batch in batches}, key=lambda shape: shape[1])
    places = sum(2 * batch["source"].size for batch in batches)
    tokens = sum(np.count_nonzero(batch[side]) for batch in batches for side in ("source", "target"))
    print(
        f"{len(batches)} batches an epoch of {len(shapes)} shapes, {shapes[0]} to {shapes[-1]};"
        f" {tokens:,} tokens, {1 - tokens / places:.1%} of the places are padding"
    )
    return len(batches)


def start(name: str, precision: str, path: Path) -> Process:
    """The process of ours or of a peer."""
    if name == compare.OURS:
        return compare.start_peer(name, BUCKETS, precision)
    script, option = PEERS[name]
    command = [str(compare.ENVIRONMENT), str(ROOT / "tests/benchmarks/peers" / script)]
    return Process([*command, f"--workload={BUCKETS}", f"--precision={precision}", f"--option={option}{path}"])


def main(arguments: Sequence[str]) -> int:
    """Prints the machine and a table; 1 if a peer failed."""
    parser = argparse.ArgumentParser(description="Step times on batches of many shapes over those of peers.")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args(arguments)
    peers = options.peers.split(",")
    if unknown := [name for name in peers if name not in PEERS]:
        parser.error(f"--peers: there is no '{unknown[0]}'. Known: {', '.join(PEERS)}.")
    if not compare.ENVIRONMENT.exists():
        parser.error(f"{compare.ENVIRONMENT} is missing. Type: make peers")
    print(compare.machine())
    with tempfile.TemporaryDirectory(prefix="epoch-") as folder:
        path = Path(folder) / "epoch.npz"
        steps = write_epoch(path)
        results, failed = compare.measure(
            BUCKETS,
            options.precision,
            peers,
            lambda name, workload, precision: start(name, precision, path),
            steps,
            options.repetitions,
        )
    print(f"{options.repetitions} repetitions of an epoch; ms a step: median (least to most); ratio: ours / peer\n")
    print("\n".join([compare.HEAD, *(result.line() for result in results)]))
    print("\n".join(["", *compare.versions(results), *compare.variants(results)]))
    print("\n".join(f"{peer} failed: {error}" for peer, error in failed.items()))
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Ctrl-C: no stopped process is left behind
    sys.exit(main(sys.argv[1:]))
