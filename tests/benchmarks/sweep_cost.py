"""The time of a sweep of learning rates beside that of as many starts of launch.py with the same values.

    python tests/benchmarks/sweep_cost.py --trials=20
    python tests/benchmarks/sweep_cost.py --trials=20 --clock=processor          # on a machine that others use

Both train `experiments/mnist_mlp.py` for --duration at the rates of a grid, one after the other. A start is a process
that trains; with --exports it also exports and verifies, which a trial does not. With --turns both are repeated.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from framework.run.environment import environment

ROOT = Path(__file__).resolve().parents[2]
EXPERIMENT = '''
"""MNIST at the learning rates of a grid."""
from experiments.mnist_mlp import check_config, get_config, make_data, make_loss, make_metrics, make_model
{exports}

RATES = {rates}


def sweep(trial):
    return {{"schedule.learning_rate": trial.suggest_categorical("rate", RATES)}}
'''


def spent(command: list[str], clock: str) -> float:
    """Returns the seconds that a command takes, by the clock or of the processors, children included."""
    before = time.perf_counter(), os.times()
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    after = time.perf_counter(), os.times()
    if clock == "wall":
        return after[0] - before[0]
    kinds = ("children_user", "children_system")
    return sum(getattr(after[1], kind) - getattr(before[1], kind) for kind in kinds)


def main() -> None:
    """Prints the machine, the seconds of each turn and the ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--duration", default="1 epoch")
    parser.add_argument("--exports", action="store_true", help="whether starts export")
    parser.add_argument("--clock", choices=("wall", "processor"), default="wall")
    options = parser.parse_args()
    rates = [round(5e-4 * 40 ** (place / (options.trials - 1)), 6) for place in range(options.trials)]
    folder = Path(tempfile.mkdtemp(prefix="sweep-cost-"))
    experiment = folder / "rates.py"
    exports = "from experiments.mnist_mlp import make_exports" if options.exports else ""
    experiment.write_text(EXPERIMENT.format(rates=rates, exports=exports))
    launch = [sys.executable, str(ROOT / "launch.py"), f"--config={experiment}"]
    launch.append(f"--config.train.duration={options.duration}")
    facts = environment()
    load = os.getloadavg()[0]
    print(f"{facts['cpu']}, {facts['cores']} cores, {facts['platform']}; load at the start {load:.1f}; {options.clock}")
    ratios = []
    for turn in range(options.turns):
        starts = 0.0
        for place, rate in enumerate(rates):
            run = [f"--workdir={folder}/{turn}-{place}", f"--config.schedule.learning_rate={rate}"]
            starts += spent([*launch, *run], options.clock)
        sweep = spent([*launch, "--mode=sweep", "--sampler=grid", f"--workdir={folder}/sweep-{turn}"], options.clock)
        ratios.append(sweep / starts)
        print(f"{options.trials} starts {starts:.1f} s, a sweep of as many {sweep:.1f} s: {ratios[-1]:.3f}")
    print(f"median {statistics.median(ratios):.3f}")
    shutil.rmtree(folder)


if __name__ == "__main__":
    main()
