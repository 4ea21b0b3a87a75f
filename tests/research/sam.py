"""Sharpness-aware minimisation (Foret et al., 2021): two gradient passes, one update.

python launch.py --config=tests/research/sam.py --workdir=runs/sam
"""

from framework import optim, rng
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model, make_schedule  # noqa: F401


def get_config(arg):
    config = tiny.get_config(arg)
    config.model.rho = 0.05
    return config


def make_step(cfg, tools):
    return sharpness_aware(make_loss(cfg), cfg.model.rho, tools)


def sharpness_aware(loss, rho, tools):
    """A step with the gradient of the point `rho` uphill."""

    def step(state, batch):
        def forward_pass(micro_batch):
            return loss(state.model, micro_batch, True)

        weights = state.optimizer.trained
        before = {path: variable.read_value() for path, variable in weights.items()}
        start = rng.save_counters()
        here = tools.gradients(forward_pass, batch)
        longer = rho / optim.global_norm(here.gradients.values())
        for path, variable in weights.items():
            variable.assign_add(longer * here.gradients[path])
        with rng.replay_from(start):  # the same dropout masks uphill
            uphill = tools.gradients(forward_pass, batch)
        for path, variable in weights.items():
            variable.assign(before[path])
        tools.apply(uphill.gradients)
        return here.terms, here.metrics

    return step
