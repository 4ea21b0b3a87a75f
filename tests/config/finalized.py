"""Finalized configs and messages of refusals, for tests of the config."""

import pytest

from framework.config import UserError, base_config, finalize, flatten
from framework.config.overrides import override

BASE = flatten(base_config())
CHECK = "--mode=check prints every key."
OVERRIDES = "Overrides look like --config.train.compile=graph."


def final(**overrides):
    """The finalized base config; `__` in a name stands for a dot."""
    return finalize(override(base_config(), {key.replace("__", "."): value for key, value in overrides.items()}))


def own(**values):
    """A base config to which an experiment has added `model.*` keys."""
    created = base_config()
    created.model.update(values)
    return created


def message(call, *args, **kwargs):
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    return str(caught.value)
