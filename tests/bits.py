"""SHA-256 of the whole state after 200 steps of each test experiment, in each compile mode and on two replicas.

    python -m tests.bits > before.txt       # and again after a change that may move no bit; then compare the files

A line a program: hash, experiment, mode, devices. Each experiment has a process of its own.
"""

import hashlib
import subprocess
import sys

EXPERIMENTS = ("tiny", "linear", "normed", "research/sam", "research/gan", "research/moco", "research/dqn")
MODES = ("eager", "graph", "xla", "xla_gradients", "xla_update")
STEPS = 200


def main(name):
    """Prints the lines of an experiment."""
    import framework
    from framework import paths

    for devices in (1, 2):
        for mode in MODES:
            replicas = {"runtime.strategy": "mirrored", "runtime.virtual_devices": 2, "runtime.devices": 2}
            values = {"train.compile": mode, "train.duration": f"{STEPS} steps", "log.histograms_every": ""}
            values |= replicas if devices == 2 else {"runtime.virtual_devices": 2}
            values |= {"eval.every": "", "checkpoint.every": "", "train.block_steps": 20}
            try:
                run = framework.build(f"tests/{name}.py", values)
                while int(run.state.step) < STEPS:
                    run.train_block(20 if mode != "eager" else 10)
            except framework.UserError as error:
                print("refused".ljust(64), name, mode, devices, str(error)[:60], flush=True)
                continue
            whole = hashlib.sha256()
            for path, variable in sorted(paths.variables(run.state).items()):
                whole.update(path.encode())
                whole.update(variable.numpy().tobytes())
            print(whole.hexdigest(), name, mode, devices, flush=True)


if __name__ == "__main__":
    if sys.argv[1:]:
        main(sys.argv[1])
    else:
        for name in EXPERIMENTS:
            subprocess.run([sys.executable, "-m", "tests.bits", name], check=True)
