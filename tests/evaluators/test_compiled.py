"""framework/evaluators/compiled.py, and `examples`: a function of the model on the examples of a split."""

import importlib.util

import numpy as np
import pytest
import tensorflow as tf

from framework import evaluators, paths, testing
from framework.errors import UserError
from tests import bucketed
from tests.small import build


def doubled(model, batch):
    return {"twice": 2 * model(batch["x"], training=False), "label": batch["label"]}


def twice(run, split, limit=None):
    """Twice the logits of the model that evaluates a split, eagerly."""
    batches = list(evaluators.examples(run, split, limit))
    with run.weights("ema" if "@" in split else "model"):
        return [2 * run.model(tf.constant(batch["x"]), training=False).numpy() for batch in batches]


@pytest.mark.parametrize(("split", "limit"), [("test", None), ("test", 50), ("test@ema", None)])
def test_it_computes_a_function_of_the_examples(split, limit):
    run = build(**{"eval.batch_size": 48, "ema.decay": 0.5})  # the last batch of 160 examples has 16
    run.train_block(2)
    pairs = list(evaluators.Compiled(doubled)(run, split, limit))
    assert [len(batch["x"]) for batch, _ in pairs] == ([48, 48, 48, 16] if limit is None else [48, 2])
    for (batch, outputs), expected in zip(pairs, twice(run, split, limit), strict=True):
        np.testing.assert_array_equal(outputs["label"], batch["label"])
        np.testing.assert_allclose(outputs["twice"], expected, rtol=1e-5, atol=1e-6)
    others = twice(run, "test@ema" if split == "test" else "test")
    assert np.abs(others[0] - pairs[0][1]["twice"][: len(others[0])]).max() > 1e-4


def test_it_is_traced_once_and_sees_new_weights():
    traces = []

    def counted(model, batch):
        traces.append(batch["x"].shape)
        return doubled(model, batch)

    run, compiled = build(**{"eval.batch_size": 40}), evaluators.Compiled(counted)
    first = [outputs["twice"] for _, outputs in compiled(run)]
    kernel = paths.variables(run.model)["last/bias"]
    kernel.assign(kernel + 1.0)
    second = [outputs["twice"] for _, outputs in compiled(run)]
    assert len(traces) == 1
    np.testing.assert_allclose(np.concatenate(second) - np.concatenate(first), 2, rtol=0, atol=1e-5)


def test_it_computes_what_was_started_after_its_file_was_edited(tmp_path):
    """AutoGraph would read the file again when it is traced: at the first evaluation, hours after the start."""
    file = tmp_path / "edited.py"
    code = "def scaled(model, batch):\n    return {'scaled': 2 * batch['x']}\n"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("edited", file)
    edited = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(edited)
    compiled = evaluators.Compiled(edited.scaled)
    file.write_text(code.replace("2 *", "1000 *"))
    for batch, outputs in compiled(build(**{"eval.batch_size": 40})):
        np.testing.assert_array_equal(outputs["scaled"], 2 * batch["x"])


def test_batches_of_several_shapes_are_without_padding():
    cfg = {"eval.batch_size": 8, "train.precision": "float32"}
    run = testing.build(bucketed, cfg)
    lengths = bucketed.lengths("test")
    traces = []

    def source(model, batch):
        traces.append(batch["source"].shape)
        return {"ids": batch["source"]}

    found = [outputs["ids"] for _, outputs in evaluators.Compiled(source)(run)]
    assert len({ids.shape for ids in found}) > 2
    assert len(traces) <= 2 and traces[-1].as_list() == [None, None]
    rows = [row for ids in found for row in ids]
    assert len(rows) == len(lengths["source"])
    expected = sorted(tuple(ids[ids > 0]) for ids in bucketed.examples("test")["source"])
    assert sorted(tuple(row[row > 0]) for row in rows) == expected


def test_an_unknown_split_is_one_line():
    run = build()
    with pytest.raises(UserError, match=r"examples\(run, split='tset'\): there is no such split. Did you mean 'test'"):
        evaluators.examples(run, "tset")
    with pytest.raises(UserError, match=r"there is no such split"):
        evaluators.Compiled(doubled)(run, "tset")
    with pytest.raises(UserError, match=r"examples\(run, limit=0\): a limit is at least 1"):
        evaluators.examples(run, limit=0)


def test_a_warning_names_what_is_traced_again_and_again(monkeypatch, caplog):
    """`reduce_retracing` frees dimensions and their number, so what is left is another dtype or field."""
    run = build(**{"eval.batch_size": 80})
    dtypes = [np.float32, np.float64, np.int32, np.int64, np.uint8, np.int8, np.uint16, np.int16, np.uint32]

    def typed(count):
        for dtype in dtypes[:count]:
            yield {"x": np.zeros(2, dtype), "weight": np.ones(2, np.float32)}

    compiled = evaluators.Compiled(lambda model, batch: {"twice": 2 * batch["x"]})
    for count, told in ((6, 0), (7, 1), (9, 1)):
        monkeypatch.setattr("framework.evaluators.compiled.examples", lambda run, split, limit, n=count: typed(n))
        assert len(list(compiled(run))) == count
        assert len(caplog.messages) == told
    assert caplog.messages == [
        "evaluators.Compiled(<lambda>) was traced 7 times, and a trace takes seconds (batch['x']: int8 [2] before,"
        " uint16 [2] now). Give each batch the same fields and dtypes."
    ]
