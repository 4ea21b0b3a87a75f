"""The hooks of an experiment: made, checked, named in what they raise, and their states in checkpoints.

own = own_hooks(run)               # run.note is that of the checkpoint that the run goes on from
hooks = Hooks([*built_in_hooks(run, interval), *own.hooks], start, run.total_steps)
checkpoints.save(state, own.note())
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from framework.config import to_steps
from framework.data.bucketed import epoch_of
from framework.errors import UserError
from framework.experiment import user_code
from framework.experiment.returns import checked, shown, takes
from framework.run.hooks import BUILT_IN, Context, Hook
from framework.run.run import Run

NOTE_KEY = "hooks"  # in the note of a checkpoint: {name of a hook: its state}
_NAMELESS = ("<lambda>", "partial")


@dataclasses.dataclass(frozen=True)
class OwnHooks:
    """The hooks of an experiment, and the states that its checkpoints hold.

    Attributes:
      hooks: with names, with durations in steps, and with actions that name the hook if they raise.
      stateful: {name: object with `state` and `load`}.
      kept: {name: state} of hooks that the checkpoint knows and `make_hooks` does not return.
      folder: the run folder.
    """

    hooks: Sequence[Hook]
    stateful: Mapping[str, Any]
    kept: Mapping[str, Any]
    folder: Path

    def note(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps of the hooks; {} if that is nothing."""
        states = {name: self._state(name) for name in self.stateful}
        return {NOTE_KEY: {**self.kept, **states}} if self.kept or states else {}

    def load(self, name: str, state: Any) -> None:
        """Gives a hook the state that a checkpoint has of it."""
        with _named(name, self.folder):
            self.stateful[name].load(_json(state, name, "state"))

    def _state(self, name: str) -> Any:
        with _named(name, self.folder):
            return _json(self.stateful[name].state(), name, "state()")


def own_hooks(run: Run) -> OwnHooks:
    """Makes the hooks of the experiment, with their states as in the checkpoint that the run goes on from.

    Raises:
      UserError: `make_hooks` or a `load` raised, or returned what is no list of hooks; two hooks have one name; `every`
        is no duration; a state is not JSON.
    """
    hooks: list[Hook] = []
    for returned in _returned(run):
        hook = _settled(returned, run)
        if hook.name in {*BUILT_IN, *(other.name for other in hooks)}:
            whose = "each run has one" if hook.name in BUILT_IN else "make_hooks returned two"
            raise UserError(f"two hooks are called '{hook.name}' ({whose}). Write Hook({hook.every!r}, …, name='…').")
        hooks.append(hook)
    stateful = {hook.name: hook.action for hook in hooks if _has_state(hook)}
    saved = run.note.get(NOTE_KEY, {})
    kept = {name: state for name, state in saved.items() if name not in stateful}
    guarded = [dataclasses.replace(hook, action=_guarded(hook, run.workdir)) for hook in hooks]
    own = OwnHooks(guarded, stateful, kept, run.workdir)
    for name in stateful.keys() & saved.keys():
        own.load(name, saved[name])
    own.note()  # a state that is not JSON is refused now, not at the first save
    if run.note and run.replicas.is_chief:
        _tell(run, [name for name in stateful if name not in saved], list(kept))
    return own


def _returned(run: Run) -> Sequence[Any]:
    if "make_hooks" not in run.experiment.functions:
        return []
    with user_code.explained(run.workdir):
        hooks: Sequence[Any] = checked(run.experiment.functions)["make_hooks"](run.resolved, run)
        return hooks


def _settled(hook: Any, run: Run) -> Hook:
    """Returns the hook with a name, and with `every` in steps."""
    if not isinstance(hook, Hook):
        raise UserError(
            f"make_hooks returned a list with {shown(hook)}. A hook is framework.Hook(every, action): Hook(100, show)."
        )
    name = hook.name or getattr(hook.action, "__name__", type(hook.action).__name__)
    if not isinstance(name, str) or name in _NAMELESS or not name.isprintable():
        raise UserError(f"make_hooks returned a hook without a name: {shown(hook.action)}. Write Hook(…, name='…').")
    if not takes(hook.action, 1):
        raise UserError(f"hook '{name}': its action is {shown(hook.action)}. Write a function of the context.")
    return dataclasses.replace(hook, name=name, every=_period(hook, name, run))


def _period(hook: Hook, name: str, run: Run) -> int:
    """Returns `every` in steps."""
    wanted = "Write a number of steps, or a duration such as '1 epoch'."
    every = hook.every
    if isinstance(every, str):
        try:
            data = run.data
            every = to_steps(every, data.steps_per_epoch, data.batch_size, run.total_steps, epoch_of(data))
        except (UserError, OverflowError) as error:  # infinite: epochs of data whose length is not known
            raise UserError(f"hook '{name}': every={hook.every!r} is no duration. {wanted}") from error
    if type(every) is not int or every < 0:
        raise UserError(f"hook '{name}': every={hook.every!r} is no duration. {wanted}")
    if not every and not hook.at_end:
        raise UserError(f"hook '{name}' is never due: every={hook.every!r} and at_end=False. {wanted}")
    return every


def _has_state(hook: Hook) -> bool:
    """Returns whether a hook has a state; raises UserError if it could be saved, but not loaded."""
    has = {method: callable(getattr(hook.action, method, None)) for method in ("state", "load")}
    if has["state"] != has["load"]:
        there, missing = ("state()", "load(state)") if has["state"] else ("load(state)", "state()")
        raise UserError(f"hook '{hook.name}' has {there} and no {missing}. Write both, or neither.")
    return has["state"]


def _guarded(hook: Hook, folder: Path) -> Callable[[Context], None]:
    """Returns the action of a hook, which names the hook if it raises."""

    def action(context: Context) -> None:
        with _named(hook.name, folder):
            hook.action(context)

    return action


@contextlib.contextmanager
def _named(name: str, folder: Path) -> Iterator[None]:
    """Turns what a hook raises into one line with its name; the traceback goes to the run folder."""
    begin = f"hook '{name}': "
    try:
        with user_code.explained(folder), user_code.named(f"hook '{name}'"):
            yield
    except UserError as error:
        if str(error).startswith(begin):
            raise
        raise UserError(f"{begin}{error}") from error


def _json(value: Any, name: str, place: str) -> Any:
    """Returns a copy of a hook's state, in which tuples are lists; raises UserError if it is not JSON."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_json(entry, name, f"{place}[{index}]") for index, entry in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise UserError(f"hook '{name}': {place} has the key {key!r}, and JSON has text as keys. Write str(…).")
        return {key: _json(entry, name, f"{place}['{key}']") for key, entry in value.items()}
    raise UserError(
        f"hook '{name}': {place} is {shown(value)}, which is not JSON. Write numbers, text, None, lists and dicts; of"
        " an array, array.tolist()."
    )


def _tell(run: Run, fresh: Sequence[str], kept: Sequence[str]) -> None:
    step = int(run.state.step)
    for name in fresh:
        logging.info("hook '%s' has no state in the checkpoint of step %d: it starts fresh", name, step)
    for name in kept:
        logging.warning(
            "the checkpoint of step %d has the state of a hook '%s', which make_hooks does not return or which takes no"
            " state: it is kept",
            step,
            name,
        )
