"""framework/retrieval/index.py: an export that recommends, loaded again, against brute force."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import export, layers, retrieval
from framework.errors import UserError

FILMS, WIDTH, K = 12, 4, 3
IDS = [7 * i + 2 for i in range(FILMS)]
TITLES = [f"Fîlm {i}" for i in range(FILMS)]


class Towers(keras.Model):
    def __init__(self):
        super().__init__()
        self.rows = layers.Lookup(IDS)
        self.table = layers.EmbeddingTable(self.rows.rows, WIDTH, initializer=keras.initializers.RandomNormal(seed=1))
        self.user = layers.Tower([WIDTH])
        self.score = layers.Score("cosine", temperature=0.1)

    def users(self, history):
        return self.score.user_vectors(self.user(self.table(history, pooling="mean")))

    def items(self):
        return self.score.item_vectors(self.table(tf.range(FILMS + 1)))


def made(titles=TITLES):
    model, index = Towers(), retrieval.Index(IDS, titles, item_block=5)

    def recommend(model, inputs):
        index.fill(model.items)
        history = model.rows(inputs["history"])
        return index.recommend(model.users(history), K, seen=history)

    inputs = {"history": tf.TensorSpec([None, None], tf.int64)}
    return model, index, export.Signature(recommend, inputs, has_metrics=False, uses=[index])


HISTORY = np.array([[2, 9, 0], [0, 0, 0], [999, 30, 2], [79, 79, 79]])


def brute_force(model, history):
    """The scores, ids and titles of the best unseen items, sorted in NumPy."""
    users, items = model.users(model.rows(tf.constant(history))).numpy(), model.items().numpy()[1:]
    scores = users.astype(np.float64) @ items.T.astype(np.float64)
    scores[np.isin(np.tile(IDS, (len(history), 1)), -1)] = -np.inf
    for user, seen in enumerate(history):
        scores[user, np.isin(IDS, seen)] = -np.inf
    best = np.argsort(-scores, 1, kind="stable")[:, :K]
    return np.take_along_axis(scores, best, 1), np.array(IDS)[best], np.array(TITLES)[best]


def test_an_export_recommends_what_brute_force_finds(tmp_path):
    model, _, signature = made()
    hook = export.SavedModel({export.SERVING: signature})
    model.users(model.rows(tf.constant(HISTORY)))
    hook.write(model, tmp_path / "1")
    found = hook.load(tmp_path / "1")[export.SERVING]({"history": HISTORY})
    scores, ids, titles = brute_force(model, HISTORY)
    np.testing.assert_allclose(found["scores"], scores, rtol=1e-5)
    assert found["ids"].tolist() == ids.tolist() and found["ids"].dtype == np.int64
    assert [[title.decode() for title in row] for row in found["titles"]] == titles.tolist()
    one = hook.load(tmp_path / "1")[export.SERVING]({"history": HISTORY[:1, :1]})  # another shape
    assert not np.isin(one["ids"], HISTORY[:1, :1]).any()


def test_an_export_after_more_training_has_the_new_vectors(tmp_path):
    model, index, signature = made()
    hook = export.SavedModel({export.SERVING: signature})
    model.users(model.rows(tf.constant(HISTORY)))
    hook.write(model, tmp_path / "1")
    model.table.table.assign(-model.table.table[:, ::-1])
    hook.write(model, tmp_path / "2")
    found = hook.load(tmp_path / "2")[export.SERVING]({"history": HISTORY})
    assert found["ids"].tolist() == brute_force(model, HISTORY)[1].tolist()
    np.testing.assert_allclose(index.vectors, model.items(), rtol=1e-6)


def test_an_export_orders_copies_of_a_film_as_the_search_by_xla_does(tmp_path):
    """Of films with the same vector the lower row comes first, in an export (a graph) and in XLA."""
    model, _, signature = made()
    model.users(model.rows(tf.constant(HISTORY)))
    model.table.table.assign(tf.gather(model.table.table, [0, 3, 1, 3, 2, 1, 3, 2, 2, 3, 1, 1, 2, 13]))
    hook = export.SavedModel({export.SERVING: signature})
    hook.write(model, tmp_path / "1")
    found = hook.load(tmp_path / "1")[export.SERVING]({"history": HISTORY})
    ids = brute_force(model, HISTORY)[1]
    assert found["ids"].tolist() == ids.tolist()
    assert (found["scores"][:, 0] == found["scores"][:, 1]).any()
    history = model.rows(tf.constant(HISTORY))
    seen = np.where(history < FILMS + 1, history, 0)
    rows = retrieval.top_k_of_all(model.users(history).numpy(), model.items().numpy(), K, seen, item_block=5)[1]
    assert np.array([0, *IDS])[rows].tolist() == ids.tolist()


def test_a_lookup_of_strings_outside_of_the_model_is_named_in_uses(tmp_path):
    rows = layers.Lookup(["a", "b"])

    def of(**uses):
        fn = lambda model, inputs: {"row": rows(inputs["film"])}  # noqa: E731
        return export.Signature(fn, {"film": tf.TensorSpec([None], tf.string)}, has_metrics=False, **uses)

    with pytest.raises(UserError, match=r"uses a variable or a lookup table, .* Signature\(…, uses=\[films\]\)"):
        export.SavedModel({export.SERVING: of()}).write(Towers(), tmp_path / "1")
    hook = export.SavedModel({export.SERVING: of(uses=[rows])})
    hook.write(Towers(), tmp_path / "2")
    found = hook.load(tmp_path / "2")[export.SERVING]({"film": np.array(["b", "", "c"], object)})
    assert found["row"].tolist() == [2, 0, 3]


def test_a_user_who_has_seen_nearly_all_gets_a_short_list():
    model, index, _ = made()
    index.fill(model.items)
    seen = tf.constant([[*range(1, FILMS)]])
    found = index.recommend(tf.ones([1, WIDTH]), K, seen)
    assert found["ids"].numpy().tolist() == [[IDS[-1], 0, 0]]
    assert found["titles"].numpy().tolist() == [[TITLES[-1].encode(), b"", b""]]
    assert np.isneginf(found["scores"].numpy()[0, 1:]).all()


@pytest.mark.parametrize("ids", [["b", "a"], np.array(["b", "a"]), np.array(["b", "a"], object)], ids=str)
def test_ids_may_be_strings_and_titles_left_out(ids):
    index = retrieval.Index(ids)  # objects are what a column of a file is
    index.fill(lambda: tf.constant([[9.0], [1.0], [2.0]]))
    found = index.recommend(tf.constant([[1.0], [-1.0]]), 2)
    assert found["ids"].numpy().tolist() == [[b"a", b"b"], [b"b", b"a"]]
    assert found.keys() == {"scores", "ids"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval.Index([1.5]), "Index: ids are float64 of shape (1,), but must be all integers or strings."),
        (
            lambda: retrieval.Index(np.array([2**63 + 5, 1], np.uint64)),
            "Index: the id 9223372036854775813 is beyond 64 bits with a sign. Use strings as ids.",
        ),
        (lambda: retrieval.Index([4, 7, 4]), "Index: ids have 4 twice, but each item has its own."),
        (lambda: retrieval.Index(["a", "a"]), "Index: ids have 'a' twice, but each item has its own."),
        (lambda: retrieval.Index([3, 0]), "Index: ids have 0, which fills up short lists."),
        (lambda: retrieval.Index(["", "a"]), "Index: ids have '', which fills up short lists."),
        (lambda: retrieval.Index(["a", 1]), "Index: ids have 1 among texts, but must be all integers or strings."),
        (
            lambda: retrieval.Index(np.array([b"a"], object)),
            "Index: ids are object of shape (1,), but must be all integers or strings.",
        ),
        (lambda: retrieval.Index([1, 2], ["x"]), "Index: 1 titles of 2 ids; each id has a title."),
        (
            lambda: retrieval.Index([1, 2]).fill(lambda: tf.zeros([2, 4])),
            "Index.fill: vectors have shape (2, 4), but 2 ids and the padding of row 0 need [3, width].",
        ),
        (
            lambda: retrieval.Index([1]).fill(lambda: tf.constant([[1.0], [np.nan]])),
            "Index.fill: vectors of items are not finite.",
        ),
        (
            lambda: retrieval.Index([1]).recommend(tf.zeros([1, 1]), 1),
            "Index.recommend: the index has no vectors. Call index.fill(make_vectors) before it.",
        ),
    ],
)
def test_what_is_no_index_is_refused(call, message):
    with pytest.raises(UserError) as error:
        call()
    assert str(error.value) == message
