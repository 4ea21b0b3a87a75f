"""framework/data/fields.py: fields by name, weights that are kept, and what is refused where they change."""

import numpy as np
import pytest
import tensorflow as tf

from framework import losses
from framework.config import UserError, base_config
from framework.data.batches import make_batches
from framework.data.sources import Source
from tests import small

PLACEMENTS = ("resident", "stream")
WEIGHT = np.float32([0.5, 0.0, 2.0, 1.5, 0.25, 3.0])


def make(source, placement="resident", training=True, transform=None, **settings):
    config = base_config()
    config.data.update({"placement": placement, "batch_size": 4, "shuffle": False, "retry_seconds": 0.0, **settings})
    config.eval.batch_size = 4
    return make_batches(source, config, training=training, transform=transform)


def points(weight=WEIGHT, origin="points", kind=Source, **fields):
    fields = {"x": np.arange(6, dtype=np.float32), **fields}
    return kind(fields if weight is None else {**fields, "weight": np.asarray(weight)}, origin)


def said(fn, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        fn(*args, **kwargs)
    assert "\n" not in str(caught.value)
    return str(caught.value)


class Own(Source):
    """Reads in a way of its own: what `change` makes of the rows of each read; the first is at making the batches."""

    def take(self, indices):
        self.__dict__["reads"] = self.__dict__.get("reads", -1) + 1
        return CHANGES[self.origin](super().take(indices), self.reads)


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "uint8", "bool"])
def test_the_weight_of_an_example_times_that_of_padding(placement, dtype):
    weight = np.float32([2, 0, 1, 1, 0, 3]).astype(dtype)
    batches = make(points(weight), placement, training=False)
    assert batches.at(0)["weight"].dtype == tf.float32
    assert batches.at(0)["weight"].numpy().tolist() == weight[:4].astype(np.float32).tolist()
    assert batches.at(1)["weight"].numpy().tolist() == [*weight[4:].astype(np.float32), 0, 0]
    assert batches.indices(1)["weight"].tolist() == batches.at(1)["weight"].numpy().tolist()


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_in_every_order_each_example_has_its_own_weight(placement):
    """Shuffled, mixed, cut into parts, planned and at once."""
    other = Source({"weight": WEIGHT + 10, "x": np.arange(6, dtype=np.float32) + 10}, "others")
    weight_of = dict(zip([*range(6), *range(10, 16)], [*WEIGHT, *(WEIGHT + 10)], strict=True))
    batches = make([(points(), 1), (other, 2)], placement, shuffle=True)
    parts = [batches.shard(0, 1), batches.shard(1, 3)]
    plan, plans = batches.plan(3, 2, 2), [part.plan(3, 2, 2) for part in parts]
    for row in range(2):
        whole = batches.at(3 + row)
        assert whole["weight"].numpy().tolist() == [weight_of[int(x)] for x in whole["x"]]
        for name in ("x", "weight"):
            taken = [part.take(of_part, row)[name] for part, of_part in zip(parts, plans, strict=True)]
            assert tf.concat(taken, 0).numpy().tolist() == whole[name].numpy().tolist()
            assert batches.take(plan, row)[name].numpy().tolist() == whole[name].numpy().tolist()


@pytest.mark.parametrize("bad", [-0.5, np.nan, np.inf, 1e39, 1e-60], ids=str)
@pytest.mark.parametrize("kind", [Source, Own])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_weight_that_is_none_is_refused_with_its_example(bad, kind, placement):
    weight = WEIGHT.astype(np.float64)
    weight[4] = bad
    made = f"'as it is': the weight of example 4 is {bad}. Weights are finite float32 numbers of at least 0;"
    if kind is Own and placement == "stream":  # seen when it is read
        batches = make(points(weight, "as it is", kind), placement)
        batches.plan(0, 1, 1)
        assert said(batches.plan, 1, 1, 1).startswith(made)
        assert said(batches.at, 1).startswith(made)
    else:
        assert said(make, points(weight, "as it is", kind), placement).startswith(made)


