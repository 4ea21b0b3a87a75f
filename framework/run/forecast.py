"""What a whole run will take, before it begins: how often each hook acts, and how many checkpoints lie on the disk.

times_due(Hook(400, act), 1000)                     # 3: at steps 400, 800 and 1,000
times_either([save, evaluate], 1000)                # steps at which at least one of two hooks acts
checkpoints_at_once(config.checkpoint, 5, 7200.0)   # most checkpoints that are there at the same time
"""

import math

from ml_collections import ConfigDict, FrozenConfigDict

from framework.run.hooks import Hook


def times_due(hook: Hook, total: int) -> int:
    """Returns how often a hook acts in a run of `total` steps."""
    period = int(hook.every)
    if not period:
        return int(hook.at_end)
    return total // period + (hook.at_end and total % period > 0)


def times_either(first: Hook, second: Hook, total: int) -> int:
    """Returns at how many steps of a run of `total` steps at least one of two hooks acts.

    Both act at the end, as those of evaluations and saves do.
    """
    periods = [int(hook.every) for hook in (first, second) if hook.every]
    both = total // math.lcm(*periods) if len(periods) == 2 else 0
    return sum(total // period for period in periods) - both + all(total % period > 0 for period in periods)


def checkpoints_at_once(settings: ConfigDict | FrozenConfigDict, saves: int, seconds: float) -> int:
    """Returns the most checkpoints that a run has at the same time, the one that is being written among them.

    Args:
      settings: config.checkpoint.
      saves: checkpoints that the run writes in all.
      seconds: how long the run takes; `checkpoint.keep_hours` keeps more of a longer one.
    """
    hours, for_good = seconds / 3600, 0
    if settings.keep_hours:
        apart = hours / max(1, saves - 1)  # a checkpoint is kept when one is saved, so at a multiple of this
        period = apart * math.ceil(settings.keep_hours / apart - 1e-9) if apart else settings.keep_hours
        for_good = 1 + int(hours / period)
    return min(saves, settings.keep + 1 + bool(settings.best_metric) + for_good)
