"""framework/optim/options.py: every option of every optimizer of tf_keras works as there, or is refused by name."""

import inspect

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras
from ml_collections import ConfigDict, FrozenConfigDict

from framework import optim, paths
from framework.config import UserError, base_config, resolve
from tests import small

STEPS, PEAK = 6, 0.05
# Common options that are honoured; of each optimizer, all options of its own, none at its default.
COMMON = {"weight_decay": 0.1, "name": "own", "jit_compile": True}
OWN = {
    "Adadelta": {"rho": 0.9, "epsilon": 1e-3},
    "Adafactor": {
        "beta_2_decay": -0.7,
        "epsilon_1": 1e-6,
        "epsilon_2": 1e-2,
        "clip_threshold": 0.8,
        "relative_step": False,
    },
    "Adagrad": {"initial_accumulator_value": 0.3, "epsilon": 1e-3},
    "Adam": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "adaptive_epsilon": True, "amsgrad": True},
    "AdamW": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3, "amsgrad": True},
    "Adamax": {"beta_1": 0.8, "beta_2": 0.95, "epsilon": 1e-3},
    "Ftrl": {
        "learning_rate_power": -0.4,
        "initial_accumulator_value": 0.3,
        "l1_regularization_strength": 0.01,
        "l2_regularization_strength": 0.02,
        "l2_shrinkage_regularization_strength": 0.03,
        "beta": 0.1,
    },
    "Lion": {"beta_1": 0.8, "beta_2": 0.95},
    "RMSprop": {"rho": 0.8, "momentum": 0.5, "epsilon": 1e-3, "centered": True},
    "SGD": {"momentum": 0.8, "nesterov": True},
}
CLIPS = {"clipnorm": 0.5, "clipvalue": 0.2, "global_clipnorm": 0.7}
REFUSED = {"use_ema": True, "ema_momentum": 0.9, "ema_overwrite_frequency": 7}


class Falling(keras.optimizers.schedules.LearningRateSchedule):
    def __call__(self, step):
        return falling(step)


def falling(update):
    return PEAK * (1 - tf.cast(update, tf.float64) / STEPS)


def make_config(groups=(), weight_decay=0.0, **more):
    config = base_config()
    config.train.duration, config.train.precision = f"{STEPS} steps", "float64"
    config.optimizer.groups, config.optimizer.weight_decay = tuple(groups), weight_decay
    for key, value in more.items():
        section, _, name = key.partition("__")
        config[section][name] = value
    return resolve(config, steps_per_epoch=50)


def make_model(seed=1):
    model = keras.Sequential(
        [keras.layers.Dense(3, name="body", dtype="float64"), keras.layers.Dense(2, name="head", dtype="float64")]
    )
    model.build((None, 4))
    rng = np.random.default_rng(seed)
    for variable in model.trainable_variables:
        variable.assign(rng.normal(size=variable.shape))
    return model


def built(make, config=None, model=None):
    updates = tf.Variable(0, dtype=tf.int64)
    model = model or make_model()
    return optim.build_optimizers(make, model, falling, updates, config or make_config()), updates


def gradients_of_steps(model):
    rng = np.random.default_rng(5)
    trainable = paths.trainable(model)
    return [{path: tf.constant(rng.normal(size=v.shape)) for path, v in trainable.items()} for _ in range(STEPS)]


def as_in_tf_keras(make, mode, exclude=()):
    """Trains the same model by the optimizer as it is and by a step; returns the largest relative difference."""
    ours, theirs = make_model(), make_model()

    def own(cfg, learning_rate):
        optimizer = make(learning_rate)
        if exclude:
            optimizer.exclude_from_weight_decay(var_names=list(exclude))
        return optimizer

    optimizer, updates = built(own, model=ours)
    apply = optimizer.apply if mode == "eager" else tf.function(optimizer.apply, autograph=False)
    if mode == "xla":
        apply = tf.function(optimizer.apply, autograph=False, jit_compile=True)
    plain, start = own(None, Falling()), [v.numpy() for v in theirs.trainable_variables]
    plain.jit_compile = False
    for count, gradients in enumerate(gradients_of_steps(ours)):
        updates.assign(count)
        apply(gradients)
        plain.apply_gradients([(gradients[path], v) for path, v in paths.trainable(theirs).items()])
    distances = []
    for mine, other, first in zip(ours.trainable_variables, theirs.trainable_variables, start, strict=True):
        assert np.abs(other.numpy() - first).max() > 1e-4  # it did train
        distances.append(np.abs(mine.numpy() - other.numpy()).max() / np.abs(other.numpy()).max())
    return max(distances)


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


def refused(make, config=None):
    with pytest.raises(UserError) as error:
        built(make, config)
    assert "\n" not in str(error.value)
    return str(error.value)


def sgd(**options):
    return lambda cfg, learning_rate: keras.optimizers.SGD(learning_rate, **options)


@pytest.mark.parametrize("name", [*OWN, "Nadam"])
def test_an_average_of_tf_keras_is_refused(name):
    message = refused(lambda cfg, rate: getattr(keras.optimizers, name)(rate, use_ema=True, ema_momentum=0.9))
    assert message.startswith(f"make_optimizer: use_ema=True of {name} needs the end of tf_keras's fit")
    assert "type --config.ema.decay=0.9;" in message


