"""Optimizers are built from groups: each parameter gets its factors, its update rule and its schedule."""

import math

import numpy as np
import pytest
import tensorflow as tf
import tf_keras as keras

from framework import compat, optim, paths
from framework.config import UserError
from tests.compile_modes import MODES
from tests.optim.grouped import (
    DECAY,
    PEAK,
    STEPS,
    counter,
    falling,
    make_config,
    make_model,
    make_models,
    make_sgd,
    rising,
)

BOUND = {"float32": 2e-6, "float64": 1e-14}


class AdamW:
    """One variable in float64; epsilon and betas as in `base_config`."""

    def __init__(self, w, lr, decay):
        self.w, self.lr, self.decay = w.astype(np.float64), lr, decay
        self.m, self.v, self.t = np.zeros_like(self.w), np.zeros_like(self.w), 0

    def update(self, g, rate):
        rate *= self.lr
        self.t += 1
        self.w = self.w - rate * DECAY * self.decay * self.w
        self.m = 0.9 * self.m + 0.1 * g
        self.v = 0.999 * self.v + 0.001 * g**2
        correction = math.sqrt(-math.expm1(self.t * math.log(0.999))) / (1 - 0.9**self.t)
        self.w = self.w - rate * correction * self.m / (np.sqrt(self.v) + 1e-7)


GROUPS = ("body/kernel: lr=0.1 decay=2", ".*/bias: decay=0", "tail/kernel: frozen")  # and head/kernel
FACTORS = {
    "body/kernel": (0.1, 2.0),
    "body/bias": (1.0, 0.0),
    "head/bias": (1.0, 0.0),
    "tail/bias": (1.0, 0.0),
    "head/kernel": (1.0, 1.0),
}


@pytest.mark.parametrize("kind", BOUND)
@pytest.mark.parametrize("mode", MODES)
def test_each_group_gets_its_factors_and_what_is_frozen_stays(mode, kind):
    model = make_model(kind, body=3, head=2, tail=1)
    updates = counter()
    optimizer = optim.build_optimizers(
        optim.make_optimizer, model, falling, updates, make_config(groups=GROUPS, kind=kind)
    )
    assert list(optimizer.trained) == list(FACTORS)
    assert len(optimizer.groups) == 3
    variables = paths.trainable(model)
    frozen = variables["tail/kernel"].numpy()
    references = {path: AdamW(variables[path].numpy(), *factors) for path, factors in FACTORS.items()}
    apply = MODES[mode](optimizer.apply)
    rng = np.random.default_rng(2)
    for count in range(STEPS):
        updates.assign(count)
        gradients = {path: rng.normal(size=variables[path].shape).astype(kind) for path in variables}
        apply({path: tf.constant(g) for path, g in gradients.items()})
        for path, reference in references.items():
            reference.update(gradients[path].astype(np.float64), PEAK * (1 - count / STEPS))
            difference = np.linalg.norm(variables[path].numpy() - reference.w)
            assert difference < BOUND[kind] * np.linalg.norm(reference.w), (count, path)
    assert variables["tail/kernel"].numpy().tobytes() == frozen.tobytes()


@pytest.mark.parametrize("kind", BOUND)
def test_without_groups_one_optimizer_has_all(kind):
    model = make_model(kind)
    optimizer = optim.build_optimizers(optim.make_optimizer, model, falling, counter(), make_config("adamw", kind=kind))
    assert list(optimizer.trained) == ["body/kernel", "body/bias", "head/kernel", "head/bias"]
    (group,) = optimizer.groups
    assert isinstance(group, keras.optimizers.Adam)
    assert optimizer.groups[0].learning_rate.dtype == tf.as_dtype(kind)


@pytest.mark.parametrize("kind", ["bfloat16", "float16"])
def test_weights_slots_and_rate_of_half_precision_are_float32(kind):
    optimizer = optim.build_optimizers(
        optim.make_optimizer, make_model(kind), falling, counter(), make_config(kind=kind)
    )
    slots = [variable for variable in paths.variables(optimizer).values() if variable.dtype.is_floating]
    assert len(slots) == 1 + 2 * 4
    assert {variable.dtype for variable in (*slots, *optimizer.trained.values())} == {tf.float32}


@pytest.mark.parametrize("mode", MODES)
def test_each_of_several_models_has_its_own_schedule_and_optimizer(mode):
    models, updates = make_models(), counter()
    groups = ("critic/head/.*: lr=0.5", "critic/body/.*: lr=1", "generator/.*: lr=2")
    optimizers = optim.build_optimizers(
        optim.make_optimizer,
        models,
        {"generator": falling, "critic": rising},
        updates,
        make_config("sgd", groups, weight_decay=0.0),
    )
    factors = {
        "generator": {"body/kernel": 2.0, "body/bias": 2.0},
        "critic": {"head/kernel": 0.5, "head/bias": 0.5, "body/kernel": 1.0, "body/bias": 1.0},
    }
    rates = {"generator": lambda u: PEAK * (1 - u / STEPS), "critic": lambda u: PEAK * (1 + u)}
    assert {name: list(optimizer.trained) for name, optimizer in optimizers.items()} == {
        "generator": list(factors["generator"]),
        "critic": list(factors["critic"]),
    }
    assert {name: len(optimizer.groups) for name, optimizer in optimizers.items()} == {"generator": 1, "critic": 2}
    rng = np.random.default_rng(3)
    wanted = {name: {path: v.numpy() for path, v in paths.trainable(model).items()} for name, model in models.items()}
    applies = {name: MODES[mode](optimizer.apply) for name, optimizer in optimizers.items()}
    for count in range(STEPS):
        updates.assign(count)
        # The critic is updated twice in every update of the run; its rate follows the run.
        for name in ("critic", "critic", "generator"):
            gradients = {path: rng.normal(size=w.shape) for path, w in wanted[name].items()}
            applies[name]({path: tf.constant(g) for path, g in gradients.items()})
            for path, g in gradients.items():
                wanted[name][path] = wanted[name][path] - factors[name][path] * rates[name](count) * g
    for name, model in models.items():
        for path, variable in paths.trainable(model).items():
            assert variable.numpy() == pytest.approx(wanted[name][path], rel=1e-13, abs=1e-13), (name, path)


