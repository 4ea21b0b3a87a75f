"""Tests of addresses: each has an own cache, and the files of `memory://` are gone after it."""

import pytest

from framework.files import cache_folder


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The cache of the test."""
    fsspec = pytest.importorskip("fsspec", reason="needs the extra remote")
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    yield cache_folder("")
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = [""]


@pytest.fixture
def memory(cache):
    """The file system of `memory://`, which is that of this process."""
    return pytest.importorskip("fsspec").filesystem("memory")
