"""Configuration: keys with their defaults, checks of their values, durations, and values put on top.

    config = base_config()                        # every key with its default
    config = override(config, {'train.compile': 'graph'})
    config = finalize(config)                     # pure: keys, types, ranges, contradictions
    config = resolve(config, steps_per_epoch)     # '5 epochs' -> 2344 steps; frozen

Nothing here imports TensorFlow, so bad input is reported before a device is touched.
"""

from framework.config.base import base_config, flatten, locked, typed
from framework.config.check import check_choice, check_plain, check_range, finalize
from framework.config.contradictions import check_effects, with_replicas
from framework.config.durations import DURATIONS, resolve, to_steps
from framework.config.keys.eval import AVERAGED, base_split
from framework.config.keys.prune import is_pruned
from framework.config.overrides import apply_preset, override, restored
from framework.errors import DataError, RunError, UserError, closest, near

__all__ = [
    "AVERAGED",
    "DURATIONS",
    "DataError",
    "RunError",
    "UserError",
    "apply_preset",
    "base_config",
    "base_split",
    "check_choice",
    "check_effects",
    "check_plain",
    "check_range",
    "closest",
    "finalize",
    "flatten",
    "is_pruned",
    "locked",
    "near",
    "override",
    "resolve",
    "restored",
    "to_steps",
    "typed",
    "with_replicas",
]
