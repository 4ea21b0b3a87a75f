"""framework/run/exporting.py: the examples by which a run's exports are made and verified."""

import numpy as np
import pytest

import framework
from framework.errors import UserError
from framework.run import build, exporting


def test_examples_for_int8_are_the_first_of_training(tmp_path):
    settings = {"train.compile": "graph", "data.batch_size": 48}
    run = build.build("tests/tiny.py", settings, tmp_path / "run")
    batches = list(exporting.training(run, 100))
    assert [len(batch["weight"]) for batch in batches] == [48, 48, 4]
    for step, batch in enumerate(batches):
        whole = run.data.at(step)
        for name in ("image", "label"):
            np.testing.assert_array_equal(batch[name], whole[name].numpy()[: len(batch["weight"])])
    again = build.build("tests/tiny.py", settings, tmp_path / "other")
    for one, other in zip(batches, exporting.training(again, 100), strict=True):
        np.testing.assert_array_equal(one["image"], other["image"])
    [small] = exporting.training(run, 3)
    assert len(small["weight"]) == 3


def test_a_run_without_exports_is_refused_and_leaves_no_report(tmp_path):
    run = build.build("tests/tiny.py", {"train.compile": "graph"}, tmp_path / "run")
    run.exports = []
    with pytest.raises(UserError, match=r"tests/tiny.py declares no exports. Add make_exports\(cfg\)"):
        framework.export_run(run)
    assert not (tmp_path / "run").exists()


def test_examples_of_weight_0_do_not_count(tmp_path):
    run = build.build("tests/tiny.py", {"train.compile": "graph", "data.batch_size": 4}, tmp_path / "run")
    real = run.data.at

    class Padded:
        steps_per_epoch = run.data.steps_per_epoch

        def at(self, step):
            batch = real(step)
            return {**batch, "weight": batch["weight"] * np.float32([0, 1, 1, 0])}

    run.data = Padded()
    first, second = exporting.training(run, 3)
    np.testing.assert_array_equal(first["image"], real(0)["image"].numpy()[1:3])
    np.testing.assert_array_equal(second["image"], real(1)["image"].numpy()[1:2])


def test_a_stream_of_unknown_length_has_examples_too(tmp_path):
    run = build.build("tests/tiny.py", {"train.compile": "graph", "data.batch_size": 4}, tmp_path / "run")
    real = run.data

    class Endless:
        steps_per_epoch = float("inf")
        at = staticmethod(real.at)

    run.data = Endless()
    assert [len(batch["weight"]) for batch in exporting.training(run, 6)] == [4, 2]
