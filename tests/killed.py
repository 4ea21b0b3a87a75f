"""Trains a small run once for each phase of a save, killed in that phase, and once more to its end.

    python -m tests.killed FOLDER pruned        # FOLDER/results.json; or: quantized

A process is forked for each, before TensorFlow runs anything: its import is paid once.
"""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

from framework.checkpoint import checkpoints, directory, storage
from framework.checkpoint.checkpoints import digest
from framework.run import loop
from tests import small

STEP = 4
SETTINGS = {"checkpoint.every": "2 steps", "checkpoint.keep": 1, "train.duration": "6 steps", "train.compile": "eager"}
SETTINGS |= {"eval.batch_size": small.EXAMPLES}  # a batch, not ten, in each of eleven evaluations
KINDS = {
    "pruned": {"prune.sparsity": 0.5, "prune.begin": "1 step", "prune.end": "5 steps", "prune.every": "1 step"},
    "quantized": {
        **{"quantize.name": "int8", "quantize.begin": "3 steps", "quantize.momentum": 0.5},
        **{"cluster.name": "kmeans", "cluster.clusters": 4, "cluster.begin": "3 steps"},
    },
}


def kill():
    os.kill(os.getpid(), signal.SIGKILL)


def when(condition, module, name):
    """Kills at the entry of a function, if its arguments are those."""
    original = getattr(module, name)

    def killing(*args, **kwargs):
        if condition(*args, **kwargs):
            kill()
        return original(*args, **kwargs)

    setattr(module, name, killing)


def at_the_second_part(action):
    """Calls it in the writer, when a part of the first array of more than one is on disk, and at each part after."""
    original = storage._chunks

    def acting(array):
        is_it = list(Path(sys.argv[1]).glob(f"*/checkpoints/.step-{STEP:08d}.tmp"))
        for place, part in enumerate(original(array)):
            if is_it and place:
                action()
            yield part

    storage._CHUNK_BYTES = 8
    storage._chunks = acting


def twice(number):
    """Asks for the end, and asks again while a write is under way that would take an hour."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent made of it
    left = [number, number]

    def ask():
        if left:
            os.kill(os.getpid(), left.pop())
        time.sleep(2 if left else 0.1)

    at_the_second_part(ask)


def in_the_middle_of_pruning():
    original = shutil.rmtree

    def killing(path, *args, **kwargs):
        if Path(path).name == ".step-00000002.tmp":
            (Path(path) / "manifest.json").unlink()
            kill()
        original(path, *args, **kwargs)

    shutil.rmtree = killing


PHASES = {
    "during the copy": lambda: when(lambda state, memory: int(state.step) == STEP, checkpoints, "copy_of"),
    "before the write": lambda: when(
        lambda folder, arrays, facts, _: facts["step"] == STEP, checkpoints, "write_arrays"
    ),
    "in the middle of the arrays": lambda: at_the_second_part(kill),
    "before the manifest": lambda: when(lambda path, value: value["step"] == STEP, storage, "write_json"),
    "before the rename": lambda: when(lambda path, target: f"step-{STEP:08d}" == target.name, Path, "rename"),
    "before the pointer": lambda: when(lambda path, value: value["step"] == STEP, directory, "write_json"),
    "in the middle of pruning": in_the_middle_of_pruning,
    "SIGTERM twice": lambda: twice(signal.SIGTERM),
    "SIGINT twice": lambda: twice(signal.SIGINT),
}


def train(workdir, patch, kind):
    """The step from which the run goes on, and the digest of its end."""
    if patch is not None:
        patch()
    built = small.build(workdir, **SETTINGS, **KINDS[kind])
    start = built.open()
    loop.train(built)
    return {"start": start, "digest": digest(built.state)}


def main(folder, kind):
    results = {}
    for phase, patch in [("none", None), *PHASES.items()]:
        ends = []
        for attempt, used in enumerate((patch, None)):
            process = os.fork()
            if not process:
                (folder / f"{phase}.{attempt}.json").write_text(json.dumps(train(folder / phase, used, kind)))
                sys.exit(0)
            ends.append(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        results[phase] = ends
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
