"""Keys about how a run is handled: no number of it depends on them.

    key in HANDLING                       # may differ between runs that are averaged, and when a run goes on

They say how checkpoints are kept, what the console shows, which steps are traced, and what a lost process leads to.
"""

HANDLING = (
    "log.console",
    "profile.steps",
    *(f"checkpoint.{name}" for name in ("keep", "keep_hours", "average", "asynchronous", "on_error")),
    *(f"runtime.{name}" for name in ("worker_timeout_seconds", "max_restarts")),
)
