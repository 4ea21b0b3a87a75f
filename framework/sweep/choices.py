"""Choices of a sweep that the journal cannot hold as they are, such as the tuples of a key of sizes.

sweep = recorded(lambda trial: {"model.sizes": trial.suggest_categorical("sizes", [(8, 8), (4,)])})
sweep(trial)               # Optuna is asked for '(8, 8)' or '(4,)', and the experiment's function is given the tuple

The journal is JSON: a tuple would come back as a list, another space than the one that the sweep began with.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from framework.config.overrides import plain

Sweep = Callable[[Any], Mapping[str, Any]]


def recorded(sweep: Sweep) -> Sweep:
    """Returns a `sweep(trial)` whose choices are recorded as None, bool, int, float or str."""
    return lambda trial: sweep(_Trial(trial))


class _Trial:
    """A trial whose `suggest_categorical` takes choices of any type; the rest is that of the trial."""

    def __init__(self, trial: Any) -> None:
        self._trial = trial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trial, name)

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """Returns one of the choices; a NumPy scalar is recorded as the number it is, a tuple as its text."""
        values = [plain(choice) for choice in choices]
        texts = [value if value is None or type(value) in (bool, int, float, str) else str(value) for value in values]
        return values[texts.index(self._trial.suggest_categorical(name, texts))]
