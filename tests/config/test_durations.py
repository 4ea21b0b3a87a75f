"""framework/config/durations.py against numbers computed by hand."""

import pytest
from ml_collections import FrozenConfigDict

from framework.config import DURATIONS, flatten, resolve, to_steps
from tests.config.finalized import final, message


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
        "prune.begin": 235,
        "prune.end": 1758,
        "prune.every": 24,
        "cluster.begin": 0,
        "quantize.begin": 0,
        "quantize.freeze": 0,
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
        (
            {"prune.sparsity": 0.8, "prune.begin": "4 epochs"},
            "prune.begin='4 epochs' and prune.end='75%' are updates 1875 and 1758: they must increase and be within the"
            " run, which has 2344 steps. Type e.g. --config.prune.begin=10% --config.prune.end=75%.",
        ),
        (
            {"cluster.name": "kmeans", "cluster.begin": "5 epochs"},
            "cluster.begin='5 epochs' is update 2344 of a run of 2344 steps, so nothing would be clustered. Type e.g."
            " --config.cluster.begin=50%.",
        ),
        (
            {"cluster.name": "kmeans", "cluster.begin": "50%", "prune.sparsity": 0.8},
            "cluster.begin='50%' is update 1172, before the last masks of prune.end='75%', update 1758: later masks"
            " would take weights out of their clusters. Type --config.cluster.begin='1758 steps', or"
            " --config.prune.schedule=keep.",
        ),
        (
            {"quantize.name": "int8", "quantize.freeze": "5 epochs"},
            "quantize.freeze='5 epochs' is update 2344 of a run of 2344 steps, so no range would stay. Type e.g."
            " --config.quantize.freeze=50%, or --config.quantize.freeze=.",
        ),
    ],
)
def test_resolve_refuses(overrides, expected):
    assert message(resolve, final(**overrides), 468.75) == expected


def test_the_longest_run_fits_an_int64():
    longest = resolve(final(train__duration="1e6 epochs"), steps_per_epoch=2.0**31).train.duration
    assert longest == 10**6 * 2**31 < 2**63
