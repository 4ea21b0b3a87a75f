"""framework/sweep/choices.py: choices of any type stay what they are through the journal, in every sampler."""

import numpy as np
import pytest

from framework.sweep.study import try_out
from tests.sweep.spaces import opened

pytest.importorskip("optuna", reason="needs the extra 'sweep'")

SIZES = [(8, 8), (4,)]
GRID = [
    (f"--config.model.sizes={sizes}", f"--config.model.hidden={hidden}", f"--config.model.rate={rate}")
    for sizes in SIZES
    for hidden in (8, 16)
    for rate in (0.5, 1.0)
]


def space(trial):
    sizes = trial.suggest_categorical("sizes", SIZES)
    assert type(sizes) is tuple and trial.number >= 0  # what it has of Optuna's trial is left
    return {
        "model.sizes": sizes,
        "model.hidden": trial.suggest_categorical("hidden", 2 ** np.arange(3, 5)),
        "model.rate": trial.suggest_float("rate", np.float32(0.5), np.float32(1.0), step=np.float32(0.5)),
    }


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_tuples_and_numpy_choices_go_on_after_the_first_trial_and_after_a_resume(tmp_path, sampler, recwarn):
    try_out(space)
    found = set()
    for _ in range(12):
        study = opened(tmp_path, space, sampler=sampler)  # a start for each trial, which reads the journal
        trial = study.ask()
        (again,) = opened(tmp_path, space, sampler=sampler).unfinished()
        assert again.overrides == trial.overrides
        found.add(trial.overrides)
        study.end(trial, 0.5)
    assert found <= set(GRID) and len(found) > 2
    assert not [str(warning.message) for warning in recwarn if "persistent storage" in str(warning.message)]


def test_a_grid_of_tuples_has_each_combination_once(tmp_path):
    found = []
    while trial := opened(tmp_path, space, sampler="grid").ask():
        found.append(trial.overrides)
        opened(tmp_path, space, sampler="grid").end(trial, 0.5)
    assert found == GRID


def test_numpy_scalars_in_a_tuple_are_typed_as_numbers(tmp_path):
    def numbers(trial):
        trial.suggest_int("n", 1, 2)
        rates = {"model.rates": [np.float64(0.5)], "model.rate": np.float32(0.25)}
        return {"model.sizes": tuple(np.array([4, 5])), **rates}

    assert opened(tmp_path, numbers).ask().overrides == (
        "--config.model.sizes=(4, 5)",
        "--config.model.rates=[0.5]",
        "--config.model.rate=0.25",
    )
