"""Every option of every optimizer of tf_keras: trained as there, or refused."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import optim, paths
from framework.config import UserError
from tests import small
from tests.optim.taken_over import (
    CLIPS,
    COMMON,
    GROUPED,
    OWN,
    REFUSED,
    as_in_tf_keras,
    built,
    gradients_of_steps,
    make_config,
    make_model,
    refused,
    sgd,
)

KINDS = {name: getattr(keras.optimizers, name) for name in OWN}


def test_every_optimizer_and_every_option_of_tf_keras_is_looked_at():
    classes = {
        name
        for name, kind in vars(keras.optimizers).items()
        if inspect.isclass(kind) and issubclass(kind, keras.optimizers.Optimizer)
    }
    assert classes == {*OWN, "Nadam", "Optimizer"}
    for name, kind in KINDS.items():
        known = {"self", "learning_rate", "kwargs", *COMMON, *OWN[name], *CLIPS, *REFUSED}
        assert set(inspect.signature(kind.__init__).parameters) <= known, name
        defaults = inspect.signature(kind.__init__).parameters
        assert all(value != defaults[option].default for option, value in OWN[name].items()), name


@pytest.mark.parametrize("name", OWN)
def test_all_its_options_train_as_in_tf_keras(name):
    options = {**COMMON, **OWN[name], "clipvalue": CLIPS["clipvalue"]}
    assert as_in_tf_keras(lambda rate: KINDS[name](rate, **options), "graph", exclude=["bias"]) < 1e-13


@pytest.mark.parametrize("option", CLIPS)
@pytest.mark.parametrize("mode", ["eager", "xla"])
def test_one_way_to_clip_is_that_of_tf_keras_in_one_group(option, mode):
    assert as_in_tf_keras(lambda rate: keras.optimizers.SGD(rate, **{option: CLIPS[option]}), mode) < 1e-13


@pytest.mark.parametrize("option", ["clipnorm", "clipvalue"])
def test_a_clip_of_each_parameter_is_the_same_in_groups(option):
    def make(cfg, learning_rate):
        return keras.optimizers.SGD(learning_rate, **{option: CLIPS[option]})

    ends = []
    for groups in ((), (".*/bias: lr=1",)):
        model = make_model()
        optimizer, _ = built(make, make_config(groups), model)
        assert len(optimizer.groups) == 1 + len(groups)
        optimizer.apply(gradients_of_steps(model)[0])
        ends.append(np.concatenate([v.numpy().ravel() for v in model.trainable_variables]))
    assert np.array_equal(*ends)


@pytest.mark.parametrize("name", [*OWN, "Nadam"])
def test_an_average_of_tf_keras_is_refused(name):
    message = refused(lambda cfg, rate: getattr(keras.optimizers, name)(rate, use_ema=True, ema_momentum=0.9))
    assert message.startswith(f"make_optimizer: use_ema=True of {name} needs the end of tf_keras's fit")
    assert "type --config.ema.decay=0.9;" in message


@pytest.mark.parametrize("option", ["ema_momentum", "ema_overwrite_frequency"])
def test_a_setting_of_an_average_that_there_is_not_is_refused(option):
    message = refused(sgd(**{option: REFUSED[option]}))
    assert message.startswith(f"make_optimizer: {option}={REFUSED[option]} of SGD has no effect without use_ema")


def test_a_global_norm_of_groups_is_refused_with_what_to_type():
    assert refused(sgd(global_clipnorm=0.5), GROUPED) == (
        "make_optimizer: global_clipnorm=0.5 of SGD would clip each of the 2 groups of optimizer.groups by its own"
        " norm. Leave it out and type --config.clip.name=global_norm --config.clip.threshold=0.5."
    )
    built(sgd(global_clipnorm=0.5), make_config((".*/bias: frozen",)))  # one group is trained


@pytest.mark.parametrize("name", ["global_norm", "value"])
def test_two_clips_are_refused(name):
    assert refused(sgd(clipnorm=0.5), make_config(clip__name=name)) == (
        f"gradients would be clipped twice: by clip.name='{name}' and by clipnorm=0.5 of SGD in make_optimizer. Leave"
        " clipnorm out, or type --config.clip.name=none."
    )
    assert "tf_keras heeds only the first of clipnorm=0.5, clipvalue=2 of SGD" in refused(
        sgd(clipnorm=0.5, clipvalue=2.0)
    )
    assert "clipvalue=0 of SGD clips nothing" in refused(sgd(clipvalue=0.0))


def test_a_factor_of_the_weight_decay_reaches_an_optimizer_that_reads_it():
    def make(cfg, learning_rate):
        return keras.optimizers.RMSprop(learning_rate, weight_decay=cfg.optimizer.weight_decay)

    optimizer, _ = built(make, make_config((".*/bias: decay=0", "head/kernel: decay=3"), 0.1))
    assert [list(variables) for variables in optimizer._members] == [
        ["body/bias", "head/bias"],
        ["head/kernel"],
        ["body/kernel"],
    ]
    assert [group.weight_decay for group in optimizer.groups] == pytest.approx([0.0, 0.3, 0.1])


def test_a_factor_of_the_weight_decay_that_is_not_read_is_refused():
    config = make_config((".*/bias: decay=0",), 0.1)
    assert refused(sgd(weight_decay=0.1), config) == (
        "optimizer.groups: '.*/bias: decay=0' has no effect: SGD of make_optimizer is the same for any"
        " cfg.optimizer.weight_decay. Pass it on, e.g. weight_decay=cfg.optimizer.weight_decay, which holds the factor"
        " of the group."
    )
    assert "has no effect with optimizer.weight_decay=0" in refused(
        sgd(weight_decay=0.1), make_config((".*/bias: decay=0",))
    )


@pytest.mark.parametrize("name", ["sgd", "adamw", "lamb"])
@pytest.mark.parametrize("masked", [False, True])
def test_ours_heed_an_exclusion_too(name, masked):
    ends = {}
    for decay in (0.0, 0.5):
        model = make_model()

        def make(cfg, learning_rate):
            optimizer = optim.make_optimizer(cfg, learning_rate)
            optimizer.exclude_from_weight_decay(var_names=["bias"])
            return optimizer

        optimizer, _ = built(make, make_config(weight_decay=decay, optimizer__name=name), model)
        allowed = {"allowed": tf.constant(True)} if masked and optimizer.is_maskable else {}
        optimizer.apply(gradients_of_steps(model)[0], **allowed)
        ends[decay] = {path: v.numpy() for path, v in paths.trainable(model).items()}
    same = {path: np.array_equal(ends[0.0][path], ends[0.5][path]) for path in ends[0.0]}
    assert same == {"body/kernel": False, "body/bias": True, "head/kernel": False, "head/bias": True}


def test_an_exclusion_of_nothing_is_refused():
    def make(cfg, learning_rate):
        optimizer = keras.optimizers.SGD(learning_rate, weight_decay=0.1)
        optimizer.exclude_from_weight_decay(var_names=["gamma"])
        return optimizer

    message = refused(make)
    assert message.startswith("make_optimizer: exclude_from_weight_decay('gamma') of SGD excludes no variable of")
    assert "\"('.*/bias: decay=0',)\"" in message


def test_optimizer_make_refuses_a_key_that_it_does_not_have():
    config = ConfigDict(make_config().to_dict())
    config.optimizer.momentum = 0.9
    with pytest.raises(UserError, match=r"optimizer\.momentum=0\.9 has no effect with optimizer.name='adam'"):
        built(optim.make_optimizer, FrozenConfigDict(config))


def test_options_are_honoured_on_replicas_as_on_one_device():
    def make_optimizer(cfg, learning_rate):
        optimizer = keras.optimizers.RMSprop(
            learning_rate, momentum=0.5, centered=True, global_clipnorm=0.3, weight_decay=0.2
        )
        optimizer.exclude_from_weight_decay(var_names=["bias"])
        return optimizer

    functions = {
        "make_optimizer": make_optimizer,
        "make_model": lambda cfg: keras.Sequential([keras.layers.Dense(3, name="last", bias_initializer="ones")]),
    }
    ends = []
    for settings in ({}, {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2}):
        run = small.build(functions=functions, **{"train.precision": "float64", **settings})
        run.train_block(4)
        ends.append([paths.copies(v)[0].numpy() for v in paths.variables(run.model).values()])
    for one, several in zip(*ends, strict=True):
        np.testing.assert_allclose(several, one, rtol=1e-12)
