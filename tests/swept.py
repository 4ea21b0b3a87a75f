"""tests/tiny.py with a space of trials, for tests of --mode=sweep; a width of 3 is refused."""

from framework import config
from tests import tiny
from tests.tiny import make_data, make_loss, make_metrics, make_model, make_schedule  # noqa: F401


def get_config(arg):
    cfg = tiny.get_config(arg)
    cfg.train.compile = "graph"
    cfg.eval.every = "10 steps"
    cfg.checkpoint.every = "5 steps"
    return cfg


def check_config(cfg):
    if cfg.model.hidden == 3:
        raise config.UserError("model.hidden=3 is refused.")


def sweep(trial):
    return {
        "schedule.learning_rate": trial.suggest_float("rate", 1e-4, 1e-2, log=True),
        "model.hidden": trial.suggest_categorical("hidden", [8, 16]),
    }
