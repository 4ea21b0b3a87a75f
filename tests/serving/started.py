"""A run folder with exports, and `--mode=serve` in a process of its own."""

import contextlib
import re
import subprocess
import sys
import threading

import numpy as np
import tensorflow as tf

from framework.export import SavedModel, Serving, Signature, export_all
from tests.documentation import ROOT
from tests.export.fakes import SIGNATURE, Scale, X, make_batch

# Texts come back in brackets, and as they are in an output that REST sends as base64.
TEXTS = Signature(
    lambda model, inputs: {"text": tf.strings.join(["<", inputs["word"], ">"]), "raw_bytes": inputs["word"]},
    {"word": tf.TensorSpec([None], tf.string)},
)
# Every dtype of numbers on its own way: an id from a table of four, and its neighbours.
TABLE = Signature(
    lambda model, inputs: {
        "value": tf.gather(tf.constant([0.5, 1.5, 2.5, 3.5], tf.float64), inputs["id"]),
        "is_even": inputs["id"] % 2 == 0,
        "next": inputs["id"] + 1,
    },
    {"id": tf.TensorSpec([None], tf.int64)},
)
BATCH = {**make_batch(X), "word": np.array([b"a", b"\xff\0", b""], object), "id": np.arange(3)}
SIGNATURES = {"serving_default": SIGNATURE, "texts": TEXTS, "table": TABLE}


def export(workdir, factor):
    """Exports a version that multiplies by a factor; returns its number."""
    hook = SavedModel(SIGNATURES, serving=Serving("scale", warm_up=(1, 4)))
    [report] = export_all([hook], Scale(factor), [BATCH], {}, workdir / "exports")
    assert report.failure == ""
    return int(report.path.partition("/")[2])


class Server:
    """`launch.py --mode=serve` with flags; `lines` has what it printed, `wait` waits for a line."""

    def __init__(self, workdir, *flags):
        command = [sys.executable, "launch.py", "--mode=serve", f"--workdir={workdir}", *flags]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, bufsize=1
        )
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self.lines.append(None)
            self._changed.notify_all()

    def wait(self, pattern, seconds=120):
        """The match of the first line in which a pattern is found."""

        def found():
            matches = (re.search(pattern, line) for line in self.lines if line is not None)
            return next(filter(None, matches), None) or (self.lines and self.lines[-1] is None)

        with self._changed:
            assert self._changed.wait_for(found, seconds), self.lines
            match = found()
        assert match is not True, self.lines
        return match

    def end(self):
        self.process.terminate()
        status = self.process.wait(60)
        self._reader.join()
        self.process.stdout.close()
        return status


@contextlib.contextmanager
def development(workdir, *flags):
    """A development server with its `addresses`: {"grpc": 'grpc://…', "http": 'http://…'}."""
    server = Server(workdir, "--development", "--port=0", "--rest_port=0", *flags)
    try:
        rest = server.wait(r"REST +(http://127\.0\.0\.1:\d+)/v1/models/")[1]
        server.addresses = {"grpc": server.wait(r"gRPC +(\S+)")[1], "http": rest}
        yield server
    finally:
        server.end()