def test_many_weights_are_looked_at_in_pieces(monkeypatch):
    monkeypatch.setattr("framework.data.fields._CHUNK", 4)
    weight = np.ones(11)
    make(Source({"weight": weight}, "disk"))
    weight[9] = -1
    assert said(make, Source({"weight": weight}, "disk")).startswith("'disk': the weight of example 9 is -1.0.")


@pytest.mark.parametrize(
    ("weight", "shown"),
    [
        (np.ones((6, 1), np.float32), "float32 [examples, 1]"),
        (np.array(["a"] * 6), "string [examples]"),
        (np.ones(6, np.complex64), "complex64 [examples]"),
    ],
)
def test_a_weight_of_something_else_than_the_example_is_refused(weight, shown):
    assert said(make, points(weight)) == (
        f"'weight' of 'points' is {shown}, but 'weight' is the weight of each example in losses"
        " and metrics, [examples]."
        " If the field is something else, give it another name, such as 'token_weight'."
    )


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_transform_may_change_weights_but_not_those_of_padding(placement):
    def unlabelled(batch):
        return {**batch, "weight": batch["x"] != 4}

    batches = make(points(), placement, training=False, transform=unlabelled)
    assert [batches.at(step)["weight"].numpy().tolist() for step in (0, 1)] == [[1, 1, 1, 1], [0, 1, 0, 0]]

    def twice(batch):
        return {**batch, "weight": 2 * batch["weight"]}

    batches = make(points(), placement, training=False, transform=twice)
    assert batches.at(1)["weight"].numpy().tolist() == [0.5, 6.0, 0.0, 0.0]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_weight_that_a_transform_makes_negative_is_nan(placement):
    batches = make(points(), placement, transform=lambda batch: {**batch, "weight": batch["weight"] - 1})
    assert str(batches.at(0)["weight"].numpy().tolist()) == "[nan, nan, 1.0, 0.5]"


@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize(
    ("transform", "line"),
    [
        (lambda batch: {"x": batch["x"]}, "transform dropped 'weight': it returned x. Return all fields of the batch"),
        (lambda batch: None, "transform returned NoneType. Return the batch as a dict, e.g. {**batch, 'x': …}."),
        (
            lambda batch: {**batch, "weight": batch["weight"][:2]},
            "transform made 'weight' of shape (2,), but a",
        ),
        (
            lambda batch: {**batch, "weight": tf.ones([4, 1])},
            "transform made 'weight' of shape (4, 1), but it must be one number for each",
        ),
        (
            lambda batch: {**batch, "weight": tf.fill([4], "a")},
            "transform made 'weight' of dtype string, but it must be a",
        ),
        (
            lambda batch: {name: tf.repeat(tensor, 2, 0) for name, tensor in batch.items()},
            "transform made 'x' of shape (8,), but a batch has 4 rows. A transform may change examples,",
        ),
        (
            lambda batch: {**batch, "x": tf.RaggedTensor.from_row_lengths(batch["x"], [1, 3])},
            "transform returned 'x' as RaggedTensor, but fields are dense and have one shape in all batches.",
        ),
        (lambda batch: {**batch, "y": object()}, "transform returned 'y' as object, which is not a tensor."),
    ],
)
def test_a_transform_returns_a_batch(placement, transform, line):
    batches = make(points(), placement, transform=transform)
    assert said(batches.at, 0).startswith(line)
    assert said(lambda: tf.function(batches.at, autograph=False)(0)).startswith(line)


# --- by name ----------------------------------------------------------------------------------------------------------

CHANGES = {
    "as it is": lambda rows, read: rows,
    "turned": lambda rows, read: dict(reversed(rows.items())) if read % 2 else rows,
    "less": lambda rows, read: {"x": rows["x"]} if read == 2 else rows,
    "more": lambda rows, read: {**rows, "z": rows["x"]} if read == 2 else rows,
    "wide": lambda rows, read: {**rows, "x": rows["x"].astype(np.float64)} if read == 2 else rows,
    "deep": lambda rows, read: {**rows, "x": rows["x"][:, np.newaxis]} if read == 2 else rows,
    "short": lambda rows, read: {name: array[:-1] for name, array in rows.items()} if read == 2 else rows,
    "listed": lambda rows, read: {**rows, "x": rows["x"].tolist()} if read == 2 else rows,
    "masked": lambda rows, read: {**rows, "x": np.ma.masked_less(rows["x"], 3)} if read == 2 else rows,
    "none": lambda rows, read: None if read == 2 else rows,
}


