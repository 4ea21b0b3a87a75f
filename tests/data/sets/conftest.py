"""The machine on which the tests of MNIST look for it."""

import pytest

from tests.data.sets.origins import Machine


@pytest.fixture
def machine(tmp_path, monkeypatch):
    return Machine(tmp_path, monkeypatch)
