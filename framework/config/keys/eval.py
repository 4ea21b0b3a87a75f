"""Keys of `eval`: evaluations during and after training."""

from framework.config.key import LARGEST, Key

KEYS = {
    "splits": Key(("test",), "passed to make_data(cfg, split); 'test@ema' is evaluated on the averaged weights"),
    "every": Key("1 epoch", "period of evaluations, and one at the end; '' = only at the end", duration=True),
    "batch_size": Key(1000, "examples in a batch of an evaluation", low=1, high=LARGEST),
}

# An entry of eval.splits with this ending is evaluated on the averaged weights.
AVERAGED = "@ema"


def base_split(split: str) -> str:
    """Returns the split of an entry of eval.splits: 'test' of 'test@ema'."""
    return split.removesuffix(AVERAGED)
