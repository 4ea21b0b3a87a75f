"""framework/config/check.py: each wrong value and each slip of get_config, by its exact message."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict

from framework import config
from framework.config import DURATIONS, base_config, finalize, flatten
from framework.config.keys import KEYS
from framework.config.overrides import override
from tests.config.finalized import BASE, final, message, own

# --- finalize: one wrong value ----------------------------------------------------------------------------------------
CHOICES = {name: key.choices for name, key in KEYS.items() if key.choices}


@pytest.mark.parametrize("key", CHOICES)
def test_not_one_of_the_choices(key):
    first, listed = CHOICES[key][0], ", ".join(CHOICES[key])
    for value in ("zzzz", "", "☃"):
        expected = f"{key}='{value}' is not one of {listed}. Use --config.{key}={first}."
        assert message(final, **{key: value}) == expected
    last = CHOICES[key][-1]
    if last.upper() == last:  # without letters
        return
    expected = f"{key}='{last.upper()}' is not one of {listed}. Did you mean '{last}'? Use --config.{key}={last}."
    assert message(final, **{key: last.upper()}) == expected


NUMBERS = [name for name, key in KEYS.items() if type(key.default) in (int, float)]
LARGEST = 2**31 - 1
TINY, HUGE = 2.0**-100, 2.0**100


# Values that the bounds of a key need beside those of its `only_with`.
NEEDS = {
    "train.micro_batches": {"data.batch_size": LARGEST},
    "loss_scale.initial": {"loss_scale.floor": TINY, "loss_scale.ceiling": HUGE},
    "loss_scale.floor": {"loss_scale.initial": HUGE, "loss_scale.ceiling": HUGE},
    "loss_scale.ceiling": {"loss_scale.initial": TINY, "loss_scale.floor": TINY},
    "schedule.start_fraction": {"schedule.warmup": "1 step"},
    "schedule.period_factor": {"schedule.period": "1 epoch"},
    "schedule.peak_factor": {"schedule.period": "1 epoch"},
    "runtime.parameter_servers": {"train.compile": "graph"},
    "lookahead.alpha": {"lookahead.every": 1},
    "checkpoint.average": {"checkpoint.keep": LARGEST},
    "lookahead.power": {"lookahead.every": 1},
    "prune.begin": {"prune.sparsity": 0.5},
    "prune.initial": {"prune.sparsity": 0.999},
    "cluster.clusters": {"cluster.begin": "1 step"},
}


def test_bounds_that_other_numbers_give():
    """Bounds with a reason: of int32 and int64, of float32, of the dtype in which 1 - beta is computed."""
    assert KEYS["data.batch_size"].high == np.iinfo(np.int32).max
    assert KEYS["seed"].high == np.iinfo(np.int64).max
    for name in ("loss_scale.initial", "loss_scale.floor", "loss_scale.ceiling"):
        assert np.float32(KEYS[name].low) > 0 and np.isfinite(np.float32(KEYS[name].high))
    for name in ("optimizer.beta_1", "optimizer.beta_2", "ema.decay"):
        assert np.float32(1) - np.float32(KEYS[name].high) > 0
    assert np.float32(KEYS["optimizer.epsilon"].low) > 0
    assert not any(KEYS[name].low > 0 for name in NUMBERS if KEYS[name].doc.endswith(("0 = off", "0 = none")))


@pytest.mark.parametrize("key", NUMBERS)
def test_out_of_range(key):
    low, high = KEYS[key].low, KEYS[key].high
    section = key.partition(".")[0]
    others = {f"{section}.{decider}": legal[0] for decider, legal in KEYS[key].only_with.items()} | NEEDS.get(key, {})
    is_float = type(BASE[key]) is float
    for value in (low, 1e308 if high is None else high):
        assert flatten(final(**others, **{key: value}))[key] == value
    if is_float:
        outside = [-1.0, math.nextafter(low, -1.0), math.inf, -math.inf, math.nan]
        outside += [] if high is None else [math.nextafter(high, math.inf)]
    else:
        outside = [low - 1, high + 1, -(10**400), 10**400]
    legal = f"finite and at least {low}" if high is None else f"at least {low} and at most {high}"
    for value in outside:
        expected = f"{key}={value} is out of range: it must be {legal}. Use --config.{key}=N."
        assert message(final, **others, **{key: value}) == expected


def test_a_float_too_large_to_hold():
    expected = (
        "schedule.learning_rate=inf is out of range: it must be finite and at least 0."
        " Use --config.schedule.learning_rate=N."
    )
    assert message(final, schedule__learning_rate="1e400") == expected


LONG = "9" * 5000  # more digits than Python makes a number of


@pytest.mark.parametrize("key", sorted(DURATIONS))
def test_not_a_duration(key):
    for value in (
        "5",
        "epochs",
        "0 epochs",
        "0.0 steps",
        "-1 epochs",
        "nan epochs",
        "inf steps",
        "5 parsecs",
        "٣ epochs",
        "00",
        LONG,
    ):
        example = f"{value} steps" if value in ("5", LONG) else "2 epochs"
        expected = (
            f"{key}='{value}' is not a duration. Type e.g. --config.{key}='{example}' (steps, epochs, examples or %)."
        )
        assert message(final, **{key: value}) == expected


@pytest.mark.parametrize("key", sorted(DURATIONS))
def test_no_duration(key):
    if KEYS[key].required:
        expected = f"{key}='' is not a duration. Type e.g. --config.{key}='2 epochs' (steps, epochs, examples or %)."
        assert message(final, **{key: ""}) == expected
    else:
        assert flatten(final(**{key: ""}, **NEEDS.get(key, {})))[key] == ""


@pytest.mark.parametrize(
    ("value", "most"),
    [
        ("1.1e15 steps", "1e+15 steps"),
        ("1e400 examples", "1e+15 examples"),
        ("1000001 epochs", "1e+06 epochs"),
        ("100.1%", "100%"),
        ("101 percent", "100 percents"),
        ("9" * 5000 + " steps", "1e+15 steps"),
    ],
)
def test_duration_out_of_range(value, most):
    expected = f"log.every='{value}' is out of range: it must be at most '{most}'."
    assert message(final, log__every=value) == expected


@pytest.mark.parametrize("value", ["50%", "50 percent", "100%"])
def test_a_run_as_long_as_a_share_of_itself(value):
    expected = f"train.duration='{value}' is a share of itself. Type e.g. --config.train.duration='5 epochs'."
    assert message(final, train__duration=value) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"schedule.boundaries": (1, 2)},
            "schedule.boundaries='1' is not a duration."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\" (steps, epochs, examples or %).",
        ),
        (
            {"schedule.boundaries": ("1 epoch", "")},
            "schedule.boundaries='' is not a duration."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\" (steps, epochs, examples or %).",
        ),
        (
            {"schedule.factors": (0.1, "x")},
            "schedule.factors=(0.1, 'x'): 'x' is not a number of at least 0."
            ' Type e.g. --config.schedule.factors="(0.1,0.01)".',
        ),
        (
            {"schedule.factors": (0.1, -0.1)},
            "schedule.factors=(0.1, -0.1): -0.1 is not a number of at least 0."
            ' Type e.g. --config.schedule.factors="(0.1,0.01)".',
        ),
        (
            {"schedule.factors": (True,)},
            "schedule.factors=(True,): True is not a number of at least 0."
            ' Type e.g. --config.schedule.factors="(0.1,0.01)".',
        ),
        (
            {"schedule.factors": "(1e400,)"},
            "schedule.factors=(inf,): inf is not a number of at least 0."
            ' Type e.g. --config.schedule.factors="(0.1,0.01)".',
        ),
        *[
            (
                {"profile.steps": text},
                f"profile.steps='{text}' is not A:B with 1 <= A < B. Type e.g. --config.profile.steps=100:110.",
            )
            for text in (
                "10",
                "10:",
                ":10",
                "0:5",
                "5:5",
                "15:10",
                "5 : 10",
                "05:10",
                "5:1:2",
                "-5:10",
                "5:1e3",
                "٥:10",
            )
        ],
        (
            {"eval.splits": ()},
            "eval.splits=() names no split, but a run is judged and its exports are verified on one."
            " Use --config.eval.splits=test.",
        ),
        *[
            (
                {"eval.splits": text},
                f"eval.splits={splits}: {splits[0]!r} is not a name of letters, digits, '_', '-' and '.'."
                " Type e.g. --config.eval.splits=\"('train_eval','test')\".",
            )
            for text, splits in [("", ("",)), ("a/b", ("a/b",)), ("a,b", ("a,b",)), ("(1,)", (1,)), ("(", ("(",))]
        ],
        (
            {"eval.splits": ("test", "train")},
            "eval.splits contains 'train', which is shuffled and endless."
            " Give the split another name in make_data, e.g. --config.eval.splits=\"('train_eval','test')\".",
        ),
        (
            {"eval.splits": ("test", "extra", "test")},
            "eval.splits=('test', 'extra', 'test') names a split twice. Name each once.",
        ),
    ],
)
def test_sequences(overrides, expected):
    assert message(final, **overrides) == expected


# --- finalize: what get_config may set --------------------------------------------------------------------------------


def drop(key):
    created = base_config().unlock()
    del created.train[key]
    return created


def add(key, value):
    created = base_config().unlock()
    section, _, name = key.rpartition(".")
    (created[section] if section else created)[name] = value
    return created


def retype(key, value):
    created = base_config().unlock()
    with created.ignore_type():
        created[key] = value
    return created


PLAIN = (
    " A value is a bool, int, str, finite float or a tuple of these:"
    " it is kept in config.json and typed on command lines."
)


@pytest.mark.parametrize(
    ("created", "expected"),
    [
        (
            add("train.compiler", "xla"),
            "get_config set 'train.compiler', which the framework does not read. Did you mean 'train.compile'?"
            " Own keys belong in config.data or config.model.",
        ),
        (
            add("zzz", 1),
            "get_config set 'zzz', which the framework does not read. Own keys belong in config.data or config.model.",
        ),
        (
            add("data.batch_sise", 64),
            "get_config set 'data.batch_sise', which is nearly 'data.batch_size'."
            " Write config.data.batch_size, or another name.",
        ),
        (drop("compile"), "get_config dropped 'train.compile'. Start from base_config(), which sets it to 'auto'."),
        (
            ConfigDict(),
            "get_config dropped 'checkpoint.asynchronous'. Start from base_config(), which sets it to True.",
        ),
        (retype("seed", 1.5), "seed=1.5 is of type float, not int. Write e.g. config.seed = 0."),
        (retype("seed", True), "seed=True is of type bool, not int. Write e.g. config.seed = 0."),
        (retype("seed", None), "seed=None is of type NoneType, not int. Write e.g. config.seed = 0."),
        (retype("seed", "3"), "seed='3' is of type str, not int. Write e.g. config.seed = 0."),
        (own(layers=[1, 2]), f"get_config set model.layers=[1, 2].{PLAIN}"),
        (own(layers=((1, 2), 3)), f"get_config set model.layers=((1, 2), 3).{PLAIN}"),
        (own(init=None), f"get_config set model.init=None.{PLAIN}"),
        (own(init=len), f"get_config set model.init=<built-in function len>.{PLAIN}"),
        (own(l2=math.nan), f"get_config set model.l2=nan.{PLAIN}"),
        (own(l2=(1.0, math.inf)), f"get_config set model.l2=(1.0, inf).{PLAIN}"),
    ],
)
def test_get_config_went_wrong(created, expected):
    assert message(finalize, created) == expected


def test_an_own_key_that_no_command_line_can_set():
    assert message(override, own(init=None), ["--config.model.init=3"]) == f"get_config set model.init=None.{PLAIN}"


def test_ints_do_for_floats():
    assert final(schedule__learning_rate=1).schedule.learning_rate == 1.0
    created = base_config().unlock()
    with created.ignore_type():
        created.schedule.learning_rate = 1
    assert finalize(created).schedule.learning_rate == 1


# --- messages of the helpers for experiments --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bounds", "legal"),
    [((0, 1), "at least 0 and at most 1"), ((0, None), "finite and at least 0"), ((None, 1), "finite and at most 1")],
)
def test_check_range(bounds, legal):
    config.check_range("model.dropout", 0.5, *bounds)
    expected = f"model.dropout=nan is out of range: it must be {legal}. Use --config.model.dropout=N."
    assert message(config.check_range, "model.dropout", math.nan, *bounds) == expected


def test_check_range_without_bounds():
    config.check_range("model.x", -(10**400), None, None)
    expected = "model.x=-inf is out of range: it must be finite. Use --config.model.x=N."
    assert message(config.check_range, "model.x", -math.inf, None, None) == expected


def test_check_choice():
    config.check_choice("model.norm", "batch", ("batch", "layer"))
    expected = "model.norm='layr' is not one of batch, layer. Did you mean 'layer'? Use --config.model.norm=layer."
    assert message(config.check_choice, "model.norm", "layr", iter(("batch", "layer"))) == expected
