"""The keys and the checks of framework/config: every rule by its exact message, durations by hand-computed numbers."""

import math

import numpy as np
import pytest
from ml_collections import ConfigDict, FrozenConfigDict

from framework import config
from framework.config import DURATIONS, UserError, base_config, durations, finalize, flatten, resolve, to_steps
from framework.config.keys import KEYS
from framework.config.overrides import override

BASE = flatten(base_config())
CHECK = "--mode=check prints every key."
OVERRIDES = "Overrides look like --config.train.compile=graph."


def final(**overrides):
    """The finalized base config; `__` in a name stands for a dot."""
    return finalize(override(base_config(), {key.replace("__", "."): value for key, value in overrides.items()}))


def own(**values):
    """A base config to which an experiment has added `model.*` keys."""
    created = base_config()
    created.model.update(values)
    return created


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)


# --- every key has a rule ---------------------------------------------------------------------------------------------


def rules(key):
    """Names of the rules that bind a key by itself; types bind bools, texts and tuples enough."""
    has = {
        "choices": key.choices,
        "duration": key.duration,
        "regex": key.regex,
        "bounds": (key.low, key.high) != (None,) * 2,
    }
    return [name for name, is_there in has.items() if is_there]


def test_base_config_is_valid():
    assert flatten(finalize(base_config())) == BASE == {name: key.default for name, key in KEYS.items()}


@pytest.mark.parametrize("name", KEYS)
def test_a_line_is_whole(name):
    key = KEYS[name]
    is_number = type(key.default) in (int, float)
    assert rules(key) == ["bounds"] if is_number else len(rules(key)) <= 1 and "bounds" not in rules(key)
    assert key.duration or not key.required
    assert is_number or not rules(key) or type(key.default) is str
    section = name.rpartition(".")[0]
    for decider, legal in key.only_with.items():
        assert set(legal) < set(KEYS[f"{section}.{decider}"].choices)
    assert key.doc and not key.doc.endswith(".") and len(key.doc) <= 160


def test_defaults_are_legal_by_their_own_line():
    assert all(key.default in key.choices for key in KEYS.values() if key.choices)
    assert all(durations._DURATION.fullmatch(BASE[name]) or not BASE[name] for name in DURATIONS)


def test_sections_are_locked_but_for_the_free_ones():
    created = base_config()
    created.data.own = 1
    created.model.own = 2
    with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
        created.train.own = 3
    with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
        created.own = 4
    done = finalize(created)
    for section in ("data", "model", "train"):
        with pytest.raises(AttributeError, match="cannot be added since the config is locked"):
            done[section].another = 5
    assert (done.data.own, done.model.own) == (1, 2)


# --- flatten, near ----------------------------------------------------------------------------------------------------


def test_flatten():
    nested = ConfigDict({"b": {"y": (1, 2), "x": {"deep": ""}}, "a": 0, "empty": {}})
    assert flatten(nested) == {"b.y": (1, 2), "b.x.deep": "", "a": 0}
    assert list(flatten(nested)) == ["a", "b.x.deep", "b.y"]


@pytest.mark.parametrize(
    ("word", "words", "hint"),
    [
        ("grahp", ("xla", "graph"), " Did you mean 'graph'?"),
        ("GRAPH", ("xla", "graph"), " Did you mean 'graph'?"),
        ("graph", ("xla", "Graph"), " Did you mean 'Graph'?"),
        ("zzz", ("xla", "graph"), ""),
        ("", ("xla",), ""),
        ("xla", (), ""),
    ],
)
def test_near(word, words, hint):
    assert config.near(word, words) == hint


# --- finalize: one wrong value ----------------------------------------------------------------------------------------

CHOICES = {name: key.choices for name, key in KEYS.items() if key.choices}


@pytest.mark.parametrize("key", CHOICES)
def test_not_one_of_the_choices(key):
    first, listed = CHOICES[key][0], ", ".join(CHOICES[key])
    for value in ("zzzz", "", "☃"):
        expected = f"{key}='{value}' is not one of {listed}. Use --config.{key}={first}."
        assert message(final, **{key: value}) == expected
    last = CHOICES[key][-1]
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
    "lookahead.power": {"lookahead.every": 1},
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
        assert flatten(final(**{key: ""}))[key] == ""


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


