"""framework/data/fetch.py serves any data set: one that is made up here is found, downloaded, verified and cached."""

import gzip
import hashlib
import time
from pathlib import Path

import numpy as np
import pytest

from framework.config import UserError
from framework.data import fetch
from framework.data.fetch import Candidate, DamagedError, NotSetError, UnavailableError
from framework.data.sources import Source

VALUES = np.arange(6, dtype=np.int16)
RAW = VALUES.tobytes()
SHA256 = hashlib.sha256(RAW).hexdigest()


def problem(raw):
    digest = hashlib.sha256(raw).hexdigest()
    return "" if digest == SHA256 else f"has SHA-256 {digest}, not {SHA256}"


def read(folder, origin):
    path = folder / "values.bin"
    if not path.is_file():
        raise UnavailableError(f"{folder} has no values.bin")
    return Source({"x": np.frombuffer(fetch.read_file(path, problem), np.int16)}, origin)


def downloaded(content=RAW):
    def load(folder):
        (folder / "values.bin").write_bytes(content)
        return (folder / "values.bin").read_bytes()

    raw = fetch.download(load)
    if text := problem(raw):
        raise UnavailableError(f"its values.bin {text}")
    fetch.keep("values", {"values.bin": raw})
    return Source({"x": np.frombuffer(raw, np.int16)}, "a download")


def candidates(content=RAW):
    return [
        Candidate("$DATA_DIR", lambda: fetch.from_environment("values", read)),
        Candidate("cache", lambda: fetch.from_cache("values", ["values.bin"], read)),
        Candidate("download", lambda: downloaded(content)),
    ]


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("DATA_DIR", raising=False)
    return tmp_path


def test_a_download_is_kept_and_the_next_time_the_cache_has_it(machine, caplog):
    caplog.set_level("INFO")
    cache = machine / "cache" / "values"
    for origin in ("a download", f"cache {cache}"):
        source = fetch.first_available("values (all)", candidates())
        assert source.origin == origin and source.arrays["x"].tolist() == VALUES.tolist()
    assert [path.name for path in cache.iterdir()] == ["values.bin"]
    assert caplog.messages == [
        f"values (all): not from cache: {cache} does not have it",
        "values (all): 6 examples from a download",
        f"values (all): 6 examples from cache {cache}",
    ]


def test_a_folder_of_the_environment_goes_first_packed_or_not(machine, monkeypatch):
    monkeypatch.setenv("DATA_DIR", str(machine))
    for content in (RAW, gzip.compress(RAW)):
        (machine / "values.bin").write_bytes(content)
        source = fetch.first_available("values", candidates())
        assert source.origin == f"$DATA_DIR={machine}" and source.arrays["x"].tolist() == VALUES.tolist()
    (machine / "values.bin").write_bytes(RAW[:-1])
    with pytest.raises(UserError, match=r"values\.bin has SHA-256 .* Replace the file, or unset DATA_DIR to fetch"):
        fetch.first_available("values", candidates())


def test_all_reasons_are_in_one_error(machine):
    wrong = hashlib.sha256(b"other").hexdigest()
    with pytest.raises(UnavailableError) as caught:
        fetch.first_available("values", candidates(b"other"))
    assert str(caught.value) == (
        f"$DATA_DIR: not set; cache: {machine / 'cache' / 'values'} does not have it;"
        f" download: its values.bin has SHA-256 {wrong}, not {SHA256}"
    )
    assert not (machine / "cache").exists()


def test_a_damaged_file_of_the_cache_is_deleted(machine):
    fetch.keep("values", {"values.bin": b"other"})
    with pytest.raises(DamagedError):
        fetch.from_cache("values", ["values.bin"], read)
    assert not (machine / "cache" / "values" / "values.bin").exists()


@pytest.mark.parametrize(("writes", "line"), [(False, "no answer in 0.1 s"), (True, "not finished in 0.3 s")])
def test_a_download_is_given_up(writes, line, monkeypatch):
    monkeypatch.setattr(fetch, "ANSWER_SECONDS", 0.1)
    monkeypatch.setattr(fetch, "DOWNLOAD_SECONDS", 0.3)

    def load(folder):
        if writes:
            (folder / "part").write_bytes(b"x")
        time.sleep(1.0)

    with pytest.raises(UnavailableError, match=f"^{line}$"):
        fetch.download(load)
    time.sleep(0.8)  # for the thread that is left behind


def test_an_error_of_a_download_passes_through():
    def load(folder):
        assert isinstance(folder, Path) and folder.is_dir()
        raise OSError(101, "Network is unreachable")

    with pytest.raises(OSError, match="Network is unreachable") as caught:
        fetch.download(load)
    assert fetch.reason(caught.value) == "Network is unreachable"


def test_a_place_that_is_not_set_is_not_logged(caplog):
    caplog.set_level("INFO")

    def load():
        raise NotSetError("not set")

    with pytest.raises(UnavailableError, match=r"^nowhere: not set$"):
        fetch.first_available("values", [Candidate("nowhere", load)])
    assert caplog.messages == []
