"""Keys of `export`: what is exported, and how it is verified."""

from framework.config.key import LARGEST, Key

KEYS = {
    "checkpoint": Key("last", "the checkpoint that is exported", choices=("last", "best")),
    "weights": Key("model", "export the weights themselves or their average", choices=("model", "ema")),
    "process": Key(
        "fresh", "the process that loads an artefact to verify it: a fresh one, or the run's", choices=("fresh", "own")
    ),
    "examples": Key(10_000, "held-out examples on which an export is compared with the model", low=1, high=LARGEST),
}
