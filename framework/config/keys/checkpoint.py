"""Keys of `checkpoint`: when the state is saved, and which saved states are kept."""

from framework.config.key import LARGEST, Key

KEYS = {
    "every": Key("1 epoch", "period of saves, and one at the end; '' = only at the end", duration=True),
    "keep": Key(3, "newest checkpoints kept", low=1, high=LARGEST),
    "keep_hours": Key(0.0, "keep the first checkpoint and then one in this many hours for good; 0 = none", low=0),
    "best_metric": Key("", "'split/metric' whose best checkpoint is kept as well, e.g. 'test/accuracy'; '' = off"),
    "average": Key(
        1,
        "evaluate, export: take the mean of the weights of so many checkpoints, the newest or best",
        low=1,
        high=LARGEST,
    ),
    "asynchronous": Key(True, "write while training continues; False = training waits"),
    "on_error": Key(
        "stop",
        "after a failed write, as on a full disk: stop the run or continue; for metrics.jsonl too",
        choices=("stop", "continue"),
    ),
}
