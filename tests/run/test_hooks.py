"""framework/run/hooks.py: when hooks are due, walked step by step, and that a missed step is an error."""

import pytest

from framework.run.hooks import Context, Hook, Hooks
from framework.run.progress import Progress


def at(step, block=None):
    return Context(step, block, None, None, Progress(1, 0.0, {}, {}))


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
    hook = Hook(period, print, at_end=at_end)
    for start in range(total + 1):
        step, steps = start, []
        while (step := hook.next_step(step, total)) <= total:
            steps.append(step)
        assert steps == [d for d in due if d > start]
        assert hook.next_step(total, total) > total


def make_hooks(period=3, start=0, total=10, at_end=True):
    calls = []
    hook = Hook(period, lambda context: calls.append((context.step, context.block)), "log", at_end)
    return Hooks([hook], start, total), calls


def test_a_hook_acts_at_its_steps_with_the_block_it_is_given():
    hooks, calls = make_hooks()
    seen = []
    for step in range(1, 11):
        seen.append(hooks.next_step)
        hooks.act(at(step, f"block {step}"))
    assert calls == [(step, f"block {step}") for step in (3, 6, 9, 10)]
    assert seen == [3, 3, 3, 6, 6, 6, 9, 9, 9, 10]
    assert hooks.next_step > 10


def test_a_resumed_hook_goes_on_from_its_start():
    for start, due in ((0, 3), (2, 3), (3, 6), (9, 10), (10, 11)):
        assert make_hooks(start=start)[0].next_step == due


def test_blocks_that_end_where_a_hook_is_due_are_enough():
    hooks, calls = make_hooks(period=4)
    for step in (4, 5, 8, 10):
        hooks.act(at(step))
    assert [step for step, _ in calls] == [4, 8, 10]


def test_a_missed_step_raises_and_does_not_act():
    hooks, calls = make_hooks()
    with pytest.raises(RuntimeError) as error:
        hooks.act(at(4))
    assert str(error.value) == "hook 'log' was due at step 3, but the loop came by at step 4"
    assert calls == []


def test_a_missed_end_raises_too():
    hooks, _ = make_hooks(period=0)
    with pytest.raises(RuntimeError) as error:
        hooks.act(at(11))
    assert str(error.value) == "hook 'log' was due at step 10, but the loop came by at step 11"


def test_what_is_never_due_is_never_missed():
    hooks, calls = make_hooks(period=0, at_end=False)
    for step in range(1, 11):
        hooks.act(at(step))
    assert calls == []


def test_an_action_that_fails_stays_due():
    def action(context):
        raise OSError("disk full")

    hooks = Hooks([Hook(3, action, "save")], 0, 10)
    with pytest.raises(OSError, match="disk full"):
        hooks.act(at(3))
    assert hooks.next_step == 3


def test_hooks_that_are_due_act_in_order_and_one_asks_for_the_checkpoint_of_all():
    acted = []

    def act(name, saves):
        def action(context):
            acted.append((name, context.step, context.is_save_due))
            if saves:
                context.save()

        return action

    hooks = Hooks([Hook(2, act("a", True), "a"), Hook(3, act("b", True), "b"), Hook(6, act("c", False), "c")], 0, 6)
    due = []
    while hooks.next_step <= 6:
        context = at(hooks.next_step)
        hooks.act(context)
        due.append((context.step, context.is_save_due))
    assert acted == [
        ("a", 2, False), ("b", 3, False), ("a", 4, False), ("a", 6, False), ("b", 6, True), ("c", 6, True),
    ]  # fmt: skip
    assert due == [(2, True), (3, True), (4, True), (6, True)]
