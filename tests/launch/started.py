"""The experiment x.py, launched as far as the devices, and a run of it that was started before."""

import json
from pathlib import Path

import pytest

import launch
from framework import config
from framework.cli import flags

EXPERIMENT = """
from pathlib import Path
from framework.config import base_config
from framework.config.overrides import apply_preset

Path(__file__).with_suffix(".executed").touch()
PRESETS = {"small": {"model.width": 4}, "typo": {"model.widht": 4}}


def get_config(arg):
    config = base_config()
    config.model.width = 8
    return apply_preset(config, arg, PRESETS)


def make_data(cfg, split):
    Path(__file__).with_suffix(".loaded").touch()


def make_model(cfg): ...


def make_loss(cfg): ...


def make_schedule(cfg, total_steps): ...
"""
CHECK = "--mode=check prints every key."
ELSEWHERE = " Use another folder; there, --config.resume_from=r continues this run."
MODES = ", ".join(flags.MODES)


class Reached(Exception):
    """The first line that touches a device was about to run."""


def accepted(*arguments):
    """The config with which a launch comes as far as the devices."""
    with pytest.raises(Reached) as caught:
        launch.main(["launch.py", *arguments])
    return caught.value.args[0]


def small_config(**changed):
    """What config.json of a run of x.py:small holds."""
    created = config.base_config()
    created.model.width = 4
    created.update_from_flattened_dict({key.replace("__", "."): value for key, value in changed.items()})
    return created.to_dict()


def started_run(stored, copy="x.py"):
    Path("r").mkdir()
    Path("r/config.json").write_text(json.dumps(stored))
    Path("r", copy).write_text(EXPERIMENT)