# --- finalize: contradictions -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        *[
            (
                {key: value},
                f"{key}='{value}' is not split/metric with a split of eval.splits=('test',)."
                f" Type e.g. --config.{key}=test/{example}.",
            )
            for key in ("early_stopping.metric", "checkpoint.best_metric")
            for value, example in [
                ("loss", "loss"),
                ("accuracy", "loss"),
                ("/loss", "loss"),
                ("test/", "loss"),
                ("tset/accuracy", "accuracy"),
            ]
        ],
        (
            {"resume_from": "runs/a", "init_from": "runs/b"},
            "resume_from='runs/a' continues a whole state and init_from='runs/b' starts from weights alone. Use one"
            " of them: --config.resume_from= or --config.init_from=.",
        ),
        (
            {"init_map": ("head/.* -> ",)},
            "init_map=('head/.* -> ',) has no effect without init_from."
            " Type e.g. --config.init_from=runs/first, or --config.init_map='()'.",
        ),
        (
            {"init_weights": "ema", "resume_from": "runs/a"},
            "init_weights='ema' has no effect without init_from."
            " Type e.g. --config.init_from=runs/first, or --config.init_weights=model.",
        ),
        (
            {"early_stopping.metric": "test/loss", "eval.every": ""},
            "early_stopping.metric='test/loss' needs evaluations during training, but eval.every=''."
            " Type e.g. --config.eval.every='1 epoch'.",
        ),
        (
            {"export.checkpoint": "best"},
            "export.checkpoint='best' needs checkpoint.best_metric, which is ''."
            " Type e.g. --config.checkpoint.best_metric=test/accuracy.",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.nesterov": True},
            "optimizer.nesterov=True needs optimizer.momentum > 0. Use --config.optimizer.momentum=0.9.",
        ),
        (
            {"runtime.devices": 2},
            "runtime.devices=2 has no effect with runtime.strategy='one_device'."
            " Use --config.runtime.strategy=mirrored or --config.runtime.devices=0.",
        ),
        (
            {"runtime.strategy": "mirrored", "runtime.devices": 4, "runtime.virtual_devices": 2},
            "runtime.devices=4 is more than runtime.virtual_devices=2. Use --config.runtime.virtual_devices=4.",
        ),
        (
            {"runtime.strategy": "mirrored", "train.compile": "xla_update"},
            "train.compile='xla_update' does not work with runtime.strategy='mirrored': XLA cannot assign to the copies"
            " of a variable. Use --config.train.compile=auto.",
        ),
        (
            {"runtime.strategy": "mirrored", "runtime.all_reduce": "ring"},
            "runtime.all_reduce='ring' is not one that runtime.strategy='mirrored' has: auto, nccl, hierarchical,"
            " one_device. Use --config.runtime.all_reduce=auto.",
        ),
        (
            {"optimizer.nesterov": True},
            "optimizer.nesterov=True has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=sgd or --config.optimizer.nesterov=False.",
        ),
        (
            {"optimizer.momentum": 0.9},
            "optimizer.momentum=0.9 has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=sgd or --config.optimizer.momentum=0.0.",
        ),
        (
            {"optimizer.weight_decay": 0.01},
            "optimizer.weight_decay=0.01 has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=adamw or --config.optimizer.weight_decay=0.0.",
        ),
        (
            {"optimizer.name": "sgd", "optimizer.beta_1": 0.8},
            "optimizer.beta_1=0.8 has no effect with optimizer.name='sgd'."
            " Use --config.optimizer.name=adam or --config.optimizer.beta_1=0.9.",
        ),
        (
            {"optimizer.name": "lion", "optimizer.epsilon": 1e-3},
            "optimizer.epsilon=0.001 has no effect with optimizer.name='lion'."
            " Use --config.optimizer.name=adam or --config.optimizer.epsilon=1e-07.",
        ),
        (
            {"schedule.final_fraction": 0.1},
            "schedule.final_fraction=0.1 has no effect with schedule.name='constant'."
            " Use --config.schedule.name=cosine or --config.schedule.final_fraction=0.0.",
        ),
        (
            {"schedule.boundaries": ("1 epoch",)},
            "schedule.boundaries=('1 epoch',) has no effect with schedule.name='constant'."
            " Use --config.schedule.name=piecewise or --config.schedule.boundaries='()'.",
        ),
        (
            {"schedule.factors": (0.1,), "schedule.name": "cosine"},
            "schedule.factors=(0.1,) has no effect with schedule.name='cosine'."
            " Use --config.schedule.name=piecewise or --config.schedule.factors='()'.",
        ),
        (
            {"train.micro_batches": 3},
            "data.batch_size=128 is not divisible by train.micro_batches=3. Use --config.data.batch_size=129.",
        ),
        (
            {"train.micro_batches": 5, "data.batch_size": 4},
            "data.batch_size=4 is not divisible by train.micro_batches=5. Use --config.data.batch_size=5.",
        ),
        (
            {"train.precision": "float16", "loss_scale.name": "none"},
            "train.precision='float16' needs a loss scale, or small gradients become 0, but loss_scale.name='none'."
            " Use --config.loss_scale.name=dynamic.",
        ),
        (
            {"loss_scale.initial": 2.0},
            "loss_scale.initial=2.0 has no effect: with loss_scale.name='auto' only train.precision='float16' has a"
            " loss scale, and it is 'float32'. Use --config.loss_scale.name=dynamic.",
        ),
        (
            {"loss_scale.name": "static", "loss_scale.growth_interval": 5},
            "loss_scale.growth_interval=5 has no effect with loss_scale.name='static'."
            " Use --config.loss_scale.name=dynamic or --config.loss_scale.growth_interval=2000.",
        ),
        (
            {"train.precision": "float16", "loss_scale.initial": 0.5},
            "loss_scale.initial=0.5 is not between loss_scale.floor=1 and loss_scale.ceiling=1.67772e+07."
            " Use --config.loss_scale.initial=1.",
        ),
        (
            {"train.nonfinite_limit": 5},
            "train.nonfinite_limit=5 has no effect with train.on_nonfinite='stop'."
            " Use --config.train.on_nonfinite=skip or --config.train.nonfinite_limit=10.",
        ),
        (
            {"clip.threshold": 0.5},
            "clip.threshold=0.5 has no effect with clip.name='none'."
            " Use --config.clip.name=global_norm or --config.clip.threshold=1.0.",
        ),
        (
            {"train.remat": "block_("},
            "train.remat='block_(' is not a regular expression: missing ), unterminated subpattern at position 6.",
        ),
        (
            {"clip.name": "adaptive", "clip.exclude": "*"},
            "clip.exclude='*' is not a regular expression: nothing to repeat at position 0.",
        ),
        (
            {"eval.splits": ("test", "test@ema")},
            "eval.splits has 'test@ema', but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.",
        ),
        (
            {"export.weights": "ema"},
            "export.weights='ema', but no average is kept: ema.decay=0. Type e.g. --config.ema.decay=0.999.",
        ),
        (
            {"lookahead.alpha": 0.8},
            "lookahead.alpha=0.8 has no effect with lookahead.every=0."
            " Type e.g. --config.lookahead.every=5, or --config.lookahead.alpha=0.5.",
        ),
        (
            {"lookahead.power": 3.0},
            "lookahead.power=3.0 has no effect with lookahead.every=0."
            " Type e.g. --config.lookahead.every=5, or --config.lookahead.power=0.0.",
        ),
        (
            {"optimizer.rescale_weights": True},
            "optimizer.rescale_weights=True has no effect with optimizer.name='adam'."
            " Use --config.optimizer.name=muon or --config.optimizer.rescale_weights=False.",
        ),
        (
            {"schedule.start_fraction": 0.1},
            "schedule.start_fraction=0.1 has no effect without a warm-up. Type e.g. --config.schedule.warmup=5%.",
        ),
        (
            {"schedule.name": "one_cycle"},
            "schedule.name='one_cycle' rises over schedule.warmup, which is ''. Use --config.schedule.warmup=30%.",
        ),
        (
            {"schedule.name": "restarts"},
            "schedule.name='restarts' needs schedule.period, which is ''."
            " Type e.g. --config.schedule.period='5 epochs'.",
        ),
        (
            {"schedule.name": "inverse_sqrt"},
            "schedule.name='inverse_sqrt' needs schedule.warmup or schedule.timescale. Type e.g."
            " --config.schedule.warmup='4000 steps'.",
        ),
        (
            {"schedule.name": "piecewise"},
            "schedule.name='piecewise' needs as many schedule.factors (0) as schedule.boundaries (0), at least one."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".',
        ),
        (
            {"schedule.name": "piecewise", "schedule.boundaries": ("1%", "2%"), "schedule.factors": (0.1,)},
            "schedule.name='piecewise' needs as many schedule.factors (1) as schedule.boundaries (2), at least one."
            " Type e.g. --config.schedule.boundaries=\"('2 epochs','4 epochs')\""
            ' --config.schedule.factors="(0.1,0.01)".',
        ),
    ],
)
def test_contradictions(overrides, expected):
    assert message(final, **overrides) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        {"eval.splits": ("test", "test@ema"), "ema.decay": 0.9, "checkpoint.best_metric": "test@ema/loss"},
        {"train.precision": "float16", "loss_scale.growth_interval": 5},
        {"train.precision": "float16", "loss_scale.name": "static", "loss_scale.initial": 2.0**40},
        {"eval.splits": ("a", "b"), "early_stopping.metric": "b/x/y", "checkpoint.best_metric": "a/loss"},
        {"export.checkpoint": "best", "checkpoint.best_metric": "test/accuracy"},
        {"optimizer.name": "sgd", "optimizer.momentum": 0.9, "optimizer.nesterov": True},
        {"optimizer.name": "adamw", "optimizer.weight_decay": 0.1},
        {"optimizer.name": "sgd", "optimizer.weight_decay": 0.1},
        {"schedule.name": "cosine", "schedule.final_fraction": 0.1},
        {"schedule.name": "piecewise", "schedule.boundaries": ("1 epoch", "50%"), "schedule.factors": (0, 0.1)},
        {"eval.every": "", "checkpoint.best_metric": "test/loss"},
    ],
)
def test_no_contradiction(overrides):
    changed = flatten(final(**overrides))
    assert {key: changed[key] for key in overrides} == overrides


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("momentum", 0.9),
        ("nesterov", True),
        ("weight_decay", 0.1),
        ("beta_1", 0.8),
        ("beta_2", 0.8),
        ("epsilon", 1e-3),
    ],
)
def test_a_section_that_the_experiment_reads_binds_no_key_to_another(key, value):
    for name in ("sgd", "adam", "lion"):
        created = override(base_config(), {"optimizer.name": name, f"optimizer.{key}": value})
        assert finalize(created, own=("optimizer",)).optimizer[key] == value
    with pytest.raises(UserError, match=r"clip\.threshold=0\.5 has no effect"):
        finalize(override(base_config(), {"clip.threshold": 0.5}), own=("optimizer",))


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


