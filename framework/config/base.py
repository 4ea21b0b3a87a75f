"""The config of all keys with their defaults, and views of a config: flat, locked, as typed on a command line.

config = base_config()
flatten(config)["train.compile"]      # 'auto'
"""

import re
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from framework.config.keys import FREE_SECTIONS, SECTIONS


def base_config() -> ConfigDict:
    """Returns all keys of the framework with their defaults. Experiments change values and add `data.*`, `model.*`."""
    config = ConfigDict()
    for section, module in SECTIONS.items():
        if section:
            config[section] = ConfigDict()
        for name, key in module.KEYS.items():
            (config[section] if section else config)[name] = key.default
    config.lock()
    for section in FREE_SECTIONS:
        config[section].unlock()
    return config


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns the leaves by dotted key, {'train.compile': 'xla', …}, in alphabetical order."""
    flat: dict[str, Any] = {}
    for key in config:
        value = config[key]
        if isinstance(value, ConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def locked(config: ConfigDict) -> ConfigDict:
    """Returns a locked copy."""
    # `lock` stops at what is locked already, and below a locked config FREE_SECTIONS are not.
    return config.copy_and_resolve_references().unlock().lock()


def typed(value: Any) -> str:
    """Returns `value` as it would be typed on a command line."""
    text = str(value)
    return f"'{text}'" if not text or re.search(r"[\s()',%]", text) else text
