"""config/overrides.py: what may be typed, set by a preset or read back, and every refusal by its exact message."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict

from framework.config import base_config, finalize, flatten
from framework.config import overrides as overrides_module
from framework.config.overrides import override
from tests.config.finalized import BASE, CHECK, OVERRIDES, message, own


@pytest.mark.parametrize(
    ("overrides", "changed"),
    [
        ([], {}),
        ({}, {}),
        (["--config.seed=3"], {"seed": 3}),
        (["-config.seed=3"], {"seed": 3}),
        (["--config.seed=1", "--config.seed=2"], {"seed": 2}),
        (["--config.data.batch_size=0x10"], {"data.batch_size": 16}),
        (["--config.data.shuffle=false"], {"data.shuffle": False}),
        (["--noconfig.data.shuffle"], {"data.shuffle": False}),
        (["--noconfig.data.shuffle", "--config.data.shuffle"], {}),
        (["--config.data.name=a=b"], {"data.name": "a=b"}),
        (["--config.data.name=--config.seed=3"], {"data.name": "--config.seed=3"}),
        (["--config.data.name=é \n"], {"data.name": "é \n"}),
        (["--config.eval.splits=a"], {"eval.splits": ("a",)}),
        (["--config.eval.splits=a", "--config.eval.splits=b"], {"eval.splits": ("a", "b")}),
        (["--config.eval.splits=('a','b')"], {"eval.splits": ("a", "b")}),
        (["--config.eval.splits=['a', \"b\"]"], {"eval.splits": ("a", "b")}),
        (["--config.schedule.learning_rate=1"], {"schedule.learning_rate": 1.0}),
        ({"schedule.learning_rate": 1}, {"schedule.learning_rate": 1.0}),
        ({"schedule.learning_rate": 0.1 + 0.2}, {"schedule.learning_rate": 0.30000000000000004}),
        ({"eval.splits": ("a", "b")}, {"eval.splits": ("a", "b")}),
        ({"eval.splits": "a"}, {"eval.splits": ("a",)}),
        ({"schedule.boundaries": ("60%", "85%")}, {"schedule.boundaries": ("60%", "85%")}),
        ({"schedule.factors": (0.1, 1)}, {"schedule.factors": (0.1, 1)}),
        ({"data.shuffle": False, "seed": 7}, {"data.shuffle": False, "seed": 7}),
        ({"eval.every": ""}, {"eval.every": ""}),
    ],
)
def test_override(overrides, changed):
    before = base_config()
    after = flatten(override(before, overrides))
    assert {key: value for key, value in after.items() if value != BASE[key]} == changed
    assert {key: type(value) for key, value in after.items()} == {key: type(value) for key, value in BASE.items()}
    assert flatten(before) == BASE  # a copy was changed


def test_override_of_own_keys():
    created = own(width=128, rate=0.5, name="relu", sizes=(3,), inner=ConfigDict({"on": False}))
    overrides = ["--config.model.width=64", "--config.model.sizes=(1,2)", "--config.model.inner.on"]
    after = override(created, overrides).model.to_dict()
    assert after == {"width": 64, "rate": 0.5, "name": "relu", "sizes": (1, 2), "inner": {"on": True}}


def test_override_returns_a_locked_config():
    after = override(base_config(), {})
    for section in (after, after.data, after.model, after.train):
        assert section.is_locked


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        # Unknown keys.
        ("--config.sed=1", f"--config.sed=1: there is no key 'sed'. Did you mean 'seed'? {CHECK}"),
        ("--config.SEED=1", f"--config.SEED=1: there is no key 'SEED'. Did you mean 'seed'? {CHECK}"),
        (
            "--config.trian.compile=xla",
            f"--config.trian.compile=xla: there is no key 'trian.compile'. Did you mean 'train.compile'? {CHECK}",
        ),
        (
            "--config.data.batchsize=4",
            f"--config.data.batchsize=4: there is no key 'data.batchsize'. Did you mean 'data.batch_size'? {CHECK}",
        ),
        (
            "--config.evel.batch_size=4",
            f"--config.evel.batch_size=4: there is no key 'evel.batch_size'. Did you mean 'eval.batch_size'? {CHECK}",
        ),
        (
            "--config.optimizer.learning_rate=1",
            "--config.optimizer.learning_rate=1: there is no key 'optimizer.learning_rate'."
            f" Did you mean 'schedule.learning_rate'? {CHECK}",
        ),
        (
            "--config.batch_size=4",
            "--config.batch_size=4: there is no key 'batch_size'."
            f" Did you mean 'data.batch_size' or 'eval.batch_size'? {CHECK}",
        ),
        ("--config.model.hiden=4", f"--config.model.hiden=4: there is no key 'model.hiden'. {CHECK}"),
        (
            "--noconfig.data.shufle",
            f"--noconfig.data.shufle: there is no key 'data.shufle'. Did you mean 'data.shuffle'? {CHECK}",
        ),
        ("--config.zzz=1", f"--config.zzz=1: there is no key 'zzz'. {CHECK}"),
        ("--config.é=1", f"--config.é=1: there is no key 'é'. {CHECK}"),
        ("--config.", f"--config.: there is no key ''. {CHECK}"),
        ("--config.=", f"--config.=: there is no key ''. {CHECK}"),
        ("--config..seed=1", f"--config..seed=1: there is no key '.seed'. Did you mean 'seed'? {CHECK}"),
        (
            "--config.train=xla",
            "--config.train is a section, not a value. Set one of its keys:"
            " train.block_steps, train.compile, train.duration, train.micro_batches, train.nonfinite_limit,"
            " train.on_nonfinite, train.precision, train.remat.",
        ),
        (
            "--config.train",
            "--config.train is a section, not a value. Set one of its keys:"
            " train.block_steps, train.compile, train.duration, train.micro_batches, train.nonfinite_limit,"
            " train.on_nonfinite, train.precision, train.remat.",
        ),
        # Wrong types.
        ("--config.seed=abc", "--config.seed=abc: 'abc' is not of type int. Type e.g. --config.seed=0."),
        ("--config.seed=", "--config.seed=: '' is not of type int. Type e.g. --config.seed=0."),
        ("--config.seed=1.0", "--config.seed=1.0: '1.0' is not of type int. Type e.g. --config.seed=0."),
        ("--config.seed=1e3", "--config.seed=1e3: '1e3' is not of type int. Type e.g. --config.seed=0."),
        ("--config.seed=nan", "--config.seed=nan: 'nan' is not of type int. Type e.g. --config.seed=0."),
        (
            "--config.schedule.learning_rate=fast",
            "--config.schedule.learning_rate=fast: 'fast' is not of type float."
            " Type e.g. --config.schedule.learning_rate=0.001.",
        ),
        (
            "--config.data.shuffle=maybe",
            "--config.data.shuffle=maybe: 'maybe' is not of type bool. Type e.g. --config.data.shuffle=True.",
        ),
        (
            "--config.schedule.boundaries=1 epoch",
            "--config.schedule.boundaries=1 epoch: '1 epoch' is not of type tuple."
            " Type e.g. --config.schedule.boundaries=\"('1 epoch',)\".",
        ),
        # Forms.
        ("--config.seed", "--config.seed: 'seed' is not a switch and needs a value. Type e.g. --config.seed=0."),
        ("--noconfig.seed", "--noconfig.seed: 'seed' is not a switch and needs a value. Type e.g. --config.seed=0."),
        (
            "--config.eval.every",
            "--config.eval.every: 'eval.every' is not a switch and needs a value."
            " Type e.g. --config.eval.every='1 epoch'.",
        ),
        (
            "--config.data.name",
            "--config.data.name: 'data.name' is not a switch and needs a value. Type e.g. --config.data.name=''.",
        ),
        (
            "--noconfig.data.shuffle=1",
            "--noconfig.data.shuffle=1: --noconfig.data.shuffle takes no value."
            " Type --noconfig.data.shuffle or --config.data.shuffle=True.",
        ),
        *[
            (argument, f"'{argument}' is not understood. {OVERRIDES}")
            for argument in ("config.seed=1", "---config.seed=1", "seed=1", "--config", "--config=", "--config=x.py")
        ],
        *[
            (argument, f"'{argument}' is not understood. {OVERRIDES}")
            for argument in ("--noconfig", "--", "-", "", "3", "--help", "--flagfile=/x", "--undefok=seed")
        ],
    ],
)
def test_override_refuses(argument, expected):
    assert message(override, base_config(), [argument]) == expected
    # Whatever else is right beside it.
    assert message(override, base_config(), ["--config.data.batch_size=64", argument]) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"sed": 1}, f"--config.sed=1: there is no key 'sed'. Did you mean 'seed'? {CHECK}"),
        ({"config.seed": 1}, f"--config.config.seed=1: there is no key 'config.seed'. Did you mean 'seed'? {CHECK}"),
        ({"no": 1}, f"--config.no=1: there is no key 'no'. {CHECK}"),
        ({3: 4}, f"--config.3=4: there is no key '3'. {CHECK}"),
        ({"seed": None}, "--config.seed=None: 'None' is not of type int. Type e.g. --config.seed=0."),
        ({"seed": True}, "--config.seed=True: 'True' is not of type int. Type e.g. --config.seed=0."),
        ({"seed": 3.0}, "--config.seed=3.0: '3.0' is not of type int. Type e.g. --config.seed=0."),
        (
            {"train": {"compile": "xla"}},
            "--config.train is a section, not a value. Set one of its keys:"
            " train.block_steps, train.compile, train.duration, train.micro_batches, train.nonfinite_limit,"
            " train.on_nonfinite, train.precision, train.remat.",
        ),
    ],
)
def test_override_by_mapping_refuses(overrides, expected):
    assert message(override, base_config(), overrides) == expected


def test_a_key_that_begins_like_another_is_not_blamed():
    created = own(rate=1.0, rate_limit=1.0)
    expected = "--config.model.rate_limit=x: 'x' is not of type float. Type e.g. --config.model.rate_limit=1.0."
    assert message(override, created, ["--config.model.rate=2", "--config.model.rate_limit=x"]) == expected


PRESETS = {"small": {"model.width": 8, "train.duration": "1 epoch"}, "large": {"schedule.boundaries": ["1%", "2%"]}}


def test_apply_preset():
    plain = own(width=128)
    assert overrides_module.apply_preset(plain, "", PRESETS) is plain
    assert (plain.model.width, plain.train.duration) == (128, "5 epochs")
    small = overrides_module.apply_preset(own(width=128), "small", PRESETS)
    assert (small.model.width, small.train.duration, small.train.compile) == (8, "1 epoch", "auto")
    assert overrides_module.apply_preset(own(), "large", PRESETS).schedule.boundaries == ("1%", "2%")
    assert PRESETS["small"] == {"model.width": 8, "train.duration": "1 epoch"}


@pytest.mark.parametrize(
    ("name", "presets", "expected"),
    [
        ("smal", PRESETS, "there is no preset 'smal'. Did you mean 'small'? Presets: small, large."),
        ("zzz", PRESETS, "there is no preset 'zzz'. Presets: small, large."),
        ("zzz", {}, "there is no preset 'zzz'. Presets: none."),
        (
            "x",
            {"x": {"trian.compile": "xla"}},
            "preset 'x' sets 'trian.compile', which get_config did not set before. Did you mean 'train.compile'?",
        ),
        (
            "x",
            {"x": {"model.widht": 3}},
            "preset 'x' sets 'model.widht', which get_config did not set before. Did you mean 'model.width'?",
        ),
        ("x", {"x": {"zzz": 1}}, "preset 'x' sets 'zzz', which get_config did not set before."),
        (
            "x",
            {"x": {"train": 3}},
            "preset 'x' sets 'train', which get_config did not set before. Did you mean 'train.remat'?",
        ),
        ("x", {"x": {"seed": 1.5}}, "preset 'x' sets seed=1.5, but it is of type int."),
    ],
)
def test_apply_preset_refuses(name, presets, expected):
    assert message(overrides_module.apply_preset, own(width=1), name, presets) == expected


def test_restored():
    stored = override(own(width=128, sizes=(1,)), {"model.width": 64, "eval.splits": ("a", "b"), "seed": 3}).to_dict()
    as_json = {**stored, "eval": {**stored["eval"], "splits": ["a", "b"]}}
    again = overrides_module.restored(own(width=128, sizes=(1,)), as_json)
    assert flatten(again) == flatten(ConfigDict(stored))
    assert again.eval.splits == ("a", "b")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (
            {"model": {"b": 1, "a": 1}},
            "the run's config.json sets 'model.a', which its experiment file no longer has. Put it back.",
        ),
        ({"model": {"width": "wide"}}, "the run's config.json sets model.width='wide', but it is of type int."),
    ],
)
def test_restored_refuses(stored, expected):
    assert message(overrides_module.restored, own(width=1), stored) == expected


OWN = {"name": "relu", "rate": 0.5, "width": 128, "on": False, "sizes": (3,)}
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20) | st.sampled_from(
    ["1e-3", "None", "True", "(1,)", "'a'", '"', ",", " a ", "a\nb", "-0.0", "--config.seed=3", "=", "$HOME", "\t"]
)
FLOATS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([5e-324, -0.0, 1e308, 0.1 + 0.2])
INTS = st.integers(-(2**70), 2**70)
PARTS = st.lists(TEXTS | FLOATS | INTS | st.booleans(), max_size=4).map(tuple)


def same(one, two):
    """Equal values of one type, to the bit."""
    if type(one) is tuple and type(two) is tuple:
        return len(one) == len(two) and all(map(same, one, two))
    is_float = type(one) is float and type(two) is float
    return type(one) is type(two) and one == two and (not is_float or math.copysign(1, one) == math.copysign(1, two))


@settings(max_examples=200, deadline=None)
@given(name=TEXTS, rate=FLOATS, width=INTS, on=st.booleans(), sizes=PARTS)
def test_a_value_given_in_python_arrives_as_it_was_given_and_comes_back_from_config_json(**values):
    arrived = finalize(override(own(**OWN), {f"model.{key}": value for key, value in values.items()}))
    again = overrides_module.restored(own(**OWN), json.loads(json.dumps(arrived.to_dict())))
    for key, value in values.items():
        assert same(arrived.model[key], value), key
        assert same(again.model[key], value), key


@settings(max_examples=100, deadline=None)
@given(text=TEXTS, rate=FLOATS, width=INTS)
def test_a_typed_text_arrives_as_it_was_typed(text, rate, width):
    typed = [f"--config.model.name={text}", f"--config.model.rate={rate!r}", f"--config.model.width={width}"]
    arrived = override(own(**OWN), typed).model
    assert same(arrived.name, text) and same(arrived.rate, rate) and same(arrived.width, width)


@pytest.mark.parametrize(
    ("key", "value", "arrives"),
    [
        ("rate", np.float64(0.1), 0.1),
        ("rate", np.float32(0.1), 0.10000000149011612),
        ("rate", np.float16(0.1), 0.0999755859375),
        ("rate", np.int64(3), 3.0),
        ("rate", 2**53, float(2**53)),
        ("width", np.int8(-3), -3),
        ("width", np.uint64(2**64 - 1), 2**64 - 1),
        ("on", np.True_, True),
        ("name", np.str_("None"), "None"),
        ("name", Path("a") / "b c", "a/b c"),
        ("sizes", [1, np.float64(0.5), "x,y"], (1, 0.5, "x,y")),
        ("sizes", np.int64(7), (7,)),
        # A text for another type is one that was typed.
        ("rate", "1e-3", 0.001),
        ("on", "true", True),
        ("sizes", "(1,'b')", (1, "b")),
    ],
)
def test_a_value_that_can_be_held_exactly_is_in_the_type_of_its_key(key, value, arrives):
    assert same(override(own(**OWN), {f"model.{key}": value}).model[key], arrives)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("name", None, "str, but NoneType"),
        ("name", 3, "str, but int"),
        ("name", True, "str, but bool"),
        ("name", 0.1, "str, but float"),
        ("name", b"relu", "str, but bytes"),
        ("name", ("a",), "str, but tuple"),
        ("name", np.float32(1), "str, but float32"),
        ("name", np.array("a"), "str, but ndarray"),
        ("rate", None, "float"),
        ("rate", True, "float"),
        ("rate", 2**53 + 1, "float"),
        ("rate", 10**400, "float"),
        ("rate", np.int64(2**53 + 1), "float, but int64"),
        ("rate", np.longdouble(1) / 3, "float, but longdouble"),
        ("rate", np.zeros(100), "float, but ndarray"),
        ("rate", np.True_, "float, but bool"),
        ("width", np.float64(3), "int, but float64"),
        ("width", np.array(3), "int, but ndarray"),
        ("on", 1, "bool"),
        ("on", np.int64(1), "bool, but int64"),
        ("sizes", None, "tuple"),
        ("sizes", (1, None), "tuple, but tuple with NoneType"),
        ("sizes", ((1, 2), 3), "tuple, but tuple with tuple"),
        ("sizes", np.array([1, 2]), "tuple, but ndarray"),
        ("sizes", {1, 2}, "tuple, but set"),
    ],
)
def test_a_value_that_cannot_is_refused_in_one_line_with_key_and_type(key, value, kind):
    line = message(override, own(**OWN), {f"model.{key}": value})
    shown = overrides_module._short(value)
    assert line.startswith(f"--config.model.{key}={shown}: '{shown}' is not of type {kind}"), line
    assert "\n" not in line and len(line) < 300


def test_what_is_no_text_is_refused():
    half = "a\udcff"  # as an argument that is not UTF-8 reaches Python
    expected = "--config.model.name='a\\udcff' is not valid UTF-8, the encoding of config.json. Type the value again."
    assert message(override, own(**OWN), [f"--config.model.name={half}"]) == expected
    assert "is not of type str" in message(override, own(**OWN), {"model.name": half})


@pytest.mark.parametrize(("key", "value"), [("rate", True), ("width", True), ("name", None), ("sizes", 3), ("on", 1)])
def test_presets_and_stored_values_keep_their_type(key, value):
    kind = type(OWN[key]).__name__
    assert message(overrides_module.apply_preset, own(**OWN), "x", {"x": {f"model.{key}": value}}) == (
        f"preset 'x' sets model.{key}={value!r}, but it is of type {kind}."
    )
    assert message(overrides_module.restored, own(**OWN), {"model": {key: value}}) == (
        f"the run's config.json sets model.{key}={value!r}, but it is of type {kind}."
    )
