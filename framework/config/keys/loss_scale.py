"""Keys of `loss_scale`: the factor that keeps small float16 gradients from becoming 0."""

from framework.config.key import LARGEST, Key

# A loss scale is a float32.
_TINY, _HUGE = 2.0**-100, 2.0**100
_DYNAMIC = {"name": ("dynamic", "auto")}

KEYS = {
    "name": Key("auto", "auto = dynamic for float16, else none", choices=("auto", "dynamic", "static", "none")),
    "initial": Key(
        2.0**15,
        "scale of the first update; static: of every update",
        low=_TINY,
        high=_HUGE,
        only_with={"name": ("dynamic", "static", "auto")},
    ),
    "growth_interval": Key(2000, "finite updates before the scale grows", low=1, high=LARGEST, only_with=_DYNAMIC),
    "growth_factor": Key(2.0, "factor by which the scale grows", low=1, high=1024, only_with=_DYNAMIC),
    # At 1 the scale would never reach the floor, where runs stop.
    "backoff_factor": Key(0.5, "factor of the scale after an overflow", low=_TINY, high=0.99, only_with=_DYNAMIC),
    "floor": Key(1.0, "smallest scale", low=_TINY, high=_HUGE, only_with=_DYNAMIC),
    "ceiling": Key(2.0**24, "largest scale", low=_TINY, high=_HUGE, only_with=_DYNAMIC),
    "patience": Key(
        20, "skipped updates in a row at the floor before the run stops", low=1, high=LARGEST, only_with=_DYNAMIC
    ),
}
