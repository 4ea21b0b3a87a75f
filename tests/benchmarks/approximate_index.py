"""Recall and latency of an approximate index beside the exact search, on made-up items or on vectors of your own.

    python tests/benchmarks/approximate_index.py                                  # 100,000 items, width 64
    python tests/benchmarks/approximate_index.py --vectors=runs/mine/vectors.npz  # 'items' [rows, width], 'users'

Vectors of length 1. One user a call, as a server has them; the exact search is the program of `retrieval.top_k`. It
prints the share of the exact lists of 10 that is found, milliseconds of a call (median) and seconds to build the index.
"""

import argparse
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

from framework import retrieval
from framework.retrieval.compared import milliseconds as timed

K, USERS = 10, 200


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--vectors", help="a file of NumPy with the arrays items and users")
    flags = parser.parse_args()
    if flags.vectors:
        with np.load(flags.vectors, allow_pickle=False) as arrays:
            items, users = (arrays[name].astype(np.float32) for name in ("items", "users"))
    else:
        random = np.random.default_rng(0)
        items, users = (random.normal(size=(n, flags.width)).astype(np.float32) for n in (flags.items + 1, USERS))
        items /= np.linalg.norm(items, axis=1, keepdims=True)
        users /= np.linalg.norm(users, axis=1, keepdims=True)
    users = users[:USERS]
    table = tf.constant(items)
    search = tf.function(lambda user: retrieval.top_k(user, table, K), autograph=False, jit_compile=True)
    exact, milliseconds = timed(lambda user: search(tf.constant(users[user]))[1].numpy(), len(users))
    print(f"{'index':>24} {'recall@10':>9} {'ms a user':>9} {'s to build':>10}")
    print(f"{'exact':>24} {1:9.4f} {milliseconds:9.3f} {0:10.1f}")
    for links, effort in ((16, 64), (32, 128), (32, 512)):
        start = time.perf_counter()
        index = retrieval.Approximate(items, links, effort)
        built = time.perf_counter() - start
        rows, milliseconds = timed(lambda user, index=index: index.top_k(users[user], K)[1], len(users))
        recall = retrieval.overlap(np.concatenate(rows), np.concatenate(exact))
        print(f"{f'links={links}, effort={effort}':>24} {recall:9.4f} {milliseconds:9.3f} {built:10.1f}", flush=True)


if __name__ == "__main__":
    main()
