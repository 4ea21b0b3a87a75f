"""Keys of `optimizer`: the update rule and its parameter groups."""

from framework.config.key import Key

# Adam divides by 1 - beta; a number nearer to 1 is 1 in float32.
_BELOW_ONE = 0.999999
_MOMENTUM = {"name": ("sgd", "muon")}
_MUON = {"name": ("muon",)}
_ADAMS = ("adam", "adamw", "lazy_adam", "lamb")
_AVERAGING = {"name": (*_ADAMS, "lion")}

KEYS = {
    "name": Key("adam", "update rule", choices=("sgd", "adagrad", *_ADAMS, "lion", "muon")),
    "momentum": Key(0.0, "share of the last step that is added to the next", low=0, high=1, only_with=_MOMENTUM),
    "nesterov": Key(False, "Nesterov's form of momentum", only_with=_MOMENTUM),
    "beta_1": Key(0.9, "decay of the average of gradients", low=0, high=_BELOW_ONE, only_with=_AVERAGING),
    "beta_2": Key(0.999, "decay of the average of squared gradients", low=0, high=_BELOW_ONE, only_with=_AVERAGING),
    "epsilon": Key(
        1e-7, "added to the root of the average square", low=1e-30, only_with={"name": (*_ADAMS, "adagrad")}
    ),
    "weight_decay": Key(
        0.0,
        "decoupled decay of weights in each update, times the learning rate",
        low=0,
        only_with={"name": ("adamw", "sgd", "lamb", "lion", "muon")},
    ),
    "newton_schulz_steps": Key(5, "iterations that make an update orthogonal", low=1, high=20, only_with=_MUON),
    "newton_schulz_dtype": Key(
        "full", "dtype of the iterations; full = that of the weights", choices=("full", "bfloat16"), only_with=_MUON
    ),
    "rescale_weights": Key(
        False,
        "before each update, bring each matrix to the norm sqrt(outputs); for weights before normalisation",
        only_with=_MUON,
    ),
    "table_gradients": Key(
        "dense",
        "gradients of tables: dense = as large as the table; rows = the rows that a step looked up, for large tables",
        choices=("dense", "rows"),
    ),
    "groups": Key(
        (),
        "'REGEX: lr=0.1 decay=0', 'REGEX: name=sgd momentum=0.9', 'REGEX: until=3epochs', 'REGEX: frozen'; other"
        " parameters form the last group",
    ),
}