# --- durations --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("duration", "steps"),
    [  # 60,000 examples in batches of 128: 468.75 steps an epoch; a run of 1,000 steps
        ("", 0),
        ("5 epochs", 2344),
        ("1 epoch", 469),
        ("4 epochs", 1875),
        ("0.5 epochs", 235),
        ("0.001 epochs", 1),
        ("7 steps", 7),
        ("1 step", 1),
        ("1.5 steps", 2),
        ("1e3 steps", 1000),
        ("2.5e2 STEPS", 250),
        ("128 examples", 1),
        ("129 examples", 2),
        ("60000 examples", 469),
        ("1 example", 1),
        ("50%", 500),
        ("0.1%", 1),
        ("0.11 %", 2),
        ("100 percent", 1000),
        (" 3  epochs ", 1407),
        ("3epochs", 1407),
        ("1e15 steps", 10**15),
    ],
)
def test_to_steps(duration, steps):
    assert to_steps(duration, 468.75, 128, total_steps=1000) == steps


def test_rounding_does_not_add_a_step():
    assert to_steps("3 epochs", 1 / 3, 1) == 1
    assert to_steps("30%", 1.0, 1, total_steps=10) == 3
    assert to_steps("7%", 1.0, 1, total_steps=100) == 7  # 7 * 100 / 100 is 7.000000000000001 if divided first


