"""Asynchronous training: what one worker does is what one device does, two take each batch once."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from framework import config
from framework.config import UserError
from framework.config.overrides import override
from framework.distribute.cluster import Cluster, resolve_servers
from framework.step.asynchronous import check
from framework.step.probe import Probe
from tests.cli.test_local_cluster import SETTINGS, STEPS, ended, launch, wait_for_step, worker_of
from tests.distribute.test_cluster import local
from tests.in_cluster import said_by

ROOT = Path(__file__).resolve().parents[1]
PLAIN = ("--config.ema.decay=0.0", "--noconfig.model.moves")  # neither an average nor moved variables
SERVERS = ("--local_workers=2", "--config.runtime.strategy=parameter_server", *PLAIN)
EXAMPLE = (
    'Set e.g. TF_CONFIG=\'{"cluster": {"chief": ["host0:2222"], "worker": ["host1:2222", "host2:2222"], "ps":'
    ' ["host3:2222"]}, "task": {"type": "chief", "index": 0}}\'.'
)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """Runs with one worker beside runs on one device."""
    return said_by("tests.served", "one", tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize("name", ["adam", "skipped", "table_sgd", "table_adam"])
def test_one_worker_trains_what_one_device_does(one, name):
    """Weights, slots and counters after 24 steps in float64, and every number of every step.

    'adam' has dropout, a penalty, clipping and two micro-batches; 'skipped' SGD and an example that overflows; the
    tables are embeddings with several gradients for a row, clipped by the norm, of streamed (sgd) and resident batches.
    """
    found = one[name]
    assert {path: d for path, d in found["distances"].items() if d > 1e-12} == {}
    assert len(found["rows"]) == len(found["expected"]) == 24
    for row, expected in zip(found["rows"], found["expected"], strict=True):
        assert row.keys() == expected.keys() - {"parameter_norm", "update_norm"}
        assert row == pytest.approx({key: expected[key] for key in row}, rel=1e-12, nan_ok=True)
    assert found["evaluations"][0] == pytest.approx(found["evaluations"][1], rel=1e-12)
    for path, gradient in found["inspected"][1].items():
        np.testing.assert_allclose(found["inspected"][0][path], gradient, rtol=1e-11, atol=1e-14)
    assert found["traces"] == 1


def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(one):
    rows = one["skipped"]["rows"]
    assert not np.isfinite(rows[4]["loss"])
    assert [row["skipped"] for row in rows[3:6]] == [0, 1, 1]


def test_a_step_that_is_not_finite_halts_the_block_where_the_policy_is_to_stop(one):
    assert one["stopped"] == {"rows": 5, "halted": True, "step": 4}


def test_a_label_that_is_no_class_is_named(one):
    """It makes the loss NaN, which the policy to stop would end the run for without a reason."""
    found = one["bad_label"]
    assert found["told"] == (
        f"step {found['step']} cannot be taken: the loss takes 3, which is none of the classes 0 to 2; it comes from"
        f" 'label' and 'weight' of the batch, example {found['place']}. Nothing of this step is saved."
    )


def test_the_gradient_of_a_table_stays_the_rows_of_its_batch(one):
    found = one["table_in_a_step"]
    assert found["dense"] == []
    assert len(found["added"]) == 2 and all(device.startswith("/job:ps/") for device in found["added"])  # two slots


def test_a_rate_that_follows_evaluations_does_so_on_servers(one):
    served, alone = one["plateau"]["rates"]
    assert served == alone and len(served) == 24
    assert served[-1] == pytest.approx(served[0] / 4, rel=1e-6)  # the first evaluation is the best one
    assert one["plateau"]["distance"] <= 1e-12


def test_a_run_changes_over_to_servers_and_back(one):
    assert one["elastic"]["to_one"] <= 1e-12 and one["elastic"]["to_servers"] <= 1e-12
    assert one["alone"] == 0


def test_two_workers_take_each_batch_once_and_end_where_one_device_does(tmp_path):
    found = said_by("tests.served", "two", tmp_path)
    assert found["seen"] == found["planned"]
    totals = np.sum(found["planned"], axis=0).tolist()
    assert found["totals"] == {"served": totals, "alone": totals}
    assert (found["step"], found["updates"]) == (150, 150)
    losses = {name: np.array(values) for name, values in found["losses"].items()}
    assert losses["served"][-10:].mean() < 0.9 * losses["served"][:10].mean()
    assert losses["served"].tolist() != losses["alone"].tolist()
    assert found["evaluations"]["served"] == pytest.approx(found["evaluations"]["alone"], rel=0.05)


def test_a_killed_worker_does_not_end_the_run(tmp_path):
    workdir, epochs, steps = tmp_path / "run", 8, 8 * 27
    # Long enough that it has learned, in whatever order two workers come: after 120 steps the loss is 0.35 to 1.06.
    process = launch(workdir, *SERVERS, f"--config.train.duration={epochs} epochs")
    wait_for_step(workdir, 45, process)
    os.kill(worker_of(process, '"index": 1, "type": "worker"'), signal.SIGKILL)
    status, output = ended(process)
    assert status == 0, output
    assert "worker 1 was killed by SIGKILL: starting it again, the others continue" in output
    result = json.loads((workdir / "result.json").read_text())
    assert (result["status"], result["step"]) == ("finished", steps)
    assert result["skipped"] == epochs  # the batches that have the infinite example of tests/spread.py
    # The step that the worker was at may have been applied before it died.
    assert result["updates"] - (steps - result["skipped"]) in (0, 1)
    assert result["final"]["test/accuracy"] > 0.95
    logged = [json.loads(line)["step"] for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert set(logged) == set(range(5, steps + 1, 5)) | set(range(27, steps + 1, 27))  # evaluated at ends of epochs
    logs = {path.name for path in (workdir / "workers").iterdir()}
    assert logs == {"chief.log", "worker-0.log", "worker-1.log", "ps-0.log"}


@pytest.mark.slow
def test_a_killed_server_costs_a_restart_from_the_last_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, *SERVERS, "--config.runtime.max_restarts=1")
    wait_for_step(workdir, 45, process)
    os.kill(worker_of(process, '"index": 0, "type": "ps"'), signal.SIGKILL)
    status, output = ended(process)
    assert status == 0, output
    assert "starting all workers again (1 of 1 restarts)" in output
    assert "resuming at step 40" in output
    assert json.loads((workdir / "result.json").read_text())["step"] == STEPS


@pytest.mark.slow
def test_sigterm_stops_the_chief_which_saves_and_one_device_goes_on(tmp_path):
    workdir = tmp_path / "run"
    process = launch(workdir, *SERVERS)
    wait_for_step(workdir, 25, process)
    process.terminate()
    status, output = ended(process)
    assert status == 0, output
    assert "and saved; the same command goes on from there" in output
    status, output = ended(launch(workdir, *PLAIN))
    assert status == 0, output
    result = json.loads((workdir / "result.json").read_text())
    assert (result["updates"], result["skipped"]) == (STEPS - 4, 4)


def test_a_server_that_does_not_come_is_named(tmp_path):
    tasks = local(3)
    environment = {**os.environ, "TF_CONFIG": Cluster(tasks, 0, 1).tf_config()}
    done = subprocess.run(
        [sys.executable, "launch.py", f"--workdir={tmp_path}/run", *SETTINGS,
         "--config.runtime.strategy=parameter_server", *PLAIN, "--config.runtime.worker_timeout_seconds=1"],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        f"error: worker 0 ({tasks[1]}), ps 0 ({tasks[2]}) of 3 did not come within 1 s. Start all of them, or wait"
        " longer: --config.runtime.worker_timeout_seconds=N."
    )


def test_a_server_without_a_chief_gives_up_and_with_one_ends_after_it():
    tasks = local(3)
    with pytest.raises(UserError) as error:
        Cluster(tasks, 2, 1).outlive_chief(0.3)
    assert str(error.value) == (
        f"ps 0 did not get word from the chief ({tasks[0]}) within 0.3 s. Look at the chief's log, or wait longer:"
        " --config.runtime.worker_timeout_seconds=N."
    )
    with Cluster(tasks, 0, 1)._listening():
        Cluster(tasks, 1, 1)._listening().close()
        start = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("framework.distribute.cluster._LOST_SECONDS", 0.0)
            Cluster(tasks, 2, 1).outlive_chief(5)
        assert time.monotonic() - start < 4


def servers(cluster=None, kind="chief", index=0):
    jobs = cluster or {"chief": ["a:1"], "worker": ["b:2", "c:3"], "ps": ["d:4"]}
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


@pytest.mark.parametrize(
    ("kind", "index", "place", "name"),
    [("chief", 0, 0, "chief"), ("worker", 1, 2, "worker 1"), ("ps", 0, 3, "ps 0")],
)
def test_roles_are_read_and_written(kind, index, place, name):
    cluster = resolve_servers(servers(kind=kind, index=index))
    assert cluster == Cluster(("a:1", "b:2", "c:3", "d:4"), place, 1)
    assert cluster.name(place) == name
    assert json.loads(cluster.tf_config()) == json.loads(servers(kind=kind, index=index)["TF_CONFIG"])


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            {},
            "runtime.strategy='parameter_server' needs TF_CONFIG. To try it on this machine: --local_workers=2.",
        ),
        (
            {"TF_CONFIG": "{}"},
            "TF_CONFIG='{}' has no cluster.chief, cluster.worker, cluster.ps, task.type and task.index. " + EXAMPLE,
        ),
        (
            servers({"chief": ["a:1", "b:1"], "worker": ["c:1"], "ps": []}),
            "TF_CONFIG has 2 chiefs, 1 workers and 0 ps. There is one chief, and at least one of each of the others. "
            + EXAMPLE,
        ),
        (
            servers({"chief": ["a:1"], "worker": ["a:1"], "ps": ["b:1"]}),
            "TF_CONFIG names an address twice: a:1, a:1, b:1. Each needs a host or port of its own.",
        ),
        (
            servers({"chief": ["a:1"], "worker": ["b:1"], "ps": ["c"]}),
            f"TF_CONFIG: the ps 'c' is not host:port with a port of 1 to 65535. {EXAMPLE}",
        ),
        (
            servers(kind="worker", index=2),
            "TF_CONFIG: task 'worker' 2 is none of the cluster. The type is 'chief', 'worker' or 'ps', the index counts"
            " from 0 among those of its type.",
        ),
    ],
)
def test_a_cluster_without_its_roles_is_refused(environment, message):
    with pytest.raises(UserError) as error:
        resolve_servers(environment)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("key", "value", "why", "use"),
    [
        ("train.compile", "xla", "XLA cannot read weights that lie on another device", "graph"),
        ("train.compile", "xla_update", "XLA cannot read weights that lie on another device", "graph"),
        ("train.compile", "eager", "XLA cannot read weights that lie on another device", "graph"),
        ("ema.decay", 0.9, "an average would read all weights after every update", "0"),
        ("lookahead.every", 5, "slow weights would replace weights that other workers are reading", "0"),
        ("prune.sparsity", 0.8, "masks would write all weights after every update", "0.0"),
        ("prune.schedule", "keep", "masks would write all weights after every update", "polynomial"),
        ("cluster.name", "kmeans", "clusters would write all weights after every update", "none"),
        ("quantize.name", "int8", "ranges would follow the activations of several workers at once", "none"),
        ("train.on_nonfinite", "rewind", "what other workers did meanwhile cannot be undone", "stop"),
        ("loss_scale.name", "dynamic", "updates are not in the order that a loss scale counts", "auto"),
        ("train.precision", "float16", "float16 needs a loss scale", "float32"),
    ],
)
def test_settings_that_servers_cannot_have_are_refused(key, value, why, use):
    settings = {"runtime.strategy": "parameter_server", "train.compile": "graph", key: value}
    settings |= {"cluster.begin": "1 step"} if key == "cluster.name" else {}
    with pytest.raises(UserError) as error:
        config.finalize(override(config.base_config(), settings))
    assert str(error.value) == (
        f"{key}={value!r} does not work with runtime.strategy='parameter_server': {why}. Use --config.{key}={use}."
    )


FOUND = Probe(terms=("a",), batch={}, outputs={}, graph=None, assigned_variables=(), has_collectives=False)


@pytest.mark.parametrize(
    ("make", "model", "data", "found", "why"),
    [
        (
            {"make_step": None},
            None,
            None,
            FOUND,
            "workers take the standard step of a single model, and the experiment has one of its own or several",
        ),
        (
            {},
            {"one": None, "other": None},
            None,
            FOUND,
            "workers take the standard step of a single model, and the experiment has one of its own or several",
        ),
        (
            {"make_extensions": None},
            None,
            None,
            FOUND,
            "extensions of the step would read and write weights that other workers are changing",
        ),
        ({}, None, tf.Module(), FOUND, "batches that have a state live on one device"),
        (
            {},
            None,
            None,
            dataclasses.replace(FOUND, has_collectives=True),
            "the forward pass communicates between replicas, and workers do not wait for one another",
        ),
        (
            {},
            None,
            None,
            dataclasses.replace(FOUND, assigned_variables=(types.SimpleNamespace(name="norm/moving_mean:0"),)),
            "the forward pass changes 'norm/moving_mean:0', as BatchNormalization does, and a step that is not finite"
            " could not put it back without undoing what others did",
        ),
    ],
)
def test_experiments_that_servers_cannot_train_are_refused(make, model, data, found, why):
    check({}, None, None, FOUND)
    with pytest.raises(UserError) as error:
        check(make, model, data, found)
    assert str(error.value) == (
        f"runtime.strategy='parameter_server': {why}. Use --config.runtime.strategy=one_device, or multi_worker."
    )
