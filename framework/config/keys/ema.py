"""Keys of `ema`: the exponential moving average of the weights."""

from framework.config.key import Key

KEYS = {"decay": Key(0.0, "decay of the average of weights in each update, e.g. 0.999; 0 = off", low=0, high=0.999999)}
