"""A cluster of parameter servers in one process, and what a script says that has one.

TensorFlow connects a process to a cluster for good, so the process of the tests has none: `said_by` starts another one,
which calls `serve_here`. Chief, workers and parameter servers are the threads of that one.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from framework.cli.server import serve
from framework.distribute.cluster import Cluster
from framework.errors import UserError
from tests.distribute.test_cluster import local

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 250


def said_by(module, *arguments):
    """Returns the JSON that `python -m MODULE ARGUMENTS` prints."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_SECONDS,
        env={name: value for name, value in os.environ.items() if name != "TF_CONFIG"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def serve_here(workers, servers):
    """Starts a cluster and returns its servers, which live as long; this process is its chief from here on."""
    tasks = local(1 + workers + servers)
    os.environ["TF_CONFIG"] = Cluster(tasks, 0, servers).tf_config()
    return [serve(Cluster(tasks, index, servers)) for index in range(1, len(tasks))]


def told_of(run, example):
    """Returns what ten steps say of an example that cannot be trained on, and the step and place where it comes."""
    indices = np.stack([run.data.indices(step)["index"] for step in range(10)])
    step, place = np.argwhere(indices == example)[0].tolist()
    try:
        run.train_block(10)
    except UserError as error:
        return {"told": str(error), "step": step + 1, "place": place}
