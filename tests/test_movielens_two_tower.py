"""experiments/movielens_two_tower.py: histories, losses, the exact ranking and exports, on made-up ratings."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.projector.projector_plugin import ProjectorPlugin
from werkzeug.test import Client
from werkzeug.wrappers import Response

from experiments import movielens_two_tower as experiment
from framework import rng, testing
from framework.config.overrides import override
from framework.errors import UserError
from framework.run import evaluation, exporting, loop
from tests import loss_curves
from tests.benchmarks.recommender_baselines import ranks
from tests.made_up_ratings import write_ratings

QUICK = {
    "export.process": "own",
    "train.duration": "2 steps",
    "data.batch_size": 16,
    "data.history": 5,
    "model.width": 4,
    "model.hidden": 8,
    "model.members": 3,
    "model.factors": 2,
    "schedule.warmup": "",
    "eval.every": "",
    "checkpoint.every": "",
    "log.histograms_every": "",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(write_ratings(tmp_path_factory.mktemp("ratings")))


def settings(folder, preset="", **overrides):
    values = {**QUICK, "data.dir": folder, **overrides}
    if preset == "rating":
        values["data.history"] = 0
    return override(experiment.get_config(preset), values)


def build(folder, tmp_path, preset="", **overrides):
    history = {"data.history": 0} if preset == "rating" else {}
    values = {**experiment.PRESETS.get(preset, {}), **QUICK, "data.dir": folder, **history, **overrides}
    return testing.build(experiment, values, tmp_path)


def by_time(ratings, user):
    """The lines of a user, by time and then by their place in the file."""
    lines = np.flatnonzero(ratings.arrays["user"] == user)
    return sorted(lines, key=lambda line: (ratings.arrays["timestamp"][line], line))


# ---- Data ----


@pytest.mark.parametrize(("held_out", "back"), [("test", 1), ("valid", 2)])
def test_the_held_out_rating_is_later_than_all_of_its_user_in_training(folder, held_out, back):
    ratings, split = experiment.load(settings(folder, **{"data.held_out": held_out}))
    users = ratings.arrays["user"][split.parts["test"]]
    assert split.parts["test"].tolist() == sorted(by_time(ratings, user)[-back] for user in set(users))
    assert len(split.parts["train"]) == len(ratings) - back * len(users) and split.leaks(ratings).own_future == 0


# ---- Losses ----


def training(run):
    """How many ratings are trained on."""
    return len(experiment.load(run.config)[1].parts["train"])


def terms_of(run, batch, training=True):
    loss = experiment.make_loss(run.config)
    with rng.scope(0, 0, 0):
        return loss(run.model, batch, training)


def test_the_next_film_is_a_softmax_over_all_films(folder, tmp_path):
    run = build(folder, tmp_path, **{"model.dropout": 0.0})
    batch = run.data.at(0)
    terms, outputs = terms_of(run, batch)
    scores = outputs["users"].numpy().astype(np.float64) @ run.model.items().numpy().T.astype(np.float64)
    scores = scores[:, 1:]  # row 0 is padding
    expected = np.log(np.exp(scores).sum(1)) - scores[np.arange(16), batch["film"].numpy() - 1]
    assert float(terms["next"].sum / terms["next"].weight) == pytest.approx(expected.mean(), rel=1e-6)


def test_in_batch_with_log_q_lowers_popular_films(folder, tmp_path):
    run = build(folder, tmp_path, **{"model.dropout": 0.0, "model.softmax": "in_batch"})
    batch = run.data.at(0)
    terms, outputs = terms_of(run, batch)
    ratings, split = experiment.load(run.config)
    film = batch["film"].numpy()
    share = np.bincount(ratings.arrays["item"][split.parts["train"]] + 1) / len(split.parts["train"])
    scores = outputs["users"].numpy() @ run.model.items().numpy()[film].T - np.log(share[film])
    others = (film[:, None] != film) | np.eye(16, dtype=bool)
    expected = np.log((np.exp(scores) * others).sum(1)) - np.diag(scores)
    assert float(terms["next"].sum / terms["next"].weight) == pytest.approx(expected.mean(), rel=1e-5)


def tables_of(run):
    """Returns the factors and biases, float64 [rows, width] by name: the tables times their scales."""
    tables = {}
    for name, table in run.model.factors.tables.items():
        scale = run.model.factors.scales[name].numpy().astype(np.float64)
        tables[name] = table.table.numpy().astype(np.float64) * scale
    return tables


def test_ratings_are_those_of_all_members_and_the_prior_counts_once(folder, tmp_path):
    run = build(folder, tmp_path, "rating", **{"model.prior": 12.0, "model.bias_prior": 5.0})
    for table in run.model.factors.tables.values():
        table.table.assign(np.random.default_rng(0).normal(0, 0.1, table.table.shape))
    batch = run.data.at(0)
    terms, outputs = terms_of(run, batch)
    tables = tables_of(run)
    user, film = batch["user"].numpy(), batch["film"].numpy()
    products = (tables["user_factors"][user] * tables["film_factors"][film]).reshape(16, 3, 2).sum(2)
    members = 3.5 + tables["user_biases"][user] + tables["film_biases"][film] + products
    np.testing.assert_allclose(outputs["members"], members, rtol=1e-5)
    np.testing.assert_allclose(outputs["predictions"], members.mean(1).clip(1, 5), rtol=1e-5)
    error = (members - batch["rating"].numpy()[:, None]) ** 2
    assert float(terms["rating"].sum / terms["rating"].weight) == pytest.approx(error.mean(), rel=1e-5)
    squares = {name: (table**2).sum() for name, table in tables.items()}
    prior = 12 * (squares["user_factors"] + squares["film_factors"])
    prior += 5 * (squares["user_biases"] + squares["film_biases"])
    prior /= 3 * training(run)
    assert float(terms["prior"].sum / terms["prior"].weight) == pytest.approx(prior, rel=1e-5)
    in_evaluation = terms_of(run, batch, training=False)[0]
    assert float(in_evaluation["noise"].sum) == 0 != float(terms["noise"].sum)


def test_the_gradient_of_the_noise_is_that_of_langevin_sampling(folder, tmp_path):
    run = build(folder, tmp_path, "rating", **{"model.factors": 200})
    batch = run.data.at(0)
    with tf.GradientTape() as tape:
        term = terms_of(run, batch)[0]["noise"]
        value = term.sum / term.weight
    table = run.model.factors.tables["film_factors"].table
    drawn = np.asarray(tape.gradient(value, table))
    # theta - rate / members * (gradient + noise): the noise in an energy of squares / (2 * 0.65) is N(0, 2 * step).
    step = 2 * 0.65 * run.config.schedule.learning_rate / 3 / training(run)
    moves = run.config.schedule.learning_rate * drawn
    assert moves.std() == pytest.approx((2 * step) ** 0.5, rel=0.03) and abs(moves.mean()) < 0.05 * moves.std()


def test_rows_are_scaled_so_that_all_have_one_deviation(folder, tmp_path):
    run = build(folder, tmp_path, "rating", **{"model.prior": 3.0, "model.bias_prior": 2.0})
    ratings, split = experiment.load(run.config)
    item = ratings.arrays["item"][split.parts["train"]]
    counts = np.array([0, *(np.sum(item == film) for film in range(len(ratings.items["id"])))])
    # Of an energy of (prior + ratings * square of the other factor) / 0.65 * theta ** 2 / 2; of a bias the square is 1.
    deviations = {"factors": (0.65 / (3 + counts * 0.65 / 3)) ** 0.5, "biases": (0.65 / (2 + counts)) ** 0.5}
    of_a_number = (2 * 0.65 / (3 * len(item))) ** 0.5  # 3 members
    for what, deviation in deviations.items():
        scale = run.model.factors.scales[f"film_{what}"].numpy()[:, 0]
        np.testing.assert_allclose(scale * of_a_number, deviation, rtol=1e-5)
    as_they_are = build(folder, tmp_path / "unscaled", "rating", **{"model.scaled": False})
    assert all(np.all(scale.numpy() == 1) for scale in as_they_are.model.factors.scales.values())


# ---- Runs ----


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A run of the default preset at its end."""
    run = build(folder, tmp_path_factory.mktemp("trained"))
    loop.train(run)
    return run


