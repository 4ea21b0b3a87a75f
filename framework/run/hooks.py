"""What happens beside the step, and when. An experiment adds hooks of its own:

    from framework import Hook

    def make_hooks(cfg, run):
        return [Hook(100, show_weights), Hook("1 epoch", Rises())]

    def show_weights(context):                       # a function; the hook is called 'show_weights'
        kernel = context.run.model.layers[1].kernel.numpy()
        context.writer.images(context.step, {"kernel": kernel.T.reshape(-1, 28, 28)})

    class Rises:                                     # an object with a state; the hook is called 'Rises'
        def __init__(self):
            self.count, self.last = 0, None

        def __call__(self, context):                 # counts how often the loss of an evaluation has risen
            loss = context.results.get("test/loss")
            self.count += self.last is not None and loss > self.last
            self.last = loss
            context.writer.scalars(context.step, {"rises": self.count})

        def state(self):                             # JSON; saved in each checkpoint under the hook's name
            return {"count": self.count, "last": self.last}

        def load(self, state):                       # what state() returned, when a run goes on
            self.count, self.last = state["count"], state["last"]

Due: a hook acts at each multiple of `every` steps and at the end of the run. No block of steps runs past a due hook; a
hook that is not due costs nothing.

Order: all hooks due at a step act one after the other: log, histograms, evaluate, then the experiment's in the order of
the list. After them at most one checkpoint is saved, so no checkpoint stands between two hooks of its step.

Resume: `make_hooks` is called again when a run starts, resumes or goes back before a non-finite step. Then each hook
with a `load` gets its state from the checkpoint. A hook without an entry there starts fresh, and an entry without a
hook is kept; the log says so. What a hook without `state` remembers is lost.

Workers: every worker calls every hook, because what computes on all replicas, such as an evaluation, needs all workers.
Only the chief writes: the writers of other workers do nothing, and the chief's `state()` is the one that is saved.

Errors: an exception ends the run with one line that names the hook; the traceback is in the run folder, in
failure/traceback.txt.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block
from framework.writers import MultiWriter

BUILT_IN = ("log", "histograms", "evaluate", "save")  # names of the hooks that each run has


@dataclasses.dataclass
class Context:
    """What a hook gets.

    Attributes:
      step: how many steps are taken, as in metrics.jsonl.
      block: the numbers of the newest steps; `block.row(len(block.rows) - 1)` is the last one.
      run: with model, state, config and data. A hook reads the state: a replayed step would not have what it changes.
      writer: where scalars, histograms, images and texts go.
      progress: time, speed, newest row and best evaluations.
      is_save_due: whether a checkpoint is saved after the hooks of this step.
    """

    step: int
    block: Block
    run: Run
    writer: MultiWriter
    progress: Progress
    is_save_due: bool = False

    @property
    def results(self) -> Mapping[str, float]:
        """{'split/metric': value} of the newest evaluation; {} before the first."""
        return self.progress.evaluations

    def save(self) -> None:
        """Asks for a checkpoint, which is saved after all hooks of this step."""
        self.is_save_due = True


@dataclasses.dataclass(frozen=True)
class Hook:
    """An action and when it is due.

    Attributes:
      every: steps, or a duration such as '1 epoch'; 0 or '' is at the end of the run alone.
      action: called with the Context; a function, or an object that may have `state()` and `load(state)`.
      name: of the hook, in messages and checkpoints; by default that of the function or of the object's class.
      at_end: whether the hook is due at the end of the run too.
    """

    every: int | str
    action: Callable[[Context], None]
    name: str = ""
    at_end: bool = True

    def next_step(self, step: int, total: int) -> int:
        """Returns the first step after `step` at which the hook is due; a step past `total` if there is none."""
        period = int(self.every)
        last = total if self.at_end and step < total else total + 1
        return min(last, (step // period + 1) * period) if period else last


class Hooks:
    """The hooks of a run at work.

    Args:
      hooks: in the order in which they act.
      start: the step from which the run goes on.
      total: the last step of the run.
    """

    def __init__(self, hooks: Sequence[Hook], start: int, total: int) -> None:
        self._hooks = tuple(hooks)
        self._due = [hook.next_step(start, total) for hook in hooks]
        self._total = total

    @property
    def next_step(self) -> int:
        """The next step at which a hook is due."""
        return min(self._due)

    def act(self, context: Context) -> None:
        """Calls the hooks that are due.

        Raises:
          RuntimeError: the loop passed over a due step, which would lose a row or an evaluation in silence.
        """
        for index, hook in enumerate(self._hooks):
            due = self._due[index]
            if context.step > due:
                raise RuntimeError(
                    f"hook '{hook.name}' was due at step {due}, but the loop came by at step {context.step}"
                )
            if context.step == due:
                part = hook.name if hook.name in BUILT_IN else f"hooks/{hook.name}"
                with context.progress.spending(part):
                    hook.action(context)
                self._due[index] = hook.next_step(context.step, self._total)
