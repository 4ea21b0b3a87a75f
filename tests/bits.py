"""SHA-256 of the whole state after 200 steps of each test experiment, in each compile mode and on two replicas.

    python -m tests.bits > before.txt       # and again after a change that may move no bit; then compare the files

A line a program: hash, experiment, mode, devices. Each experiment and number of devices has a process of its own.
"""

import hashlib
import subprocess
import sys

EXPERIMENTS = ("tiny", "linear", "normed", "research/sam", "research/gan", "research/moco", "research/dqn")
MODES = ("eager", "graph", "xla", "xla_gradients", "xla_update")
STEPS = 200


def main(name, devices):
    """Prints the lines of an experiment on one device or on two replicas."""
    import framework
    from framework import paths

    for mode in MODES:
        values = {"train.compile": mode, "train.duration": f"{STEPS} steps", "log.histograms_every": ""}
        values |= {"eval.every": "", "checkpoint.every": "", "train.block_steps": 20}
        if devices == 2:
            values |= {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "runtime.devices": 2}
        try:
            run = framework.build(f"tests/{name}.py", values)
            while int(run.state.step) < STEPS:
                run.train_block(10)
        except framework.UserError as error:
            print(f"refused: {error}"[:64].ljust(64), name, mode, devices, flush=True)
            continue
        whole = hashlib.sha256()
        for path, variable in sorted(paths.variables(run.state).items()):
            whole.update(path.encode())
            whole.update(variable.numpy().tobytes())
        print(whole.hexdigest(), name, mode, devices, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1], int(sys.argv[2]))
    else:
        for name in EXPERIMENTS:
            for devices in ("1", "2"):
                subprocess.run([sys.executable, "-m", "tests.bits", name, devices], check=True)