def test_the_ranking_is_that_of_brute_force(trained):
    run = trained
    ratings, split = experiment.load(run.config)
    evaluator = experiment.make_evaluators(run.config)["ranking"]
    report = evaluator(run).scalars
    batch = next(iter(run.eval_blocks.values())).outputs(0, None)
    scores = batch[1]["users"] @ run.model.items().numpy().T
    user, film = ratings.arrays["user"], ratings.arrays["item"]
    test = split.parts["test"]
    seen = np.zeros((len(test), len(ratings.items["id"])))
    for place, line in enumerate(test):
        seen[place, film[split.parts["train"]][user[split.parts["train"]] == user[line]]] = 1
    places = ranks(scores[:, 1:], seen, film[test])
    assert report["recall@10"] == pytest.approx((places <= 10).mean())
    assert report["ndcg@10"] == pytest.approx(((places <= 10) / np.log2(1 + places)).mean())
    assert report["mrr"] == pytest.approx((1 / places).mean())


def test_the_projector_shows_the_films_beside_the_curves(folder, tmp_path):
    """Read back by TensorBoard's plugin, from the run folder that the command line prints."""
    run = build(folder, tmp_path, **{"model.projector": True, "eval.every": "1 step", "log.every": "1 step"})
    loop.train(run)
    curves = EventMultiplexer().AddRunsFromDirectory(str(run.workdir))
    curves.Reload()
    provider = MultiplexerDataProvider(curves, str(run.workdir))
    plugin = ProjectorPlugin(TBContext(logdir=str(run.workdir), data_provider=provider))

    def served(route, **arguments):
        app = plugin.get_plugin_apps()[route]
        return Client(app, Response).get(route, query_string={"run": "tensorboard/train", **arguments}).get_data()

    vectors = np.frombuffer(served("/tensor", name="films"), np.float32).reshape(30, -1)
    np.testing.assert_array_equal(vectors, run.model.items().numpy()[1:])
    lines = served("/metadata", name="films").decode().splitlines()
    assert lines[0] == "title\tid\tyear\tratings" and lines[3].startswith("Film 3\t3\t1953\t") and len(lines) == 31
    ratings, split = experiment.load(run.config)
    counts = [int(line.split("\t")[3]) for line in lines[1:]]
    assert counts == np.bincount(ratings.arrays["item"][split.parts["train"]], minlength=30).tolist()


