"""The hooks that each run has, in the form of an experiment's own.

hooks = Hooks([*built_in_hooks(run, interval), *own.hooks], start, run.total_steps)
"""

import math

from framework import optim, paths
from framework.data.bucketed import Bucketed, Seen
from framework.evaluators import Report
from framework.run import evaluation
from framework.run.hooks import BUILT_IN, Context, Hook
from framework.run.interval import PREFIX as MEAN
from framework.run.interval import Interval
from framework.run.progress import PADDING, Spent
from framework.run.run import Run
from framework.step import compile_choice


def built_in_hooks(run: Run, interval: Interval) -> list[Hook]:
    """Returns the hooks log, histograms, evaluate and save.

    Args:
      interval: the sums since the last row; `log` begins a new one.
    """
    cfg = run.resolved
    log, histograms, evaluate, save = BUILT_IN

    def write_row(context: Context) -> None:
        row, means = context.block.row(len(context.block.rows) - 1), interval.means()
        lap = context.progress.lap()
        times = {"examples_per_second": context.progress.examples_per_second(lap)}
        if isinstance(run.data, Bucketed):
            first = (context.step - 1) // cfg.log.every * cfg.log.every if cfg.log.every else 0
            times = _seen(run.data.seen(first, context.step - first), context.step - first, lap)
        if not run.data.is_resident:
            times["data_wait"] = lap.data_wait
        context.writer.scalars(context.step, {**row, **means, **times, **run.sparsity(), **run.distinct_values()})
        context.progress.logged(context.step, {name.removeprefix(MEAN): value for name, value in means.items()})
        interval.begin()

    return [
        Hook(cfg.log.every, write_row, log),
        Hook(cfg.log.histograms_every, write_histograms, histograms, at_end=False),
        Hook(cfg.eval.every, evaluate_all, evaluate),
        Hook(cfg.checkpoint.every, lambda context: context.save(), save),
    ]


def _seen(seen: Seen, steps: int, lap: Spent) -> dict[str, float]:
    """Returns the padding of the steps since the last row, and how fast examples and tokens are seen.

    Args:
      seen: by the steps since the last row.
      steps: their number.
      lap: the time of those among them that did not compile.
    """
    speed = lap.steps / steps / lap.seconds if lap.steps else math.nan
    return {
        PADDING: seen.padding,
        "examples_per_second": seen.examples * speed,
        "tokens_per_second": seen.tokens * speed,
    }


def write_histograms(context: Context) -> None:
    """Writes the distributions of the weights, and of the gradients that the next step takes at these weights."""
    run = context.run
    weights = {f"weights/{path}": value.numpy() for path, value in paths.trainable(run.model).items()}
    gradients = {f"gradients/{path}": value for path, value in run.train_block.inspect(_mode(run)).items()}
    context.writer.histograms(context.step, weights | gradients)


def _mode(run: Run) -> str:
    """Returns how the gradients of a histogram are compiled."""
    if "graph" in compile_choice.slow_convolutions(run.probe.graph, run.replicas):
        return "xla_gradients"
    # A histogram may meet any bucket: to trace each costs several times what its eager gradients do. A strategy is slow
    # when it is called eagerly, and says so.
    return "eager" if isinstance(run.data, Bucketed) and run.replicas.strategy is None else "graph"


def evaluate_all(context: Context) -> None:
    """Evaluates on every split and by every evaluator, and asks for a checkpoint if the result is the best so far."""
    take_evaluation(evaluation.report(context.run), context)


def take_evaluation(report: Report, context: Context) -> None:
    """Does what follows an evaluation: writes it, and tells those who wait for it."""
    run, cfg = context.run, context.run.resolved
    results = report.scalars
    context.progress.observe(context.step, results)
    evaluation.write(report, context.writer, context.step)
    stopping, best = cfg.early_stopping, cfg.checkpoint.best_metric
    if stopping.metric:
        run.state.early.observe(results[stopping.metric], context.step, run.modes[stopping.metric], stopping.min_delta)
    optim.observe(run.state.schedule, results)
    if best and run.state.best.observe(results[best], context.step, run.modes[best]):
        context.save()
