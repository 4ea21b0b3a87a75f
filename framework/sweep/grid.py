"""All combinations of the values that a `sweep(trial)` asks for.

    combinations(lambda trial: {"model.hidden": trial.suggest_categorical("hidden", [64, 128])})
    # [{'hidden': 64}, {'hidden': 128}]

A later question may depend on an earlier answer; each path through the questions is a combination.
"""

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from framework.errors import UserError

_MOST = 10_000


class _Path:
    """Stands in for a trial: answers by a path of positions, and by the first value beyond its end."""

    def __init__(self, path: Sequence[int], number: int) -> None:
        self.path = list(path)
        self.number = number
        self.params: dict[str, Any] = {}
        self.sizes: list[int] = []

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        return self._answer(name, list(choices))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> Any:
        self._check_step(name, step)
        return self._answer(name, range(low, high + 1, step))

    def suggest_float(self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False) -> Any:
        if step is None:
            raise UserError(
                f"sweep(trial): a grid needs a finite number of values, and suggest_float('{name}', {low:g}, {high:g})"
                " has no step. Write step=, or suggest_categorical, or leave --sampler=grid out."
            )
        self._check_step(name, step)
        # In decimal: 0.1 + 2 * 0.1 is above 0.3 in floats. Those of NumPy, the journal could not hold.
        first, last, by = (Decimal(repr(float(number))) for number in (low, high, step))
        return self._answer(name, [float(first + by * place) for place in range(int((last - first) // by) + 1)])

    def _check_step(self, name: str, step: float) -> None:
        if not step > 0:
            raise UserError(f"sweep(trial): step={step:g} of '{name}' must be above 0.")

    def _answer(self, name: str, values: Sequence[Any]) -> Any:
        if name in self.params:
            return self.params[name]
        if not values:
            raise UserError(f"sweep(trial): '{name}' has no value to choose from.")
        place = len(self.sizes)
        if place == len(self.path):
            self.path.append(0)
        self.sizes.append(len(values))
        self.params[name] = values[self.path[place]]
        return self.params[name]


def combinations(sweep: Callable[[Any], Any]) -> list[dict[str, Any]]:
    """Returns {name: value} of each combination, the last question varying fastest.

    Raises:
      UserError: a question has infinitely many answers or none or a step of 0, or there are more than 10,000
        combinations.
    """
    found: list[dict[str, Any]] = []
    path: list[int] = []
    while True:
        asked = _Path(path, len(found))
        sweep(asked)
        found.append(asked.params)
        if len(found) > _MOST:
            raise UserError(f"sweep(trial): the grid has more than {_MOST} combinations. Leave --sampler=grid out.")
        path = asked.path
        while path and path[-1] == asked.sizes[len(path) - 1] - 1:
            path.pop()
        if not path:
            return found
        path[-1] += 1
