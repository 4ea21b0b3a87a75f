"""Optimizers of one's own train as in tf_keras; what a step would not call is refused."""

import pytest
import tensorflow as tf
import tf_keras as keras

from framework import optim, paths
from framework.config import UserError
from tests.optim.taken_over import GROUPED, as_in_tf_keras, gradients_of_steps, make_model, refused


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