def test_an_experiments_optimizers_are_grouped_too_and_may_leave_a_model_out():
    seen = []

    def make(cfg, learning_rate):
        seen.append((cfg.optimizer.weight_decay, sorted(learning_rate)))
        return {"critic": keras.optimizers.SGD(learning_rate["critic"], weight_decay=cfg.optimizer.weight_decay)}

    groups = (".*/kernel: decay=3 lr=0.5", "critic/.*/bias: decay=0", "generator/body/bias: frozen")
    optimizers = optim.build_optimizers(make, make_models(), falling, counter(), make_config(groups=groups))
    # Each group once more, with decay=1: to see that its factor has an effect.
    assert [decay for decay, _ in seen] == pytest.approx([3 * DECAY, DECAY, 0.0, DECAY])
    assert {tuple(names) for _, names in seen} == {("critic", "generator")}
    assert list(optimizers) == ["critic"]
    assert list(optimizers["critic"].trained) == ["body/kernel", "head/kernel", "body/bias", "head/bias"]
    rates = [float(group.learning_rate) for group in optimizers["critic"].groups]
    assert rates == pytest.approx([0.5 * PEAK, PEAK], rel=1e-15)


def test_a_group_may_have_an_update_rule_and_an_end_of_its_own():
    """Muon for the kernel of the body, SGD at half the rate for the head, AdamW for a quarter of the run for biases."""
    config = make_config("muon", ("head/kernel: name=sgd momentum=0.8 lr=0.5", ".*/bias: name=adamw until=25% decay=0"))
    model, updates = make_model(), counter()
    optimizer = optim.build_optimizers(optim.make_optimizer, model, falling, updates, config)
    sgd, adamw, muon = optimizer.groups
    assert [type(group).__name__ for group in optimizer.groups] == ["Sgd", "Adam", "Muon"]
    assert list(optimizer.trained) == ["head/kernel", "body/bias", "head/bias", "body/kernel"]
    assert (sgd.momentum, muon.momentum, sgd.decay, adamw.decay, muon.decay) == (0.8, 0.0, DECAY, 0.0, DECAY)

    def rate_of(group):
        return float(compat.learning_rate_of(group)(0))

    for update in range(8):
        updates.assign(update)
        wanted = PEAK * (1 - update / STEPS)
        assert rate_of(sgd) == pytest.approx(0.5 * wanted, rel=1e-14)
        ending = PEAK * (1 - 4 * update / STEPS) if update < 5 else 0  # four updates of the run in one
        assert rate_of(adamw) == pytest.approx(ending, rel=1e-14)
        assert rate_of(muon) == pytest.approx(wanted, rel=1e-14)


@pytest.mark.parametrize("setting", ["momentum=0.5", "name=sgd momentum=0.5", "name=lamb"])
def test_a_setting_of_a_group_that_an_experiments_optimizer_does_not_read_is_refused(setting):
    with pytest.raises(UserError) as error:
        optim.build_optimizers(make_sgd, make_model(), falling, counter(), make_config(groups=(f".*/bias: {setting}",)))
    first = setting.partition(" ")[0]
    key = first.partition("=")[0]
    assert str(error.value) == (
        f"optimizer.groups: '.*/bias: {first}' has no effect: SGD of make_optimizer is the same for any"
        f" cfg.optimizer.{key}. Pass it on, e.g. {key}=cfg.optimizer.{key}, which holds the value of the group."
    )


def test_layers_may_have_rates_that_fall_with_their_depth():
    layers = {f"block_{depth}": 3 for depth in range(4)}
    groups = tuple(f"block_{depth}/.*: lr={0.75 ** (3 - depth)}" for depth in range(4))
    optimizer = optim.build_optimizers(
        optim.make_optimizer, make_model(**layers), falling, counter(), make_config("sgd", groups)
    )
    rates = [float(group.learning_rate) for group in optimizer.groups]
    assert rates == pytest.approx([PEAK * 0.75**3, PEAK * 0.75**2, PEAK * 0.75, PEAK], rel=1e-15)


def test_a_model_of_its_own_optimizer_gets_the_rate_itself():
    optimizer = optim.build_optimizers(
        lambda cfg, learning_rate: keras.optimizers.RMSprop(learning_rate),
        make_model(),
        falling,
        counter(),
        make_config(groups=(".*: lr=0.3",)),
    )
    assert [type(group) for group in optimizer.groups] == [keras.optimizers.RMSprop]
    assert float(optimizer.groups[0].learning_rate) == pytest.approx(0.3 * PEAK, rel=1e-15)


def test_one_schedule_is_that_of_all_models():
    models = make_models()
    assert optim.schedules_of(falling, models) == {"generator": falling, "critic": falling}
    assert optim.schedules_of({"critic": rising, "generator": falling}, models) == {
        "generator": falling,
        "critic": rising,
    }
    assert optim.schedules_of(falling, models["critic"]) == {"model": falling}
