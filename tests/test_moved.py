"""moved.py: experiments of older runs find what they import, by the names that it had."""

import importlib
import sys

import pytest

from framework.moved import MODULES, NAMES


@pytest.mark.parametrize("former", MODULES)
def test_a_module_is_found_by_its_former_name(former, caplog, monkeypatch):
    monkeypatch.delitem(sys.modules, former, raising=False)
    assert importlib.import_module(former) is importlib.import_module(MODULES[former])
    importlib.import_module(former)
    assert caplog.messages == [f"{former} is {MODULES[former]} now; the former name still works"]


@pytest.mark.parametrize("module", NAMES)
def test_a_name_is_found_by_its_former_one(module, caplog):
    found = importlib.import_module(module)
    for former, now in NAMES[module].items():
        home, _, name = (now if "." in now else f"{module}.{now}").rpartition(".")
        assert getattr(found, former) is getattr(importlib.import_module(home), name)
        assert caplog.messages[-1] == f"{module}.{former} is {home}.{name} now; the former name still works"
    with pytest.raises(AttributeError, match=f"module '{module}' has no attribute 'nothing'"):
        _ = found.nothing
