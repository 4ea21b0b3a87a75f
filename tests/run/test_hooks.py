"""framework/run/hooks.py: when things are due, walked step by step, and that a missed step is an error."""

import pytest

from framework.run.hooks import Every, Hook


@pytest.mark.parametrize(
    ("period", "at_end", "total", "due"),
    [
        (3, True, 10, [3, 6, 9, 10]),
        (3, True, 9, [3, 6, 9]),
        (3, False, 10, [3, 6, 9]),
        (1, True, 4, [1, 2, 3, 4]),
        (20, True, 10, [10]),
        (20, False, 10, []),
        (10, False, 10, [10]),
        (0, True, 10, [10]),
        (0, False, 10, []),
    ],
)
def test_due_steps_from_every_start(period, at_end, total, due):
    when = Every(period, at_end)
    for start in range(total + 1):
        step, found = start, []
        while (step := when.next_step(step, total)) <= total:
            found.append(step)
        assert found == [d for d in due if d > start]
        assert when.next_step(total, total) > total


def make_hook(period=3, start=0, total=10, at_end=True):
    calls = []
    return Hook("log", Every(period, at_end), lambda step, block: calls.append((step, block)), start, total), calls


def test_a_hook_acts_at_its_steps_with_the_block_it_is_given():
    hook, calls = make_hook()
    seen = []
    for step in range(1, 11):
        seen.append(hook.next_step)
        hook(step, f"block {step}")
    assert calls == [(step, f"block {step}") for step in (3, 6, 9, 10)]
    assert seen == [3, 3, 3, 6, 6, 6, 9, 9, 9, 10]
    assert hook.next_step > 10


def test_a_resumed_hook_goes_on_from_its_start():
    for start, due in ((0, 3), (2, 3), (3, 6), (9, 10), (10, 11)):
        assert make_hook(start=start)[0].next_step == due


def test_blocks_that_end_where_it_is_due_are_enough():
    hook, calls = make_hook(period=4)
    for step in (4, 5, 8, 10):
        hook(step, None)
    assert [step for step, _ in calls] == [4, 8, 10]


def test_a_missed_step_raises_and_does_not_act():
    hook, calls = make_hook()
    with pytest.raises(RuntimeError) as error:
        hook(4, None)
    assert str(error.value) == "hook 'log' was due at step 3, but the loop came by at step 4"
    assert calls == []


def test_a_missed_end_raises_too():
    hook, _ = make_hook(period=0)
    with pytest.raises(RuntimeError) as error:
        hook(11, None)
    assert str(error.value) == "hook 'log' was due at step 10, but the loop came by at step 11"


def test_what_is_never_due_is_never_missed():
    hook, calls = make_hook(period=0, at_end=False)
    for step in range(1, 11):
        hook(step, None)
    assert calls == []


def test_an_action_that_fails_stays_due():
    def action(step, block):
        raise OSError("disk full")

    hook = Hook("save", Every(3), action, 0, 10)
    with pytest.raises(OSError, match="disk full"):
        hook(3, None)
    assert hook.next_step == 3
