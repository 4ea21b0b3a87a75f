"""Keys of `schedule`: the learning rate of each update."""

from framework.config.key import Key

_RESTARTS = {"name": ("restarts",)}
_PIECEWISE = {"name": ("piecewise",)}

KEYS = {
    "name": Key(
        "constant",
        "course of the learning rate after the warm-up",
        choices=("constant", "cosine", "piecewise", "polynomial", "restarts", "inverse_sqrt", "one_cycle"),
    ),
    "learning_rate": Key(1e-3, "the peak", low=0),
    "warmup": Key("", "linear rise to the peak (one_cycle: half a cosine); '' = none", duration=True),
    "start_fraction": Key(0.0, "fraction of the peak at which the warm-up starts", low=0, high=1),
    "final_fraction": Key(
        0.0,
        "fraction of the peak at which the schedule ends",
        low=0,
        high=1,
        only_with={"name": ("cosine", "polynomial", "restarts", "one_cycle")},
    ),
    "boundaries": Key(
        (), "durations after which the rate changes, e.g. ('2 epochs', '4 epochs')", only_with=_PIECEWISE
    ),
    "factors": Key((), "fractions of the peak, one after each boundary", only_with=_PIECEWISE),
    "power": Key(
        1.0, "exponent of the share of updates that is left", low=1e-3, high=1e3, only_with={"name": ("polynomial",)}
    ),
    "period": Key("", "length of the first cosine", duration=True, only_with=_RESTARTS),
    "period_factor": Key(
        1.0, "length of each cosine, relative to the one before", low=1, high=1e3, only_with=_RESTARTS
    ),
    "peak_factor": Key(1.0, "peak of each cosine, relative to the one before", low=0, high=1, only_with=_RESTARTS),
    "timescale": Key(
        "",
        "t of peak * sqrt(t / (t + update)); '' = the warm-up",
        duration=True,
        only_with={"name": ("inverse_sqrt",)},
    ),
}
