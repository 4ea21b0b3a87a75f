"""Keys of `quantize`: training rounds as an int8 export does, so that the export loses less."""

from framework.config.key import Key

_ON = {"name": ("int8",)}

KEYS = {
    "name": Key(
        "none",
        "int8 = weights and activations are rounded in the forward pass as an int8 export rounds them",
        choices=("none", "int8"),
    ),
    "begin": Key(
        "",
        "updates before anything is rounded; '' = one, whose activations give the first ranges",
        duration=True,
        only_with=_ON,
    ),
    "freeze": Key("", "updates after which the ranges of activations stay; '' = never", duration=True, only_with=_ON),
    "momentum": Key(
        0.99,
        "share of the old range in the new one, at each update; 0 = the range of the last batch",
        low=0,
        high=0.999999,
        only_with=_ON,
    ),
    "include": Key("", "regex of the layers that are quantised; '' = all that can be", regex=True, only_with=_ON),
    "exclude": Key("", "regex of layers that are not quantised, e.g. 'head'; '' = none", regex=True, only_with=_ON),
}