@pytest.mark.parametrize("preset", ["rating", pytest.param("joint", marks=pytest.mark.slow)])
def test_a_preset_trains_evaluates_and_exports(folder, tmp_path, preset):
    run = build(folder, tmp_path, preset, **{"schedule.learning_rate": 0.1})
    result = loop.train(run)
    split = "test@ema" if preset == "rating" else "test"
    assert result["status"] == "finished" and 0.5 < evaluation.evaluate(run)[f"{split}/rmse"] < 3
    assert [report.failure for report in exporting.export_run(run)] == [""] * len(run.exports)


def test_the_export_recommends_unseen_films_by_brute_force(trained):
    run = trained
    reports = exporting.export_run(run)
    served = tf.saved_model.load(str(run.workdir / "exports/saved_model/1")).signatures["serving_default"]
    # Unknown ids are skipped, large and negative ones too; there are 30 films. The last user watched a film twice.
    history = np.array([[2**40, -5, 3, 7, 999], [0, 0, 0, 0, 0], [0, 0, 0, 3, 7], [0, 0, 3, 3, 7]], np.int64)
    inputs = {"age": np.array([20, np.nan, 20, 20], np.float32), "occupation": np.array([1, 0, 1, 1], np.int32)}
    found = served(history=tf.constant(history), **{name: tf.constant(value) for name, value in inputs.items()})
    known = np.where((history < 1) | (history > 30), 0, history).astype(np.int32)
    scores = run.model.users({"history": known, **inputs}).numpy() @ run.model.items().numpy().T
    for row in range(4):
        order = [film for film in np.argsort(-scores[row], kind="stable") if film and film not in known[row]][:10]
        assert found["ids"][row].numpy().tolist() == order
        assert [title.decode() for title in found["titles"][row].numpy()] == [f"Film {film}" for film in order]
        np.testing.assert_allclose(found["scores"][row], scores[row][order], rtol=1e-5)
    np.testing.assert_array_equal(found["ids"][0], found["ids"][2])
    assert np.abs(scores[2] - scores[3]).max() > 1e-5  # once is not twice
    (report,) = (one for one in reports if one.hook == "saved_model")
    assert report.holds == [
        "titles and ids of MovieLens (ml-100k) by GroupLens, University of Minnesota: not to be passed on, nor used"
        " commercially, without its permission"
    ]
    assert all(not one.holds for one in reports if one is not report)  # the towers have no title
    index = report.measured["approximate_index"]
    if importlib.util.find_spec("faiss") is None:
        assert index["missing"].startswith("faiss is not installed")
    else:
        assert (index["items"], index["users"]) == (30, 12)
        assert index["recall@10"] == 1.0  # a search keeps 128 of the 30 films in view


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("preset", "softmax"), [("retrieval", "full"), ("retrieval", "in_batch"), ("rating", "full")])
def test_loss_curves_of_precisions_and_replicas(folder, tmp_path, preset, softmax):
    """500 steps with dropout, or noise, beside those of float32 on one device: the mean loss of each 50 steps."""
    values = {"model.softmax": softmax, "model.dropout": 0.3}
    loss_curves.assert_alike(lambda name, of: build(folder, tmp_path / name, preset, **values, **of), bound=0.01)


WRONG = [
    ({"data.split": "u1"}, "data.split=u1 holds out ratings that the histories of others have"),
    ({"data.history": 0}, "data.history=0 and model.next_weight=1: the films of a history are"),
    ({"model.next_weight": 0.0}, "there is nothing to learn"),
    ({"model.noise": 1.0}, "model.noise needs optimizer.name=sgd"),
    ({"model.softmax": "all"}, "model.softmax"),
]


@pytest.mark.parametrize(("overrides", "message"), WRONG, ids=[str(list(wrong[0])) for wrong in WRONG])
def test_contradictions_are_refused(folder, overrides, message):
    with pytest.raises(UserError, match=message):
        experiment.check_config(settings(folder, **overrides))