@pytest.mark.parametrize("is_mixture", [False, True])
def test_fields_go_by_name_whatever_their_order(is_mixture):
    """Same shapes and dtypes, so that only the name tells them apart."""
    kind = [points(None, "turned", Own, y=np.arange(6, dtype=np.float32) + 100)]
    if is_mixture:
        fields = {"y": np.arange(6, dtype=np.float32) + 100, "x": np.arange(6, dtype=np.float32)}
        kind.append(Source(fields, "other"))
    batches = make([(source, 1) for source in kind] if is_mixture else kind[0], "stream")
    plan = batches.plan(0, 20, 20)
    assert plan["x"].numpy().max() == 5 and plan["y"].numpy().min() == 100
    assert (plan["y"].numpy() == plan["x"].numpy() + 100).all()


@pytest.mark.parametrize(
    ("origin", "line"),
    [
        ("less", "field 'y' is in element_spec, but take left it out. Return the same fields each time."),
        (
            "more",
            "field 'z' is not in element_spec, but take returned it. Return the same fields",
        ),
        ("wide", "'x' is float64 [4], but float32 [rows] in element_spec. Every read gives the same dtypes"),
        ("deep", "'x' is float32 [4, 1], but float32 [rows] in element_spec. Every read gives the same dtypes"),
        ("short", "take returned 'x' of shape (3,), but 4 rows were asked for."),
        ("listed", "take returned 'x' as list. Return an np.ndarray."),
        ("masked", "take returned 'x' as MaskedArray. Return an np.ndarray."),
        ("none", "take returned NoneType, not {field: array [rows, ...]}."),
    ],
)
def test_a_read_that_gives_other_fields_is_refused(origin, line):
    batches = make(points(None, origin, Own, y=np.arange(6)), "stream", parallel_calls=1)
    batches.plan(0, 1, 1)
    assert said(batches.plan, 1, 1, 1).startswith(f"batch 1 of '{origin}': {line}")


@pytest.mark.parametrize(
    ("other", "line"),
    [
        (
            {"x": np.zeros(3, np.float64)},
            "differ in 'x': float32 [examples] in 'points', float64 [ex",
        ),
        (
            {"x": np.zeros((3, 2), np.float32)},
            "differ in 'x': float32 [examples] in 'points', float32 [ex",
        ),
        ({"y": np.zeros(3)}, "differ: 'points' has a field 'x', and 'other' does not."),
        (
            {"x": np.zeros(3, np.float32), "weight": np.ones(3)},
            "differ: 'other' has a field 'weight', and",
        ),
    ],
)
@pytest.mark.parametrize("kind", [Source, Own])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_sources_of_a_mixture_that_differ_are_refused_by_field(other, line, kind, placement, monkeypatch):
    monkeypatch.setitem(CHANGES, "other", CHANGES["as it is"])
    mixture = [(points(None), 1), (kind(other, "other"), 1)]
    assert said(make, mixture, placement).startswith(f"the sources of a mixture {line}")


def test_a_take_of_ones_own_is_what_a_resident_batch_holds(monkeypatch):
    """Its arrays may be no more than file names."""

    class Doubled(Source):
        def take(self, indices):
            return {"double": 2 * super().take(indices)["x"]}

    source = Doubled({"x": np.arange(6)}, "doubled")
    for batches in (make(source, "resident"), make(source, "stream"), make(source, "auto")):
        assert set(batches.at(0)) == {"double", "weight"}
        assert batches.at(0)["double"].numpy().tolist() == [0, 2, 4, 6]
    assert not make(source, "auto").is_resident  # what it gives may be larger than what it is made of


