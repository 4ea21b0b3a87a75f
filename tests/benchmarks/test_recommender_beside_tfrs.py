"""The framework's side of recommender_beside_tfrs.py, on made-up ratings."""

from pathlib import Path

import numpy as np
import pytest

from framework import testing
from framework.run import evaluation, loop
from tests.benchmarks.recommender_baselines import ranks
from tests.benchmarks.recommender_beside_tfrs import write_arrays
from tests.benchmarks.workloads import recommender, recommender_towers
from tests.made_up_ratings import write_ratings

QUICK = {"train.duration": "2 steps", "data.batch_size": 16, "eval.every": "", "checkpoint.every": ""}


@pytest.mark.parametrize("features", recommender_towers.FEATURES)
def test_the_measured_evaluation_is_that_of_brute_force(tmp_path, features):
    path = str(tmp_path / "ratings.npz")
    write_arrays(path, str(write_ratings(Path(tmp_path / "ratings"))))
    run = testing.build(recommender, {**QUICK, "data.dir": path, "model.features": features}, tmp_path / "run")
    loop.train(run)
    report = evaluation.evaluate(run)
    test = recommender_towers.load(path, "test", features)
    users, items, film = recommender.vectors(run)
    np.testing.assert_array_equal(film, test["film"])
    np.testing.assert_allclose(users, run.model.users(test), rtol=1e-5, atol=1e-6)
    seen = np.zeros((len(film), len(items)))
    np.put_along_axis(seen, recommender_towers.constant(path, "seen"), 1, axis=1)
    seen[:, 0] = 1  # padding, no film
    places = ranks(users @ items.T, seen, film)
    assert report["ranking/recall@10"] == pytest.approx((places <= 10).mean())
    assert report["ranking/mrr"] == pytest.approx((1 / places).mean())
