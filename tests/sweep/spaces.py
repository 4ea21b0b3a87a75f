"""Spaces of trials, and a study of one, for tests of sweeps."""

from framework.sweep.study import Plan, open_study

FACTS = {"config": "tests/tiny.py", "overrides": []}


def rates(trial):
    """The space of one number from 0 to 1."""
    return {"schedule.learning_rate": trial.suggest_float("rate", 0.0, 1.0)}


def layers(trial):
    """A grid of four."""
    return {
        "model.hidden": trial.suggest_categorical("hidden", [64, 128]),
        "model.dropout": trial.suggest_categorical("dropout", [0.0, 0.5]),
    }


def opened(folder, sweep=rates, facts=FACTS, **plan):
    """The study of a folder, as each start of a sweep opens it."""
    return open_study(folder, sweep, Plan(**{"metric": "test/accuracy", "mode": "max"} | plan), facts)
