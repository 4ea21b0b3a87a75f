"""framework/run/forecast.py against a run that is walked through step by step."""

import types

import pytest

from framework.run import forecast
from framework.run.hooks import Hook


def steps_of(hook, total):
    """The steps at which the loop calls a hook."""
    step, found = 0, set()
    while (step := hook.next_step(step, total)) <= total:
        found.add(step)
    return found


HOOKS = [Hook(every, print, at_end=at_end) for every in (0, 1, 3, 4, 7, 20, 30) for at_end in (True, False)]


@pytest.mark.parametrize("total", [1, 12, 20, 21])
def test_hooks_are_counted_as_the_loop_calls_them(total):
    for hook in HOOKS:
        assert forecast.times_due(hook, total) == len(steps_of(hook, total)), hook
    at_end = [hook for hook in HOOKS if hook.at_end]
    for first in at_end:
        for second in at_end:
            wanted = len(steps_of(first, total) | steps_of(second, total))
            assert forecast.times_either(first, second, total) == wanted, (first, second)


@pytest.mark.parametrize("keep", [1, 3])
@pytest.mark.parametrize("best_metric", ["", "test/loss"])
@pytest.mark.parametrize("keep_hours", [0.0, 1.0, 0.4])
@pytest.mark.parametrize("saves", [1, 2, 30])
def test_checkpoints_at_once_are_those_of_a_run_whose_best_is_its_oldest(keep, best_metric, keep_hours, saves):
    """Saves are 15 minutes apart; each is written before the ones that are not kept are deleted."""
    there, most, due, good = [], 0, 0.0, set()
    for number in range(saves):
        there.append(number)
        most = max(most, len(there))
        hours = number / 4
        if keep_hours and hours >= due:
            good.add(number)
            due = hours + keep_hours
        best = {1} if best_metric else set()  # the first of all is kept for good anyway
        there = [one for one in there if one in {*there[-keep:], *best, *good}]
    settings = types.SimpleNamespace(keep=keep, best_metric=best_metric, keep_hours=keep_hours)
    planned = forecast.checkpoints_at_once(settings, saves, 3600 * (saves - 1) / 4)
    assert most <= planned <= (min(saves, most + keep + 2) if keep_hours else most)
