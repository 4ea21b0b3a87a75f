"""The ranking by the exported LiteRT towers of a retrieval run beside that of the run's own weights.

    python launch.py --config=experiments/movielens_two_tower.py --workdir=runs/retrieval
    python launch.py --config=experiments/movielens_two_tower.py --workdir=runs/retrieval --mode=export \
        --formats=lite_users,lite_items,lite_users_float16,lite_items_float16,lite_users_dynamic,lite_users_weights8
    python tests/benchmarks/towers_in_lite.py --workdir=runs/retrieval

Each line has the metrics of the run's evaluator over all films, and what is left of those of the trained model: for
each exported format of the tower of users beside the vectors of films of the trained model, the same the other way
round, and for vectors of films in int8, as an index on a device holds them, with a scale for each film.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).parents[2]))

import numpy as np
import tensorflow as tf

import framework
from framework import evaluators, metrics, retrieval
from framework.export import lite_runtime

EXPERIMENT = "experiments/movielens_two_tower.py"
FORMATS = ("", "_float16", "_dynamic", "_weights8", "_weights4", "_int8", "_int8_io")
INPUTS = ("history", "age", "occupation")
SHOWN = ("recall@10", "recall@100", "ndcg@10")


def ranked(users: np.ndarray, items: np.ndarray, film: np.ndarray, ranking: object) -> dict[str, float]:
    """Returns the metrics of the run's evaluator for vectors of users and films."""
    rows = retrieval.top_k_of_all(users, items, 100, ranking.seen)[1]
    scalars = metrics.ranking(rows, film[:, np.newaxis], ranking.popularity, ks=(10, 100))
    return {name: scalars[name] for name in SHOWN}


def rounded(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors as int8 with a scale for each of them holds them."""
    scale = np.maximum(np.abs(vectors).max(1, keepdims=True), 1e-30) / 127
    return (np.round(vectors / scale) * scale).astype(np.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True)
    workdir = Path(parser.parse_args().workdir)
    run = framework.build(EXPERIMENT, workdir=workdir, from_workdir=True)
    ranking = run.evaluators["ranking"]
    batches, outputs = zip(*evaluators.predictions(run), strict=True)
    film = np.concatenate([batch["film"] for batch in batches])
    items = tf.cast(run.model.items(), tf.float32).numpy()
    vectors = np.concatenate([output["users"] for output in outputs])
    trained = ranked(vectors, items, film, ranking)
    print(f"trained model: {', '.join(f'{name} {value:.4f}' for name, value in trained.items())}")

    def line(name: str, users: np.ndarray, films: np.ndarray) -> None:
        found = ranked(users, films, film, ranking)
        print(
            f"{name}: " + ", ".join(f"{key} {value:.4f} ({value / trained[key]:.4f})" for key, value in found.items())
        )

    for kind in FORMATS:
        name = kind[1:] or "float32"
        path = workdir / "exports" / f"lite_users{kind}" / "model.tflite"
        if path.exists():
            call = lite_runtime.load(str(path))["serving_default"]
            users = [call({key: batch[key] for key in INPUTS})["users"] for batch in batches]
            line(f"users {name}, {path.stat().st_size:,} bytes", np.concatenate(users), items)
            line(f"users {name}, films int8", np.concatenate(users), rounded(items))
        path = workdir / "exports" / f"lite_items{kind}" / "model.tflite"
        if path.exists():
            call = lite_runtime.load(str(path))["serving_default"]
            films = call({"film": np.arange(len(items), dtype=np.int32)})["items"]
            line(f"films {name}, {path.stat().st_size:,} bytes", vectors, films)


if __name__ == "__main__":
    main()
