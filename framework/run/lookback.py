"""How an evaluation of a trained run differs from the run: other examples, or other values of config keys.

    lines(run)          # ["on other data than the run was trained with: other examples of 'test'"]

Modes that look back, such as `--mode=evaluate`, print these lines, so that no number is taken for one of the run.
"""

from framework.config import base_config, flatten
from framework.run import continuity, stored_config
from framework.run.run import Run

# The framework's keys that decide which examples are evaluated, and which arithmetic evaluates them.
_DATA = ("data.name", "data.dir", "eval.splits")
_NUMBERS = ("train.precision",)


def lines(run: Run) -> list[str]:
    """Returns one line if the weights are a mean, one if the data differ, one if the precision or an own key differs.

    Args:
      run: with a state that was just restored.
    """
    stored = stored_config.read(run.workdir)
    known = flatten(base_config())
    on_data = _other_examples(run)
    otherwise = []
    for key, (there, now) in (stored.differing(run.config) if stored else {}).items():
        is_own = key not in known
        if key in _DATA or (is_own and key.startswith("data.")):
            on_data.append(f"{key}={now!r} (the run: {there!r})")
        elif key in _NUMBERS or is_own:
            otherwise.append(f"{key}={now!r} (the run: {there!r})")
    differences = {"on other data than the run was trained with": on_data, "not as the run was trained": otherwise}
    return [
        *mean_lines(run),
        *(f"{what}: {'; '.join(details)}" for what, details in differences.items() if details),
    ]


def mean_lines(run: Run) -> list[str]:
    """Returns one line if the weights are the mean of several checkpoints."""
    return [f"mean of the checkpoints of steps {', '.join(map(str, run.averaged))}"] if run.averaged else []


def _other_examples(run: Run) -> list[str]:
    """Returns 'other examples of …' for each split whose hash in the restored checkpoint differs."""
    splits = continuity.other_splits(run.data_facts(), run.checkpoints.facts(int(run.state.step)))
    return [f"other examples of '{split}'" for split in splits]
