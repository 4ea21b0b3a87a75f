"""Keys of `optimizer`: the update rule and its parameter groups."""

from framework.config.key import Key

# Adam divides by 1 - beta; a number nearer to 1 is 1 in float32.
_BELOW_ONE = 0.999999
_SGD = {"name": ("sgd",)}
_AVERAGING = {"name": ("adam", "adamw", "lamb", "lion")}

KEYS = {
    "name": Key("adam", "update rule", choices=("sgd", "adam", "adamw", "lamb", "lion")),
    "momentum": Key(0.0, "share of the last step that is added to the next", low=0, high=1, only_with=_SGD),
    "nesterov": Key(False, "Nesterov's form of momentum", only_with=_SGD),
    "beta_1": Key(0.9, "decay of the average of gradients", low=0, high=_BELOW_ONE, only_with=_AVERAGING),
    "beta_2": Key(0.999, "decay of the average of squared gradients", low=0, high=_BELOW_ONE, only_with=_AVERAGING),
    "epsilon": Key(
        1e-7, "added to the root of the average square", low=1e-30, only_with={"name": ("adam", "adamw", "lamb")}
    ),
    "weight_decay": Key(
        0.0,
        "decoupled decay of weights in each update, times the learning rate",
        low=0,
        only_with={"name": ("adamw", "sgd", "lamb", "lion")},
    ),
    "groups": Key(
        (), "'REGEX: decay=0', 'REGEX: lr=0.1 decay=2', 'REGEX: frozen'; other parameters form the last group"
    ),
}
