"""What every data set that is fetched needs: a cache, downloads with a limit in time, reasons in one line."""

import concurrent.futures
import os
import shutil
import socket
import subprocess
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from absl import logging

NOT_SET = "not set"
SOCKET_SECONDS = 5.0
ANSWER_SECONDS = 8.0  # without a first answer a download is given up
DOWNLOAD_SECONDS = 120.0  # an answered one gets this long


class UnavailableError(Exception):
    """A source cannot serve; the message is the reason listed when none can."""


class DamagedError(UnavailableError):
    """A file is there, but is not what its name says."""

    def __init__(self, path: Path, problem: str):
        super().__init__(f"{path} {problem}")
        self.path = path


def cache_folder(name: str) -> Path:
    root = os.environ.get("FRAMEWORK_CACHE") or os.path.join("~", ".cache", "tf-research-framework")
    return Path(root).expanduser() / name


def keep(name: str, files: Mapping[str, bytes]) -> None:
    """Writes checked IDX files to the cache, each under its name only once it is whole."""
    folder = cache_folder(name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as parts:
            for file, raw in files.items():
                part = Path(parts) / file
                part.write_bytes(raw)
                os.replace(part, folder / file)
    except OSError as error:
        logging.warning("%s is not kept in the cache %s: %s", name, folder, reason(error))


def download(load: Callable[[], tuple], folder: Path) -> tuple:
    """Runs `load`, which writes below `folder`; gives up when nothing arrives there, or not all in time.

    The thread is then left to itself: name look-ups and connections to many addresses know no common time limit.
    """
    future: concurrent.futures.Future[tuple] = concurrent.futures.Future()

    def work() -> None:
        try:
            future.set_result(load())
        except Exception as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True, name="tf_keras-datasets").start()
    start = time.monotonic()
    while not concurrent.futures.wait([future], timeout=0.1).done:
        waited = time.monotonic() - start
        if waited > DOWNLOAD_SECONDS:
            raise UnavailableError(f"not finished in {DOWNLOAD_SECONDS:g} s")
        if waited > ANSWER_SECONDS and not any(path.is_file() for path in folder.rglob("*")):
            raise UnavailableError(f"no answer in {ANSWER_SECONDS:g} s")
    return future.result()


@contextmanager
def socket_timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def npm(arguments: list[str], folder: str, seconds: float) -> None:
    limits = [f"--fetch-timeout={int(SOCKET_SECONDS * 1000)}", "--fetch-retries=0", "--loglevel=error"]
    command = [shutil.which("npm") or "npm", *arguments, *limits]
    try:
        done = subprocess.run(
            command, cwd=folder, timeout=seconds, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise UnavailableError(f"'npm {arguments[0]}' gave no answer in {seconds:g} s") from error
    except OSError as error:
        raise UnavailableError(f"npm cannot be run ({reason(error)})") from error
    if done.returncode:
        said = done.stderr.replace("npm error ", "").partition("A complete log")[0]
        raise UnavailableError(f"'npm {arguments[0]}' failed: {one_line(said)}")


def reason(error: Exception) -> str:
    """`error` without the path that an OSError repeats, on one line."""
    return one_line(getattr(error, "strerror", None) or str(error)) or type(error).__name__


def one_line(text: str) -> str:
    return textwrap.shorten(text, 300, placeholder=" …")
