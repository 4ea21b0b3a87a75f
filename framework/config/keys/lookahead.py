"""Keys of `lookahead`: slow weights, which follow the trained weights and replace them now and then."""

from framework.config.key import LARGEST, Key

KEYS = {
    "every": Key(0, "updates between two moves of the slow weights, e.g. 5; 0 = off", low=0, high=LARGEST),
    "alpha": Key(0.5, "share of the way to the trained weights that a move takes", low=1e-6, high=0.999999),
    "power": Key(
        0.0,
        "exponent p of a share 1 - (1 - alpha) (t / total)^p, which falls from 1 to alpha; 0 = always alpha",
        low=0,
        high=100,
    ),
}
