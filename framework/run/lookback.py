"""How a look at a trained run differs from the run: other examples, or values that were typed on top of its config.

lines(run)          # ["on other data than the run was trained with: other examples of 'test'"]
"""

from framework.config import base_config, flatten
from framework.run import stored_config
from framework.run.run import Run

# Of the framework's keys, those that decide which examples are evaluated, and what is computed of them.
_DATA, _NUMBERS = ("data.name", "data.dir", "eval.splits"), ("train.precision",)


def lines(run: Run) -> list[str]:
    """A line if the data are not those of the run, and one if what is computed is not; of a state just restored."""
    stored, known = stored_config.read(run.workdir), flatten(base_config())
    on_data, otherwise = _other_examples(run), []
    for key, (there, now) in (stored.differing(run.config) if stored else {}).items():
        is_own = key not in known
        if key in _DATA or (is_own and key.startswith("data.")):
            on_data.append(f"{key}={now!r} (the run: {there!r})")
        elif key in _NUMBERS or is_own:
            otherwise.append(f"{key}={now!r} (the run: {there!r})")
    found = {"on other data than the run was trained with": on_data, "not as the run was trained": otherwise}
    return [f"{what}: {'; '.join(details)}" for what, details in found.items() if details]


def _other_examples(run: Run) -> list[str]:
    """By the hashes of some of them in the checkpoint that was restored."""
    begun = run.checkpoints.facts(int(run.state.step)).get("data", {})
    return [
        f"other examples of '{split}'"
        for split, sample in run.facts()["data"].items()
        if None not in (sample, begun.get(split)) and sample != begun[split]
    ]
