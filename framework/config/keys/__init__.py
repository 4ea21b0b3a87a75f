"""Every key that the framework reads: one file a section, one line a key.

    KEYS["schedule.name"].choices      # ('constant', 'cosine', …)

To add a key, add its line to the file of its section. Rules that bind several keys stand in `contradictions.py`. The
owner of a section, such as `optim.schedules`, reads the legal names from here. Nothing here imports TensorFlow.
"""

from collections.abc import Mapping
from types import ModuleType

from framework.config.key import Key
from framework.config.keys import (
    checkpoint,
    clip,
    cluster,
    data,
    early_stopping,
    ema,
    export,
    log,
    lookahead,
    loss_scale,
    model,
    optimizer,
    profile,
    prune,
    quantize,
    runtime,
    schedule,
    top,
    train,
)
from framework.config.keys import eval as evaluation

# {section: its module}, in the order in which they are listed.
SECTIONS: Mapping[str, ModuleType] = {
    "": top,
    "data": data,
    "model": model,
    "train": train,
    "loss_scale": loss_scale,
    "clip": clip,
    "optimizer": optimizer,
    "ema": ema,
    "lookahead": lookahead,
    "prune": prune,
    "cluster": cluster,
    "quantize": quantize,
    "schedule": schedule,
    "eval": evaluation,
    "early_stopping": early_stopping,
    "log": log,
    "profile": profile,
    "checkpoint": checkpoint,
    "export": export,
    "runtime": runtime,
}
# Sections to which an experiment may add keys of its own.
FREE_SECTIONS = ("data", "model")


def dotted(section: str, name: str) -> str:
    """Returns 'section.name', or 'name' for a key outside of the sections."""
    return f"{section}.{name}" if section else name


# {dotted key: its line}
KEYS: Mapping[str, Key] = {
    dotted(section, name): key for section, module in SECTIONS.items() for name, key in module.KEYS.items()
}
