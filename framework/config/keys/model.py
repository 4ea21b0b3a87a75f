"""Keys of `model`: none of the framework's. Experiments add keys of their own to this section."""

from framework.config.key import Key

KEYS: dict[str, Key] = {}
