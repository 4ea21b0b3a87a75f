"""Warns if a compiled function of the run is traced or compiled again.

Retracing(run, progress).look(block)    # "the training step was traced 3 times for 2 shapes (plans[0]['index']: …"
"""

from framework.compile import Compiled
from framework.errors import RunError
from framework.run.progress import Progress
from framework.run.run import Run
from framework.step.block import Block


class Retracing:
    """Rule: the training step was traced or compiled, or an evaluation traced, more than once for a bucket.

    Each trace of a large model takes seconds and stays in memory. A step that goes on compiling ends the run, see
    `keeps_compiling`.
    """

    def __init__(self, run: Run, progress: Progress) -> None:
        self._run = run

    def look(self, block: Block) -> str:
        """Returns the warning; '' while there is none."""
        compiled = self._run.train_block.compiled
        if compiled.has_retraced:
            return f"{_traced('the training step', compiled)} {_OWN_BATCHES}"
        if compiled.has_recompiled:
            return "the training step was compiled again: compare with --config.train.compile=graph"
        for split, of_split in self._run.eval_blocks.items():
            if of_split.compiled.has_retraced:
                return f"{_traced(f'the evaluation of {split}', of_split.compiled)} {_OWN_BATCHES}"
        return ""


def keeps_compiling(run: Run) -> RunError:
    """Returns the error of a run whose step is compiled again and again."""
    compiled = run.train_block.compiled
    why = (
        f"The newest trace has {compiled.why_traced}. {_OWN_BATCHES}"
        if compiled.has_retraced
        else "In a compiled step x[i], with i read from a variable, compiles again for each i: write tf.gather(x, i)."
        " What cannot be changed, such as an LSTM on a CPU, needs --config.train.compile=graph, in another folder."
    )
    return RunError(
        f"the training step keeps being compiled: {compiled.traces} traces and {compiled.compilations} compilations in"
        f" {compiled.calls} calls (train.compile='{compiled.mode}'). {why} Step {int(run.state.step)} is saved."
    )


_OWN_BATCHES = "Let `plan` of the batches return the same fields, shapes and dtypes each time."


def _traced(name: str, compiled: Compiled) -> str:
    return f"{name} was traced {compiled.traces} times for {compiled.shapes} shape(s) ({compiled.why_traced})."