@pytest.mark.parametrize("option", ["ema_momentum", "ema_overwrite_frequency"])
def test_a_setting_of_an_average_that_there_is_not_is_refused(option):
    message = refused(sgd(**{option: REFUSED[option]}))
    assert message.startswith(f"make_optimizer: {option}={REFUSED[option]} of SGD has no effect without use_ema")


GROUPED = make_config((".*/bias: lr=2",))


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


# ---- weight decay


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


# ---- classes of one's own


class Own(keras.optimizers.SGD):
    """As tf_keras asks for, with a slot of its own."""

    def build(self, var_list):
        super().build(var_list)
        if not hasattr(self, "_seen"):
            self._seen = [self.add_variable_from_reference(v, "seen") for v in var_list]

    def update_step(self, gradient, variable):
        self._seen[self._index_dict[self._var_key(variable)]].assign_add(tf.abs(gradient))
        super().update_step(gradient, variable)


def test_a_class_of_ones_own_trains_as_in_tf_keras():
    assert as_in_tf_keras(lambda rate: Own(rate, momentum=0.5), "graph") < 1e-13


class Counting(keras.optimizers.SGD):
    """Python state: the count stays what it was when a step was traced."""

    count = 0

    def update_step(self, gradient, variable):
        self.count += 1
        super().update_step(gradient / self.count, variable)


class Remembering(keras.optimizers.SGD):
    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.history = []

    def update_step(self, gradient, variable):
        self.history.append(1)
        super().update_step(gradient, variable)


@pytest.mark.parametrize(
    ("kind", "attribute"),
    [(Counting, "count"), (Remembering, "history"), (keras.optimizers.Nadam, "_u_product_counter")],
)
def test_state_in_python_is_refused_in_every_mode(kind, attribute):
    """When a run is built; on replicas, and where nothing is traced, in the first step."""
    begin = f"{kind.__name__} of make_optimizer changes its attribute '{attribute}' in an update. A compiled step runs"
    assert refused(lambda cfg, rate: kind(rate)).startswith(begin)
    model = make_model()
    optimizer = optim.Optimizer([(kind(0.1), paths.trainable(model))])
    with pytest.raises(UserError) as error:
        optimizer.apply(gradients_of_steps(model)[0])
    assert str(error.value).startswith(begin)


class Late(keras.optimizers.SGD):
    """Makes a slot in its first update, which no checkpoint would have."""

    def update_step(self, gradient, variable):
        if not hasattr(self, "late"):
            self.late = self.add_variable_from_reference(variable, "late")
        super().update_step(gradient, variable)


def test_a_slot_that_is_made_in_an_update_is_refused():
    assert "Late of make_optimizer changes its attribute '" in refused(lambda cfg, rate: Late(rate))


class Minimizing(keras.optimizers.SGD):
    def compute_gradients(self, loss, var_list, tape=None):
        return super().compute_gradients(loss, var_list, tape)


class Finalizing(keras.optimizers.SGD):
    def finalize_variable_values(self, var_list):
        super().finalize_variable_values(var_list)


class Central(keras.optimizers.SGD):
    """Looks at all gradients at once."""

    def apply_gradients(self, grads_and_vars, name=None, **kwargs):
        pairs = list(grads_and_vars)
        mean = sum(tf.reduce_mean(gradient) for gradient, _ in pairs) / len(pairs)
        return super().apply_gradients([(g - mean, v) for g, v in pairs], name, **kwargs)


class Narrow(keras.optimizers.SGD):
    def apply_gradients(self, grads_and_vars):
        return super().apply_gradients(grads_and_vars)


def test_what_a_step_would_not_call_is_refused():
    assert "Minimizing.compute_gradients would never be called" in refused(lambda cfg, rate: Minimizing(rate))
    assert "Finalizing.finalize_variable_values would never be called" in refused(lambda cfg, rate: Finalizing(rate))
    assert "Narrow.apply_gradients is called as apply_gradients(pairs, skip" in refused(lambda cfg, rate: Narrow(rate))


def test_what_looks_at_all_gradients_at_once_has_one_group():
    assert as_in_tf_keras(Central, "graph") < 1e-13
    assert "Central.apply_gradients would see one of the 2 groups" in refused(lambda cfg, rate: Central(rate), GROUPED)


OTHERS = {
    "legacy": (keras.optimizers.legacy.Adam, "make_optimizer returned keras.optimizers.legacy.Adam, of an interface"),
    "a loss scale": (
        lambda rate: keras.mixed_precision.LossScaleOptimizer(keras.optimizers.SGD(rate), initial_scale=1024),
        "steps scale the loss themselves. Return the optimizer inside it, and type --config.loss_scale.name=dynamic"
        " --config.loss_scale.initial=1024.",
    ),
    "a name": (lambda rate: "adam", "make_optimizer returned 'adam'. It must return"),
}


@pytest.mark.parametrize(("make", "problem"), OTHERS.values(), ids=OTHERS)
def test_what_is_no_optimizer_for_a_step_is_refused(make, problem):
    assert problem in refused(lambda cfg, rate: make(rate))
