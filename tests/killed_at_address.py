"""Trains a small run at an address once for each moment of a copy, killed at that moment, and to its end afterwards.

    python -m tests.killed_at_address FOLDER        # FOLDER/results.json

A process is forked for each, before TensorFlow runs anything: its import is paid once. The run goes on twice: on the
same machine, and on another one, which has a cache of its own.
"""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

from framework.checkpoint.checkpoints import digest, read_arrays
from framework.checkpoint.snapshot import is_whole
from framework.errors import UserError
from framework.folder import step_of
from framework.remote import holder
from framework.remote.address import Place
from framework.run import loop
from tests import small

STEP, LAST = 4, 6
SETTINGS = {"checkpoint.every": "2 steps", "checkpoint.keep": 1, "checkpoint.asynchronous": False}
SETTINGS |= {"train.duration": f"{LAST} steps", "train.compile": "eager"}
SAVED = f"checkpoints/step-{STEP:08d}"
# The method of Place and the file of the call before which the process is killed, once a third file is at the address.
MOMENTS = {
    "arrays": ("put", f"{SAVED}/arrays.bin", ""),
    "manifest": ("put", f"{SAVED}/manifest.json", ""),
    "pointer": ("put", "checkpoints/last.json", f"{SAVED}/manifest.json"),
    "deletion": ("delete", f"checkpoints/step-{STEP - 2:08d}/arrays.bin", ""),
    "marker": ("write", ".copied.json", f"{SAVED}/manifest.json"),
    "end": ("delete", holder.HOLDER, ""),
}


def kill_before(method, killing_name, after):
    """Kills this process before the call of a method of `Place` for a file, once another file is at the address."""
    original = getattr(Place, method)

    def killing(self, *arguments):
        if killing_name in arguments and (not after or self.read(after)):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    setattr(Place, method, killing)


def forked(work):
    """Runs a function in a process of its own; returns its exit status, negative for a signal."""
    if not (child := os.fork()):
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder):
    """Writes {moment: what was found} to results.json."""
    results = {}

    def alone():
        run = small.build(folder / "alone", **SETTINGS)
        loop.train(run)
        (folder / "alone.sha256").write_text(digest(run.state))

    assert forked(alone) == 0
    results["alone"] = (folder / "alone.sha256").read_text()
    for moment, when in MOMENTS.items():
        results[moment] = _killed(folder / moment, when)
    (folder / "results.json").write_text(json.dumps(results))


def _killed(folder, when):
    box = folder / "box"
    address = f"file://{box}/run"

    def killed():
        os.environ["FRAMEWORK_CACHE"] = str(folder / "cache")
        run = small.build(address, **SETTINGS)
        run.remote.later = run.remote._copy  # waits for each copy, so that a kill is in that of STEP
        kill_before(*when)
        loop.train(run)

    def resumed(machine, place):
        os.environ["FRAMEWORK_CACHE"] = str(folder / machine)
        if machine != "cache":
            try:
                loop.train(small.build(place, **SETTINGS))
            except UserError as error:
                (folder / f"{machine}.refused").write_text(str(error))
            holder.DEAD_SECONDS, holder.RENEWAL_SECONDS = 0.0, 0.1
        run = small.build(place, **SETTINGS)
        begin = run.open()
        result = loop.train(small.build(place, **SETTINGS))
        (folder / f"{machine}.json").write_text(json.dumps({"begin": begin, "status": result["status"]}))

    found = {"status": forked(killed)}
    checkpoints = box / "run" / "checkpoints"
    found["whole"] = sorted(step_of(path.name) for path in checkpoints.iterdir() if path.is_dir() and is_whole(path))
    shutil.copytree(box, folder / "other box")
    for machine, place in (("cache", address), ("another", f"file://{folder}/other box/run")):
        found[machine] = {"exit": forked(lambda machine=machine, place=place: resumed(machine, place))}
        found[machine] |= json.loads((folder / f"{machine}.json").read_text())
        found[machine]["sha256"] = _digest_of(Path(place.removeprefix("file://")))
    found["refused"] = (folder / "another.refused").read_text() if (folder / "another.refused").exists() else ""
    return found


def _digest_of(run):
    """The digest of the last checkpoint at an address."""
    return digest(read_arrays(run / "checkpoints" / f"step-{LAST:08d}"))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
