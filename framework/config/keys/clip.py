"""Keys of `clip`: bounds on the gradients of an update."""

from framework.config.key import Key

KEYS = {
    "name": Key(
        "none",
        "the bound: on the norm of all gradients, each value, each variable's norm, or on norms relative to weights"
        " (adaptive: AGC)",
        choices=("none", "global_norm", "value", "variable_norm", "adaptive"),
    ),
    "threshold": Key(
        1.0,
        "largest norm or value; adaptive: largest ratio of gradient norm to weight norm, e.g. 0.01",
        low=1e-12,
        only_with={"name": ("global_norm", "value", "variable_norm", "adaptive")},
    ),
    "exclude": Key(
        "",
        "regex of parameters that are not clipped, e.g. 'head/.*'; '' = none",
        regex=True,
        only_with={"name": ("adaptive",)},
    ),
}
