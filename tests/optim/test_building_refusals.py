"""Optimizers, groups and schedules that do not fit a model are refused in one line."""

import pytest
import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import optim
from framework.config import UserError
from tests.optim.grouped import counter, falling, make_config, make_model, make_models, make_sgd, rising


def make_untold(cfg, learning_rate):
    return keras.optimizers.SGD(0.1)


FROZEN = (
    "nothing of '{}' is trained: optimizer.groups={} freezes all of it, or it has no trainable variable."
    " Train a part of it{}"
)
OWN_RATE = (
    "make_optimizer returned an optimizer with a learning rate of its own, so the schedule would be logged"
    " and not used. Pass its argument on: learning_rate=learning_rate."
)
OTHERWISE = ", or leave it out of what make_optimizer returns."
SINGLE = {
    "a decay of nothing": (
        optim.make_optimizer,
        make_config(groups=(".*/bias: decay=0", ".*/kernel: lr=1"), weight_decay=0.0),
        "optimizer.groups: '.*/bias: decay=0' has no effect with optimizer.weight_decay=0."
        " Type e.g. --config.optimizer.weight_decay=0.01.",
    ),
    "a text that is no group": (
        optim.make_optimizer,
        make_config(groups=(".*",)),
        "optimizer.groups: '.*' is not a regex, ':' and settings."
        " Type e.g. '.*/bias: decay=0', '.*/kernel: lr=0.1 decay=2', 'head/.*: name=adamw' or 'head/.*: frozen'.",
    ),
    "a key of another rule": (
        optim.make_optimizer,
        make_config(groups=(".*/bias: momentum=0.9",)),
        "optimizer.groups: '.*/bias': optimizer.momentum=0.9 has no effect with optimizer.name='adamw'."
        " Use --config.optimizer.name=sgd or --config.optimizer.momentum=0.0. For this group alone, type"
        " in it e.g. 'name=sgd' or 'decay=0'.",
    ),
    "a decay that the rule of the group does not have": (
        optim.make_optimizer,
        make_config(groups=(".*/bias: name=adam",)),
        "optimizer.groups: '.*/bias': optimizer.weight_decay=0.2 has no effect with optimizer.name='adam'."
        " Use --config.optimizer.name=adamw or --config.optimizer.weight_decay=0.0. For this group alone, type"
        " in it e.g. 'name=sgd' or 'decay=0'.",
    ),
    "a pattern of nothing": (
        optim.make_optimizer,
        make_config(groups=("body/kernels: lr=1", "body/bias: frozen")),
        "optimizer.groups: 'body/kernels' covers nothing (did you mean 'body/kernel'?). Each pattern must cover a"
        " parameter, and no parameter may be in two groups; those in none have lr=1 and decay=1.",
    ),
    "all frozen": (
        optim.make_optimizer,
        make_config(groups=(".*: frozen",)),
        FROZEN.format("model", "('.*: frozen',)", "."),
    ),
    "a rate of its own": (make_untold, make_config(), OWN_RATE),
    "an entry of no model": (
        lambda cfg, learning_rate: {"critic": make_sgd(cfg, learning_rate)},
        make_config(),
        "make_optimizer returned an entry 'critic', but make_model returned model.",
    ),
}
SEVERAL = {
    "one frozen": (
        optim.make_optimizer,
        make_config(groups=("generator/.*: frozen", "critic/.*: lr=1")),
        FROZEN.format("generator", "('generator/.*: frozen', 'critic/.*: lr=1')", OTHERWISE),
    ),
    "a slip of the pen": (
        lambda cfg, rates: {"critics": make_sgd(cfg, rates["critic"])},
        make_config(),
        "make_optimizer returned an entry 'critics', but make_model returned generator, critic. Did you mean 'critic'?",
    ),
    "the rate of another": (
        lambda cfg, rates: {"critic": make_sgd(cfg, rates["generator"])},
        make_config(),
        OWN_RATE,
    ),
    "none": (lambda cfg, rates: {}, make_config(), FROZEN.format("generator", "()", OTHERWISE)),
}


@pytest.mark.parametrize(("make", "config", "problem"), SINGLE.values(), ids=SINGLE)
def test_what_does_not_fit_a_model_is_refused(make, config, problem):
    with pytest.raises(UserError) as error:
        optim.build_optimizers(make, make_model(), falling, counter(), config)
    assert str(error.value) == problem


@pytest.mark.parametrize(("make", "config", "problem"), SEVERAL.values(), ids=SEVERAL)
def test_what_does_not_fit_several_models_is_refused(make, config, problem):
    with pytest.raises(UserError) as error:
        optim.build_optimizers(make, make_models(), falling, counter(), config)
    assert str(error.value) == problem


@pytest.mark.parametrize("kind", ["float16", "bfloat16"])
def test_parameters_in_half_precision_are_refused(kind):
    """A loss scale of 2**17 is infinite in float16, and gradients divided by it are 0: nothing would move."""
    model = keras.Sequential([keras.layers.Dense(3, dtype=kind), keras.layers.Dense(2, dtype=f"mixed_{kind}")])
    model.build((None, 4))
    with pytest.raises(UserError) as error:
        optim.build_optimizers(optim.make_optimizer, model, falling, counter(), make_config())
    assert str(error.value) == (
        f"the parameter 'dense/kernel' is {kind}, in which small updates are lost. Its layer was given dtype='{kind}':"
        f" leave that out under --config.train.precision={kind}, or give it dtype='mixed_{kind}'."
    )
    model.layers[0].trainable = False
    optim.build_optimizers(optim.make_optimizer, model, falling, counter(), make_config())


def test_clipping_that_excludes_nothing_is_refused():
    def build(exclude, model):
        config = ConfigDict(make_config().to_dict())
        config.clip.exclude = exclude
        return optim.build_optimizers(optim.make_optimizer, model, falling, counter(), FrozenConfigDict(config))

    for exclude in ("head/.*", "body/bias|head", ""):
        build(exclude, make_model())
    build("body/.*", make_models())  # a path inside its model
    for model in (make_model(), make_models()):
        with pytest.raises(UserError) as error:
            build("model/head/.*", model)
        assert str(error.value) == (
            "clip.exclude='model/head/.*' matches no trained parameter. Parameters: body/kernel, body/bias,"
            " head/kernel, head/bias. Use --config.clip.exclude='' to leave out none."
        )


def test_a_model_without_trainable_variables_is_refused():
    model = make_model()
    model.trainable = False
    with pytest.raises(UserError) as error:
        optim.build_optimizers(optim.make_optimizer, model, falling, counter(), make_config())
    assert str(error.value) == FROZEN.format("model", "()", ".")


def test_schedules_that_do_not_fit_the_models_are_refused():
    with pytest.raises(UserError) as error:
        optim.schedules_of({"generater": falling, "critic": rising}, make_models())
    assert str(error.value) == (
        "make_schedule returned an entry 'generater', but make_model returned generator, critic."
        " Did you mean 'generator'?"
    )
    with pytest.raises(UserError) as error:
        optim.schedules_of({"critic": rising}, make_models())
    assert str(error.value) == (
        "make_schedule returned no schedule for model 'generator'. Add one, or return a single one."
    )
