"""The pages: their prose, fenced blocks, commands and snippets.

What a fenced block is, by the words after its fence:

    ```bash                       each command is run, in order, in a copy of the checkout that belongs to the page
    ```python                     runs there too, after the commands; all snippets of a page are one program
    ```python experiments/x.py    is saved there before anything is run
    ```                           an output or a drawing
"""

import dataclasses
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# That have a page.
ROOMS = (
    "config",
    "data",
    "data/text",
    "decoding",
    "distribute",
    "export",
    "layers",
    "metrics",
    "optim",
    "run",
    "serving",
    "testing",
)
MEASURED = (
    "README",
    "DATA",
    "EXPORTS",
    "GROWTH",
    "RECOMMENDERS",
    "RESULTS",
    "ROOFLINE",
    "RUNS",
    "SCALING",
    "STEPS",
    "TEXT",
)
PAGES = ["README.md", "BUILD.md", "experiments/README.md", "tests/README.md"]
PAGES += [f"framework/{name}.md" for name in ("README", "CONTRACTS", "ENGINE", "NOTES")]
PAGES += [f"framework/{room}/README.md" for room in ROOMS]
PAGES += ["framework/run/PROFILING.md"]
PAGES += [f"tests/benchmarks/{name}.md" for name in MEASURED]

# Commands, or first lines of snippets, that are not run: a pattern of the whole line, and why.
NOT_RUN = {
    r"make test": "is what runs this test",
    r"make peers": "installs 3.6 GB of other frameworks",
    r"python3 -m venv \.venv": "the copy has its .venv; the Makefile does the same on every fresh machine",
    r"(\.venv/bin/)?python -m pip install .*": "needs a package index and minutes; the Makefile does the same",
    r"framework --help": "needs the package installed: tests/cli/test_installed.py",
    r"conda (create|activate) .*": "needs conda",
    r"nvidia-smi": "needs an NVIDIA GPU",
    r".* --config\.runtime\.devices=4": "needs four GPUs",
    r"export TF_CONFIG=.*": "names hosts that are not there",
    r"python -m framework\.cli\.on_ray .*": "needs Ray: tests/cli/test_on_ray.py",
    r".* --workdir=s3://.*": "needs an object store; tests/remote/ have memory:// and file://",
    r".*/shared/mnist .*": "runs on hosts that are not there",
    r"docker run .*": "needs a container daemon",
    r"sudo apt-get install tensorflow-model-server": "needs the apt repository of TensorFlow Serving",
    r"tensorflow_model_server .*": "needs TensorFlow Serving",
    r"python launch\.py --mode=serve --workdir=\S+": "needs TensorFlow Serving",
    r"curl .*:predict": "asks the server that `docker run` starts",
    r"python launch\.py --config=experiments/(cifar_resnet|fine_tune)\.py.*": "needs CIFAR-10, whose download is large",
    r"python launch\.py --config=experiments/movielens_two_tower\.py --workdir=runs/retrieval.*": "trains for minutes",
    r"python tests/benchmarks/.*": "measures for minutes on a machine that does nothing else",
}


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block: the words after the fence, the number of its first line, its text."""

    info: tuple[str, ...]
    line: int
    text: str

    @property
    def language(self) -> str:
        return self.info[0] if self.info else ""

    @property
    def file(self) -> str:
        """Where the block is to be saved; '' if it is to be run."""
        return self.info[1] if len(self.info) > 1 else ""


def read(page: str) -> str:
    return (ROOT / page).read_text()


def blocks(page: str) -> list[Block]:
    found, start, info = [], 0, ()
    lines = read(page).splitlines()
    for number, line in enumerate(lines, 1):
        if not line.startswith("```"):
            continue
        if start:
            found.append(Block(info, start + 1, "\n".join(lines[start : number - 1])))
            start = 0
        else:
            start, info = number, tuple(line.removeprefix("```").split())
    assert not start, f"{page}:{start}: the block is not closed"
    return found


def prose(page: str) -> str:
    """The page without fenced blocks; line numbers stay."""
    lines = read(page).splitlines()
    for block in blocks(page):
        end = block.line + block.text.count("\n") + 1
        lines[block.line - 2 : end] = [""] * (end - block.line + 2)
    return "\n".join(lines)


def commands(page: str) -> Iterator[tuple[int, str]]:
    """Line number and text of each command of the bash blocks; one may have several lines."""
    for block in blocks(page):
        if block.language != "bash":
            continue
        start, pending = block.line, ""
        for number, line in enumerate(block.text.splitlines(), block.line):
            pending = f"{pending}\n{line}" if pending else line
            whole = subprocess.run(["bash", "-n", "-c", pending], capture_output=True, check=False)
            if whole.returncode or line.endswith("\\"):
                continue
            if pending.strip() and not pending.startswith("#"):
                yield start, pending
            start, pending = number + 1, ""
        assert not pending, f"{page}:{start}: bash does not understand {pending!r}"


def snippets(page: str) -> list[Block]:
    """The python blocks that are run."""
    found = [block for block in blocks(page) if block.language == "python" and not block.file]
    return [block for block in found if not is_listed(block.text.partition("\n")[0])]


def saved(page: str) -> list[Block]:
    return [block for block in blocks(page) if block.file]


def is_listed(command: str) -> bool:
    return any(re.fullmatch(pattern, command, re.DOTALL) for pattern in NOT_RUN)
