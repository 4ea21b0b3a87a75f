"""Keys of `train`: how long, how compiled, in which precision, and what a non-finite step leads to."""

from framework.config.key import LARGEST, Key

KEYS = {
    "duration": Key("5 epochs", "length of the run, in steps, epochs or examples", duration=True, required=True),
    "compile": Key(
        "auto",
        "xla = the whole step by XLA, xla_gradients and xla_update = one part of it; auto times them and takes the"
        " fastest",
        choices=("auto", "graph", "xla", "xla_gradients", "xla_update", "eager"),
    ),
    "block_steps": Key(100, "most steps in one compiled call", low=1, high=100_000),
    "precision": Key(
        "float32",
        "dtype of the computation; under bfloat16 and float16 weights stay float32",
        choices=("float32", "float64", "bfloat16", "float16"),
    ),
    "micro_batches": Key(1, "parts of a batch, differentiated one after the other to save memory", low=1, high=LARGEST),
    "remat": Key("", "regex of layer paths whose activations are recomputed instead of kept; '' = none", regex=True),
    "on_nonfinite": Key(
        "stop",
        "after a NaN or infinite loss or gradient: stop the run, skip the step, or rewind to a checkpoint and leave the"
        " step out; a dynamic loss scale always skips",
        choices=("stop", "skip", "rewind"),
    ),
    "nonfinite_limit": Key(
        10,
        "rewind: rewinds before the run stops; skip: skipped steps in a row before it stops",
        low=1,
        high=1000,
        only_with={"on_nonfinite": ("skip", "rewind")},
    ),
}