def test_to_steps_refuses():
    assert message(to_steps, "soon", 10.0, 1) == "'soon' is not a duration; write e.g. '2 epochs'."
    assert message(to_steps, "5%", 10.0, 1) == "'5%' is a share of a total that is not known yet."


def test_resolve():
    typed = final(
        train__duration="5 epochs",
        schedule__name="piecewise",
        schedule__boundaries=("50%", "4 epochs", "2000 steps"),
        schedule__factors=(0.1, 0.01, 0.001),
        schedule__warmup="6400 examples",
        eval__every="",
        log__every="10%",
        checkpoint__every="2 epochs",
    )
    resolved = resolve(typed, steps_per_epoch=468.75)
    assert isinstance(resolved, FrozenConfigDict)
    assert resolved.schedule.boundaries == (1172, 1875, 2000)
    steps = {key: flatten(resolved)[key] for key in DURATIONS}
    assert steps == {
        "train.duration": 2344,
        "schedule.warmup": 50,
        "schedule.period": 0,
        "schedule.timescale": 0,
        "eval.every": 0,
        "log.every": 235,
        "log.histograms_every": 469,
        "checkpoint.every": 938,
    }
    rest = {key: value for key, value in flatten(typed).items() if key not in {*DURATIONS, "schedule.boundaries"}}
    assert {key: flatten(resolved)[key] for key in rest} == rest
    assert typed.train.duration == "5 epochs"
    with pytest.raises(AttributeError, match="immutable"):
        resolved.seed = 1


