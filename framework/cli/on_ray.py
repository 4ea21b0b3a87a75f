"""Trains on a Ray cluster: Ray places the workers and tells each by TF_CONFIG who the others are.

    python -m framework.cli.on_ray --workers=2 --config=experiments/mnist_mlp.py --workdir=/shared/mnist

Each worker is a process of launch.py, as under Slurm or Kubernetes, and all see the run folder and the experiment under
the same path. When a worker is lost, Ray starts all of them again, at most --restarts times, and they go on from the
newest checkpoint. Needs the package of the extra `ray`.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from framework import extras
from framework.cli import flags
from framework.distribute import lifeline
from framework.errors import RunError, UserError
from framework.remote.address import is_address

_ROOT = Path(__file__).resolve().parents[2]


def main(arguments: list[str]) -> int:
    """Trains to the end; returns the exit status.

    Args:
      arguments: --workers, --restarts and --gpus, and those of launch.py for the others.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, required=True, help="processes that share each step")
    parser.add_argument("--restarts", type=int, default=3, help="how often all start again when one is lost")
    parser.add_argument("--gpus", action="store_true", help="give each worker a GPU")
    own, launched = parser.parse_known_args(arguments)
    try:
        values, _ = flags.parse(["launch.py", *launched])
        if values.workdir is None:
            raise UserError("--workdir is missing. Type a folder that all workers see, e.g. --workdir=/shared/mnist.")
        if is_address(values.workdir):
            raise UserError(f"--workdir={values.workdir} is an address. Type a folder that all workers see.")
        _fit(own, [*launched, "--config.runtime.strategy=multi_worker"])
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    return 0


def _fit(own: argparse.Namespace, launched: list[str]) -> None:
    ray, train = extras.load("ray", "ray"), extras.load("ray.train", "ray")
    trainer = extras.load("ray.train.tensorflow", "ray").TensorflowTrainer(
        _work,
        train_loop_config={"arguments": launched, "folder": os.getcwd()},
        scaling_config=train.ScalingConfig(num_workers=own.workers, use_gpu=own.gpus),
        run_config=train.RunConfig(failure_config=train.FailureConfig(max_failures=own.restarts)),
    )
    ray.init(runtime_env={"env_vars": {"PYTHONPATH": str(_ROOT)}}, ignore_reinit_error=True)
    try:
        trainer.fit()
    except Exception as error:  # each version of Ray wraps what a worker raises in classes of its own
        raise RunError(f"a worker failed: {error}. Mend that and type the same command again.") from error


def _work(settings: dict[str, Any]) -> None:
    """Runs launch.py to its end in a worker of Ray, and ends with that worker."""
    process = lifeline.Process(
        [sys.executable, str(_ROOT / "launch.py"), *settings["arguments"]], cwd=settings["folder"]
    )
    try:
        if status := process.wait():
            raise RuntimeError(f"launch.py ended with status {status}; what it printed is above")
    finally:
        process.end()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