@pytest.mark.parametrize("kind", [Source, Own])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_arrays_in_the_byte_order_of_other_machines(kind, placement):
    """TensorFlow takes the bytes that a function returns for its own: 1 was 4.6e-41."""
    source = points(
        [1, 2, 3, 4, 5, 6], "as it is", kind, big=np.arange(6, dtype=">f4"), bigger=np.arange(6, dtype=">i8")
    )
    batch = make(source, placement).plan(0, 1, 1) if placement == "stream" else make(source, placement).at(0)
    assert np.ravel(batch["big"]).tolist() == np.ravel(batch["bigger"]).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_texts_of_several_lengths_are_one_kind_of_field(placement):
    mixture = [(Source({"t": np.array(["a", "b"])}, "one"), 1), (Source({"t": np.array(["a longer one"])}, "two"), 1)]
    found = {text.decode() for step in range(4) for text in make(mixture, placement).at(step)["t"].numpy()}
    assert found == {"a", "b", "a longer one"}


# --- shapes that are not known when a transform is traced -------------------------------------------------------------


def by_numpy(fn, name="x", first=True):
    """A transform with an entry of unknown shape, first or last."""

    def transform(batch):
        made = {name: tf.numpy_function(fn, [batch["x"]], tf.float32)}
        rest = {key: tensor for key, tensor in batch.items() if key != name}
        return {**made, **rest} if first else {**rest, **made}

    return transform


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_missing_shape_is_that_of_the_first_batch(placement, first):
    def outer(x):
        return np.stack([x, x * x], 1)

    batches = make(points(), placement, transform=by_numpy(outer, first=first))
    for here, count in ((batches, 4), (batches.shard(2, 2), 2)):
        specs = tf.function(here.at, autograph=False).get_concrete_function(0).structured_outputs
        assert specs["x"].shape == (count, 2) and specs["weight"].shape == (count,)
    assert batches.at(1)["x"].numpy().tolist() == [[4, 16], [5, 25], [0, 0], [1, 1]]


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_shape_that_changes_between_batches_is_refused_by_name(placement):
    """Batch 1 begins with 4."""
    batches = make(points(), placement, transform=by_numpy(lambda x: np.ones([4, 2 if x[0] == 4 else 3], np.float32)))
    line = (
        "transform made 'x' of shape [4,2], but [4,3] in the first batch: a field has one shape in all batches."
        " Pad or cut it in the transform."
    )
    tf.function(batches.at, autograph=False).get_concrete_function(0)
    assert said(batches.at, 1) == line
    if placement == "stream":
        assert said(batches.plan, 0, 2, 2) == line


def test_another_number_of_rows_is_refused_by_name():
    batches = make(points(), transform=by_numpy(lambda x: x[:3]))
    assert said(batches.at, 0).startswith("transform made 'x' of shape (3,), but a batch has 4 rows.")
    assert said(tf.function(batches.at, autograph=False), 0).startswith("transform made 'x' of shape (3,), but a batch")


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_run_whose_transform_changes_a_shape_stops_with_its_name(placement):
    """Inside the compiled block, too, and in micro-batches, where the first entry has no static size."""

    def change(x):
        return x[:, :3] if change.is_late else x

    def make_data(cfg, split):
        def transform(batch):
            changed = tf.numpy_function(change, [batch["x"]], tf.float32)
            return {"x": changed, "label": batch["label"], "weight": batch["weight"]}

        source = small.examples({})
        return make_batches(source, cfg, training=split == "train", transform=transform)

    def make_loss(cfg):
        def loss(model, batch, training):
            logits = model(batch["x"], training=training)
            return {"loss": losses.sparse_cross_entropy(logits, batch["label"], batch["weight"])}, {}

        return loss

    change.is_late = False
    settings = {"data.placement": placement, "train.micro_batches": 2, "data.prefetch_batches": 1}
    run = small.build(functions={"make_data": make_data, "make_loss": make_loss}, **settings)
    assert run.probe.batch["x"].shape == (16, 6)
    assert np.isfinite(run.train_block(1).row(0)["loss"])
    change.is_late = True
    assert said(lambda: [run.train_block(1) for _ in range(3)]).startswith(
        "transform made 'x' of shape [16,3], but [16,6] in the first batch: a field has one shape in all batches."
    )
