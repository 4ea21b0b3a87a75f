"""--mode=replay --step=N: takes a step of a trained run once more, bit for bit, and prints everything about it.

python launch.py --config=experiments/mnist_mlp.py --workdir=runs/mnist --mode=replay --step=120 --eager
"""

import textwrap
from collections.abc import Iterator, Sequence

from framework import folder
from framework.run import stored_config
from framework.run.replay import ReplayedStep, replay_step
from framework.run.run import Run


def main(run: Run, overrides: Sequence[str], step: int, eager: bool = False) -> int:
    """Prints the step; returns 1 if it differs from the run's row, although the config is that of the run."""
    shown = replay_step(run, step, eager)
    begin = f"the checkpoint of step {shown.start}" if shown.start else "scratch"
    print(f"step {step} of {run.typed_workdir}, re-run from {begin}: {shown.outcome}")
    for section in (_scalars, _eager, _variables, _batch):
        lines = list(section(shown))
        print("\n".join(lines), end="\n\n" if lines else "")
    if not shown.logged:
        print("metrics.jsonl has no row of this step")
    elif not shown.differing:
        print("exactly the row of metrics.jsonl")
    else:
        stored = stored_config.read(run.workdir)
        is_own = stored is not None and not stored.differing(run.config)
        why = "on another machine or by another version?" if is_own else "under another config?"
        replicas = _replicas_then(run, step)
        if replicas not in (None, run.replicas.count):
            devices = f"=mirrored --config.runtime.virtual_devices={replicas}" if replicas > 1 else "=one_device"
            why = f"it was of {replicas} replicas. Type --config.runtime.strategy{devices}."
        print(f"NOT the row of metrics.jsonl, in {', '.join(shown.differing)}: {why}")
        return 1 if is_own else 0
    return 0


def _replicas_then(run: Run, step: int) -> int | None:
    """Returns the number of replicas with which the run took the step; None if it is not known."""
    starts = reversed(folder.starts(run.workdir))
    return next((start.get("replicas") for start in starts if start["step"] < step), None)


def _scalars(shown: ReplayedStep) -> Iterator[str]:
    yield f"  {'':<24} {'replayed':<24} {'logged' if shown.logged else ''}"
    for name, value in shown.scalars.items():
        logged = shown.logged.get(name, "")
        yield f"  {name:<24} {value!r:<24} {'not finite' if logged is None else logged}{_mark(shown, name)}"


def _mark(shown: ReplayedStep, name: str) -> str:
    return "  DIFFERS" if name in shown.differing else ""


def _eager(shown: ReplayedStep) -> Iterator[str]:
    if not shown.eager:
        return
    yield f"  {'':<24} {'eager':<24} relative difference from the compiled step"
    for name, value in shown.eager.items():
        compiled = shown.scalars[name]
        yield f"  {name:<24} {value!r:<24} {abs(value - compiled) / abs(compiled) if compiled else abs(value):.2g}"
    yield f"  {shown.finding or 'batch, layers, terms and gradients of the eager run are all finite'}"


def _variables(shown: ReplayedStep) -> Iterator[str]:
    yield f"  {'':<32} {'gradient norm':<16} weight norm"
    for path, norm in shown.gradient_norms.items():
        yield f"  {path:<32} {norm:<16.6g} {shown.weight_norms[path]:.6g}"


def _batch(shown: ReplayedStep) -> Iterator[str]:
    if not shown.indices:
        return
    rows = zip(*(shown.indices[name].tolist() for name in ("source", "index", "weight")), strict=True)
    examples = [f"{source}:{index}{'' if weight == 1 else f'*{weight:g}'}" for source, index, weight in rows]
    yield "  batch, as source:index, and *weight where it is not 1"
    yield from textwrap.wrap(" ".join(examples), 116, initial_indent="  ", subsequent_indent="  ")
