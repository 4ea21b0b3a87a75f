"""Keys of `early_stopping`: the end of a run whose evaluations no longer improve."""

from framework.config.key import LARGEST, Key

KEYS = {
    "metric": Key("", "'split/metric' to watch, e.g. 'test/loss'; '' = off"),
    "patience": Key(3, "evaluations without improvement before the run ends", low=1, high=LARGEST),
    "min_delta": Key(0.0, "smallest change that is an improvement", low=0),
}
