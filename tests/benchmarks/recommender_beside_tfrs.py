"""Training, evaluation and ranking of the framework beside TensorFlow Recommenders, by turns in one run.

    make peers
    python tests/benchmarks/recommender_beside_tfrs.py
    python tests/benchmarks/recommender_beside_tfrs.py --features=id --measured=evaluate --repetitions=3

Both train the same towers of tf_keras (`workloads/recommender_towers.py`) on MovieLens-100k without the last rating of
each user: in-batch softmax with logQ correction and without accidental hits, batches of 512, Adam, ten epochs. `id`
knows a user by the number alone, `history` by the last 50 films at four half-lives. Ratios are theirs over ours, so
more is better for ours, of the fastest way of each: the median over repetitions, with a bootstrap interval of 95 %.
Time on the clock depends on what else runs on the machine; processor time, of all threads, does so less.

* training: `framework.train`, its checks, norms and logs on, beside `fit`; both in a graph and by XLA.
* evaluation of 943 users over 1,682 films in batches of 512: `evaluate` of both. Ours ranks the films that the user has
  not rated, and reports recall, NDCG and MRR of exact places; theirs, FactorizedTopK, leaves no film out, finds the 100
  best and reports recall. Both report the softmax in the batch too.
* ranking: the vectors of both after the same epochs, ranked by the same code, films rated before left out.
"""

import argparse
import contextlib
import os
import platform
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np

from experiments import movielens_two_tower as experiment
from framework import metrics, retrieval
from framework.data.sets import rating_features
from tests.benchmarks.ratios import interval
from tests.benchmarks.recommender_baselines import measures, ndcg
from tests.benchmarks.turns import ROOT, Process
from tests.benchmarks.workloads.recommender_towers import BATCH, FEATURES

PEERS = ROOT / "tests/benchmarks/peers"
ENVIRONMENT = ROOT / ".venv-peers/bin/python"
# {what: (the ways of ours, those of TensorFlow Recommenders, steps or evaluations of a turn)}
MEASURED = {
    "train": (("graph", "xla"), ("graph", "xla"), 50),
    "evaluate": (("evaluate_graph", "evaluate_xla"), ("streaming", "brute_force"), 20),
}


def write_arrays(path: str, data_dir: str) -> None:
    """Writes the arrays of both splits, which films each user has rated, and the share of each film in training."""
    cfg = experiment.get_config("")
    cfg.data.dir = data_dir
    ratings, split = experiment.load(cfg)
    user, film = ratings.arrays["user"] + 1, ratings.arrays["item"] + 1
    history = rating_features.histories(ratings, 50)
    arrays = {}
    for name, rows in split.parts.items():
        arrays |= {f"{name}_user": user[rows], f"{name}_film": film[rows], f"{name}_history": history[rows]}
    train, test = split.parts["train"], split.parts["test"]
    counts = np.bincount(film[train], minlength=len(ratings.items["id"]) + 1)
    arrays["share"] = (np.maximum(counts, 0.5) / len(train)).astype(np.float32)
    arrays["seen"] = retrieval.padded([film[train][user[train] == number] for number in user[test]])
    np.savez(path, **arrays)


def compared(path: str, features: str, what: str, repetitions: int) -> None:
    """Measures each way of both by turns, on the clock and by processor time, and prints what `report` does."""
    our_ways, their_ways, count = MEASURED[what]
    with contextlib.ExitStack() as stack:

        def start(script: str, python: str, way: str) -> Process:
            option = f"--option={path}:{features}:{way}"
            process = stack.enter_context(Process([python, str(PEERS / script), "--workload=two_tower", option]))
            print(f"  {script} {way}: {process.ready()['versions']}", flush=True)
            process.run(count)  # not counted
            return process

        processes = {f"ours {way}": start("ours_recommender.py", sys.executable, way) for way in our_ways}
        processes |= {f"tfrs {way}": start("tfrs.py", str(ENVIRONMENT), way) for way in their_ways}
        took = {kind: {name: [] for name in processes} for kind in ("clock", "processor")}
        for repetition in range(repetitions):
            for name in list(processes)[:: -1 if repetition % 2 else 1]:
                took["clock"][name].append(processes[name].run(count))
                took["processor"][name].append(processes[name].processor_ms)
    for kind, times in took.items():
        report(f"{features} {what}, {kind}", times, what == "train")


def report(label: str, took: dict[str, list[float]], is_training: bool) -> None:
    """Prints the median milliseconds of each way, and the ratio of the fastest of theirs to the fastest of ours."""
    medians = {name: float(np.median(times)) for name, times in took.items()}
    best = [min((name for name in medians if name.startswith(side)), key=medians.get) for side in ("ours", "tfrs")]
    ratios = np.array(took[best[1]]) / np.array(took[best[0]])
    low, high = interval(ratios)
    print(f"{label}, ms: " + ", ".join(f"{name} {median:.2f}" for name, median in medians.items()))
    if is_training:
        ours, theirs = (1e3 * BATCH / medians[name] for name in best)
        print(f"{label}: {ours:,.0f} and {theirs:,.0f} examples/s")
    print(f"{label}: {best[1]} / {best[0]} {np.median(ratios):.2f} [{low:.2f}, {high:.2f}]", flush=True)


def ranked(path: str, features: str) -> None:
    """Prints recall and NDCG of both after the same epochs, and their differences with intervals over users."""
    with np.load(path) as arrays:
        films, seen = arrays["test_film"], arrays["seen"]
    places = {}
    for side in ("ours", "tfrs"):
        with np.load(f"{path}.{features}.{side}.npz") as vectors:
            places[side] = retrieval.ranks_of_all(vectors["users"], vectors["items"], films, seen)
        print(f"{features} {side}: " + ", ".join(f"{name} {v:.4f}" for name, v in measures(places[side]).items()))
    recall = metrics.paired_bootstrap(places["ours"] <= 10, places["tfrs"] <= 10)
    gain = metrics.paired_bootstrap(ndcg(places["ours"]), ndcg(places["tfrs"]))
    for name, (mean, low, high) in {"recall@10": recall, "NDCG@10": gain}.items():
        print(f"{features} ours less tfrs: {name} {mean:+.4f} [{low:+.4f}, {high:+.4f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", default="")
    parser.add_argument("--features", default=",".join(FEATURES))
    parser.add_argument("--measured", default=",".join(MEASURED))
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    if not ENVIRONMENT.exists():
        sys.exit(f"{ENVIRONMENT} is not there: type `make peers` first.")
    print(
        f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, Python {sys.version.split()[0]}"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/ratings.npz"
        write_arrays(path, arguments.data_dir)
        for features in arguments.features.split(","):
            for what in arguments.measured.split(","):
                compared(path, features, what, arguments.repetitions)
            if "evaluate" in arguments.measured:
                ranked(path, features)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
