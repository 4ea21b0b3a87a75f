"""Keys outside of the sections: the seed, and the state or weights that training starts from."""

from framework.config.key import Key

KEYS = {
    "seed": Key(0, "of data order, initial weights, dropout and augmentation", low=0, high=2**63 - 1),
    "resume_from": Key(
        "", "run folder or checkpoint to continue from in a new folder: weights, optimizer, step and random state"
    ),
    "init_from": Key("", "run folder or checkpoint to take weights from; training starts at step 0"),
    "init_map": Key(
        (), "init_from: 'REGEX -> REPLACEMENT' rewrites whole paths of its variables; '' as replacement drops them"
    ),
    "init_weights": Key("model", "init_from: take the weights themselves or their average", choices=("model", "ema")),
}