def test_resolve_turns_the_ends_of_groups_into_steps():
    groups = ("until=9epochs/.*: lr=2 until=3epochs", "a:b: until=40%", "head/.*: frozen", "c: until=100steps decay=0")
    resolved = resolve(final(optimizer__groups=groups), steps_per_epoch=468.75)
    ends = (
        "until=9epochs/.*: lr=2 until=1407steps",
        "a:b: until=938steps",
        "head/.*: frozen",
        "c: until=100steps decay=0",
    )
    assert resolved.optimizer.groups == ends


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (
            {"optimizer.groups": ("whiten/bias: until=6epochs",)},
            "optimizer.groups: 'whiten/bias: until=6epochs' ends at step 2813, but train.duration ends at step 2344."
            " Leave until out, or shorten it.",
        ),
        (
            {"schedule.warmup": "5 epochs"},
            "schedule.warmup='5 epochs' reaches step 2344, but train.duration='5 epochs' ends at step 2344."
            " Shorten schedule.warmup.",
        ),
        (
            {"schedule.warmup": "100%"},
            "schedule.warmup='100%' reaches step 2344, but train.duration='5 epochs' ends at step 2344."
            " Shorten schedule.warmup.",
        ),
        (
            {"train.duration": "1 step", "schedule.warmup": "1 step"},
            "schedule.warmup='1 step' reaches step 1, but train.duration='1 step' ends at step 1."
            " Shorten schedule.warmup.",
        ),
        (
            {"schedule.name": "piecewise", "schedule.boundaries": ("3 epochs", "9 epochs"), "schedule.factors": (1, 1)},
            "schedule.boundaries=('3 epochs', '9 epochs') reaches step 4219, but train.duration='5 epochs' ends at step"
            " 2344. Shorten schedule.boundaries.",
        ),
        (
            {"schedule.name": "piecewise", "schedule.boundaries": ("3 epochs", "50%"), "schedule.factors": (1, 1)},
            "schedule.boundaries=('3 epochs', '50%') are steps (1407, 1172): they must increase.",
        ),
        (
            {"schedule.name": "piecewise", "schedule.boundaries": ("1 epoch", "469 steps"), "schedule.factors": (1, 1)},
            "schedule.boundaries=('1 epoch', '469 steps') are steps (469, 469): they must increase.",
        ),
    ],
)
def test_resolve_refuses(overrides, expected):
    assert message(resolve, final(**overrides), 468.75) == expected


def test_the_longest_run_fits_an_int64():
    longest = resolve(final(train__duration="1e6 epochs"), steps_per_epoch=2.0**31).train.duration
    assert longest == 10**6 * 2**31 < 2**63
