"""A run that starts from another one takes own names of layers for what they are, and made-up ones for none."""

import ast
import functools
import json
import re
import shutil

import pytest
import tf_keras as keras

from framework.checkpoint import storage
from framework.run import loop
from tests import small
from tests.checkpoint.started import refusal, weights


def of_names(*names):
    """make_model of layers of one shape; None for a name that Keras makes up."""

    def make_model(cfg):
        hidden = [keras.layers.Dense(6, activation="tanh", name=name) for name in names]
        return keras.Sequential([*hidden, keras.layers.Dense(3, name="last")])

    return {"make_model": make_model}


QUICK = {"train.duration": "3 steps", "schedule.warmup": "1 step"}


@pytest.fixture(scope="module")
def named(tmp_path_factory):
    """A trained run of layers whose own names look like those that Keras makes up."""
    built = small.build(
        tmp_path_factory.mktemp("named") / "source", functions=of_names("dense_2", "dense", "dense_1"), **QUICK
    )
    loop.train(built)
    return built


def test_init_from_takes_own_names_for_what_they_are(tmp_path, named):
    """In another order, of the same shapes, after other layers of this process: each its own."""
    names = ("dense", "dense_1", "dense_2")
    built = small.build(tmp_path / "run", functions=of_names(*names), init_from=str(named.workdir), **QUICK)
    built.open()
    for name in (*names, "last"):
        for left, right in zip(built.model.get_layer(name).weights, named.model.get_layer(name).weights, strict=True):
            assert left.numpy().tobytes() == right.numpy().tobytes(), name
    assert json.loads((tmp_path / "run" / "init.json").read_text())["taken"]["dense_2/kernel"] == "dense_2/kernel"


@pytest.mark.parametrize("names", [(None, None, None), ("dense", None, None), (None, "dense_1", "dense_2")])
def test_init_from_does_not_take_an_own_name_for_one_that_keras_made_up(tmp_path, named, names):
    build = functools.partial(small.build, functions=of_names(*names), init_from=str(named.workdir), **QUICK)
    line = refusal(build(tmp_path / "run").open)
    doubtful = sorted({"dense", "dense_1", "dense_2"} - {*names})
    assert line.startswith(
        f"init_from={named.workdir / 'checkpoints' / 'step-00000003'}: the layers {', '.join(doubtful)}"
    )
    # What it says to type works, both ways.
    for which in (0, 1):
        rules = ast.literal_eval(re.findall(r'--config.init_map="(\(.*?,\))"', line)[which])
        taken = tmp_path / f"run-{which}"
        build(taken, init_map=rules).open()
        report = json.loads((taken / "init.json").read_text())
        assert ("dense_2/kernel" in report["taken"]) == (which == 0 or "dense_2" in names)


def test_resume_from_does_not_either(tmp_path, named):
    built = small.build(tmp_path / "run", functions=of_names(None, None, None), resume_from=str(named.workdir), **QUICK)
    assert refusal(built.open).startswith(
        f"{named.workdir / 'checkpoints' / 'step-00000003'}: the layers model/dense, model/dense_1, model/dense_2 were"
        " named by hand on one side and by Keras on the other, so they need not be the same layers."
    )


def test_a_checkpoint_from_before_names_were_kept_resumes_by_paths_alone(tmp_path, named):
    source = tmp_path / "source" / "checkpoints" / "step-00000003"
    shutil.copytree(named.workdir / "checkpoints" / "step-00000003", source)
    manifest = storage.read_manifest(source)
    storage.write_manifest(source, {key: value for key, value in manifest.items() if key != "named"})
    names = ("dense_2", "dense", "dense_1")
    longer = {**QUICK, "train.duration": "4 steps"}
    built = small.build(tmp_path / "run", functions=of_names(*names), resume_from=str(source), **longer)
    assert built.open() == 3
    assert weights(built) == weights(named)
