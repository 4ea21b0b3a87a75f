"""Another run in the folder of a run: what goes on, what is looked back at, what is refused."""

from pathlib import Path

import pytest
from ml_collections import ConfigDict

from framework import config
from framework.config import UserError
from framework.run import build
from tests.launch.started import CHECK, ELSEWHERE, EXPERIMENT, Reached, accepted, small_config, started_run


def without(stored, section, key):
    return {**stored, section: {name: value for name, value in stored[section].items() if name != key}}


@pytest.mark.parametrize(
    ("stored", "listed"),
    [
        (small_config(seed=3), "seed: 3 there, 0 now"),
        (
            small_config(train__compile="graph", model__width=9, eval__splits=("a", "b")),
            "eval.splits: ['a', 'b'] there, ['test'] now; model.width: 9 there, 4 now;"
            " train.compile: 'graph' there, 'auto' now",
        ),
        (small_config(data__dir="/elsewhere", seed=3), "seed: 3 there, 0 now"),
        (without(small_config(), "model", "width"), "model.width: 'absent' there, 4 now"),
        ({**small_config(), "old": 1}, "old: 1 there, 'absent' now"),
        (
            {**small_config(), **{f"old{number}": 1 for number in range(7)}},
            "; ".join(f"old{number}: 1 there, 'absent' now" for number in range(5)) + "; and 2 more",
        ),
    ],
)
def test_another_config_in_the_same_folder(refused, stored, listed):
    started_run(stored)
    before = {path.name: path.read_bytes() for path in Path("r").iterdir()}
    expected = f"--workdir=r holds a run of another config ({listed}).{ELSEWHERE}"
    assert refused("--config=x.py:small", "--workdir=r") == expected
    assert {path.name: path.read_bytes() for path in Path("r").iterdir()} == before


def test_another_duration_and_more_in_the_same_folder(refused):
    started_run(small_config(train__duration="3 epochs", seed=3))
    said = refused("--config=x.py:small", "--workdir=r", "--config.train.duration=4 epochs")
    assert said == (
        "--workdir=r holds a run of another config (seed: 3 there, 0 now; train.duration: '3 epochs' there, '4 epochs'"
        " now). To train longer, type the rest as it is there. Else use another folder; there,"
        " --config.resume_from=r continues this run."
    )


def test_another_experiment_in_the_same_folder(refused):
    started_run(small_config(), copy="y.py")
    expected = f"--workdir=r holds a run of another config (experiment: x.py now, another file there).{ELSEWHERE}"
    assert refused("--config=x.py:small", "--workdir=r") == expected


@pytest.mark.parametrize("moved", [{}, {"data__dir": "/elsewhere"}])
def test_the_same_config_goes_on(moved):
    started_run(small_config(**moved))
    assert accepted("--config=x.py:small", "--workdir=r").model.width == 4


def test_an_edited_experiment_goes_on_with_a_warning(caplog):
    started_run(small_config())
    Path("x.py").write_text(EXPERIMENT + "# a note\n")
    with caplog.at_level("WARNING", "absl"):
        accepted("--config=x.py:small", "--workdir=r")
    assert [record.getMessage() for record in caplog.records] == ["x.py has changed since r was started"]


@pytest.mark.parametrize("mode", ["evaluate", "export", "replay"])
def test_looking_back_takes_the_config_of_the_run(mode):
    started_run(small_config(seed=3, eval__splits=("a", "b")))
    step = ["--step=3"] if mode == "replay" else []
    key = "data.batch_size" if mode == "replay" else "eval.batch_size"
    own = ["--config.seed=3", "--config.train.duration=5 epochs"]  # as the run has them
    final = accepted("--config=x.py", "--workdir=r", f"--mode={mode}", f"--config.{key}=7", *own, *step)
    assert (final.seed, final.model.width, final.eval.splits, config.flatten(final)[key]) == (3, 4, ("a", "b"), 7)


@pytest.mark.parametrize(
    ("mode", "key", "value", "own"),
    [
        *((mode, "train.duration", "'9 steps'", "'5 epochs'") for mode in ("evaluate", "export")),
        ("evaluate", "data.batch_size", "64", "128"),
        ("evaluate", "export.examples", "7", "10000"),
        ("export", "schedule.learning_rate", "0.5", "0.001"),
        ("export", "seed", "4", "0"),
        *(("replay", key, value, own) for key, value, own in (
            ("eval.batch_size", "7", "1000"), ("log.every", "'9 steps'", "'100 steps'"),
            ("checkpoint.keep", "9", "3"), ("export.examples", "9", "10000"),
        )),
    ],
)  # fmt: skip
def test_what_a_look_at_a_run_does_not_read_is_refused(refused, mode, key, value, own):
    started_run(small_config())
    arguments = ["--config=x.py", "--workdir=r", f"--mode={mode}", f"--config.{key}={value.strip(chr(39))}"]
    assert refused(*arguments, *(["--step=3"] if mode == "replay" else [])) == (
        f"--config.{key}={value} has no effect with --mode={mode}, which takes the {key} of the run ({own})."
        " Leave it out."
    )


