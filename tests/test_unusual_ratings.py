"""What a recommender meets in the wild, by experiments/movielens_two_tower.py: numbers against NumPy.

A film that nobody rated and that has no genre, a user with a single rating and one without a history, the same rating
twice. Ids that are unknown or out of range, and a film twice in a history, are in the export's test of
tests/test_movielens_two_tower.py.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from experiments import movielens_two_tower as experiment
from framework import paths
from framework.data.sets import rating_features
from framework.errors import UserError
from framework.run import loop
from tests.made_up_ratings import write_ratings
from tests.test_movielens_two_tower import build, settings, terms_of

UNRATED, SINGLE = 31, 13  # the film that nobody rated, and the user of one rating


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made-up ratings of 12 users and 30 films, and: film 31, of no rating and no genre; user 13, who rated film 1."""
    folder = write_ratings(tmp_path_factory.mktemp("unusual"))
    with (folder / "u.item").open("a") as films:
        films.write(f"{UNRATED}|Film {UNRATED} (1990)|||x" + "|0" * 19 + "\n")
    with (folder / "u.user").open("a") as users:
        users.write(f"{SINGLE}|40|F|baker|0\n")
    with (folder / "u.data").open("a") as ratings:
        ratings.write(f"{SINGLE}\t1\t4\t5000\n")
    return str(folder)


def tables(run):
    return {path: value.numpy().astype(np.float64) for path, value in paths.trainable(run.model).items()}


def test_a_user_of_a_single_rating_is_trained_on_with_an_empty_history_and_never_held_out(folder):
    ratings, split = experiment.load(settings(folder))
    (line,) = np.flatnonzero(ratings.arrays["user"] == SINGLE - 1)
    assert line in split.parts["train"] and line not in split.parts["test"]
    assert rating_features.histories(ratings, 5)[line].tolist() == [0] * 5
    assert len(split.parts["test"]) == 12  # one of each other user


def test_a_user_without_a_history_has_the_vector_of_age_and_occupation_alone(folder, tmp_path):
    run = build(folder, tmp_path)
    batch = {
        "history": tf.zeros([2, 5], tf.int32),
        "age": tf.constant([40.0, np.nan]),
        "occupation": tf.constant([1, 0]),
    }
    users = run.model.users(batch).numpy()
    weights = tables(run)
    known = np.concatenate([weights["ages/table"][4], weights["occupations/table"][1]])  # from 35 to 45: the fourth
    features = np.stack([np.concatenate([np.zeros(16), of]) for of in (known, np.zeros(8))])
    kernels = [weights[f"tower/dense/{layer}/kernel"] for layer in range(2)]
    biases = [weights[f"tower/dense/{layer}/bias"] for layer in range(2)]
    expected = np.maximum(features @ kernels[0] + biases[0], 0) @ kernels[1] + biases[1]
    np.testing.assert_allclose(users[:, :-1], expected, rtol=1e-5, atol=1e-7)
    assert (users[:, -1] == 1).all()  # of the films' biases


def test_a_film_without_ratings_and_genres_has_a_vector_and_is_ranked_and_is_no_candidate_in_a_batch(folder, tmp_path):
    run = build(folder, tmp_path, **{"model.softmax": "in_batch", "optimizer.weight_decay": 0.0})
    before = tables(run)
    loop.train(run)
    after = tables(run)
    moved = (before["films/table"] != after["films/table"]).any(1)
    assert moved[1:31].any() and not moved[UNRATED] and not moved[0]  # it is in no batch
    vector = run.model.items(tf.constant([UNRATED])).numpy()[0]
    decade = after["decades/table"][8]  # from 1990 on: below 1930 is row 1
    np.testing.assert_allclose(vector[:-1], after["films/table"][UNRATED] + decade, rtol=1e-5)
    assert vector[-1] == 0
    _, rows, _ = experiment.make_evaluators(run.config)["ranking"].ranked(run)
    assert (rows == UNRATED).sum(1).tolist() == [1] * 12  # everyone's list of all films has it once


def test_the_loss_of_all_films_counts_a_film_without_ratings_as_one_that_was_not_watched(folder, tmp_path):
    run = build(folder, tmp_path, **{"model.dropout": 0.0})
    batch = run.data.at(0)
    terms, outputs = terms_of(run, batch)
    scores = (outputs["users"].numpy() @ run.model.items().numpy().T)[:, 1:].astype(np.float64)
    assert scores.shape == (16, UNRATED)
    expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(16), batch["film"].numpy() - 1]
    assert float(terms["next"].sum / terms["next"].weight) == pytest.approx(expected.mean(), rel=1e-6)


def test_the_same_rating_twice_and_one_of_an_unknown_film_are_refused(folder, tmp_path):
    for name in ("u.item", "u.user"):
        shutil.copy(Path(folder) / name, tmp_path)
    lines = (Path(folder) / "u.data").read_text().splitlines()
    for line, why in ((lines[0], f"u.data lines 1 and {len(lines) + 1} are of the same user and film"),
                      ("1\t99\t3\t1", f"u.data line {len(lines) + 1}: there is no film 99")):  # fmt: skip
        (tmp_path / "u.data").write_text("\n".join([*lines, line]) + "\n")
        with pytest.raises(UserError, match=why):
            experiment.load(settings(str(tmp_path)))