def test_which_checkpoint_is_evaluated_is_said_by_the_flag(refused):
    started_run(small_config(checkpoint__best_metric="test/loss"))
    arguments = ["--config=x.py", "--workdir=r", "--config.export.checkpoint=best"]
    assert refused(*arguments, "--mode=evaluate") == (
        "--config.export.checkpoint=best has no effect with --mode=evaluate, which takes the export.checkpoint of the"
        " run (last). Type --checkpoint=best, or leave it out."
    )
    assert accepted(*arguments, "--mode=export").export.checkpoint == "best"


def test_looking_back_at_a_run_of_an_older_file(refused):
    started_run(small_config() | {"model": {"width": 4, "depth": 2}})
    expected = "the run's config.json sets 'model.depth', which its experiment file no longer has. Put it back."
    assert refused("--config=x.py", "--workdir=r", "--mode=evaluate") == expected


def test_looking_back_at_a_run_of_another_file(refused):
    started_run(small_config() | {"model": {"width": 4, "depth": 2}}, copy="y.py")
    assert refused("--config=x.py", "--workdir=r", "--mode=evaluate") == (
        "--workdir=r holds a run of another experiment: x.py now, y.py there. Type --config= with its file, or another"
        " --workdir."
    )


@pytest.mark.parametrize(
    ("mode", "typed", "fault", "key", "culprit"),
    [
        (
            *("export", "export.checkpoint=best"),
            *("export.checkpoint='best' needs checkpoint.best_metric, which is ''", "checkpoint.best_metric"),
            "export.checkpoint",
        ),
        (
            *("export", "export.weights=ema"),
            *("export.weights='ema', but no average is kept: ema.decay=0", "ema.decay"),
            "export.weights",
        ),
        (
            *("evaluate", "eval.splits=('test@ema',)"),
            *("eval.splits has 'test@ema', but no average is kept: ema.decay=0", "ema.decay"),
            "eval.splits",
        ),
    ],
)
def test_advice_is_none_that_a_look_at_a_run_refuses(refused, mode, typed, fault, key, culprit):
    started_run(small_config())
    arguments = ["--config=x.py", "--workdir=r", "--config.eval.batch_size=7", f"--config.{typed}"]
    assert refused(*arguments, f"--mode={mode}") == (
        f"{fault}. --mode={mode} takes the {key} of the run. Leave out --config.{culprit}."
    )


def test_advice_that_a_look_at_a_run_follows_stays(refused):
    started_run(small_config())
    arguments = ["--config=x.py", "--workdir=r", "--mode=replay", "--step=3"]
    said = refused(*arguments, "--config.loss_scale.growth_factor=3")
    assert said.endswith("and it is 'float32'. Use --config.loss_scale.name=dynamic.")


@pytest.mark.parametrize(("own", "scale"), [("float16", "dynamic"), ("float32", "none")])
def test_a_look_in_another_precision_has_the_loss_scale_of_the_run(own, scale):
    started_run(small_config(train__precision=own))
    other = "float16" if own == "float32" else "float32"
    arguments = ["--config=x.py", "--workdir=r", "--mode=evaluate"]
    final = accepted(*arguments, f"--config.train.precision={other}")
    assert (final.train.precision, final.loss_scale.name) == (other, scale)
    assert accepted(*arguments, f"--config.train.precision={own}").loss_scale.name == "auto"


def test_build_from_python_says_the_same():
    with pytest.raises(UserError) as caught:
        build.build("x.py", {"model.widht": 3}, "r")
    assert (
        str(caught.value)
        == f"--config.model.widht=3: there is no key 'model.widht'. Did you mean 'model.width'? {CHECK}"
    )
    with pytest.raises(Reached) as reached:
        build.build("x.py:small", {"seed": 3}, Path("r"))
    assert config.flatten(reached.value.args[0]) == config.flatten(ConfigDict(small_config(seed=3)))
    assert not Path("r").exists()
