"""A run folder whose files a test writes, and its copy at an address."""

import shutil

from framework.folder import name_of
from framework.remote.address import Place
from framework.remote.holder import HOLDER
from framework.remote.run_copy import COPIED, RunCopy

ADDRESS = "memory://bucket/run"


def save(folder, step, content="", keep=(1, 2, 3)):
    """Writes a checkpoint with a row of metrics as a run does, and deletes those that are not to be kept."""
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}}}\n')
    aside = folder / "checkpoints" / f".{name_of(step)}.tmp"
    aside.mkdir(parents=True)
    (aside / "arrays.bin").write_text(f"arrays of {step}{content}")
    (aside / "manifest.json").write_text(f"manifest of {step}{content}")
    aside.rename(folder / "checkpoints" / name_of(step))
    (folder / "checkpoints" / "last.json").write_text(str(step))
    for path in folder.glob("checkpoints/step-*"):
        if int(path.name[5:]) not in {*keep, step}:
            shutil.rmtree(path)


def contents(folder):
    """{name: content} of a run folder, without what is hidden."""
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_text() for name, path in paths.items() if not path.name.startswith(".")}


def at_address(address=ADDRESS):
    """{name: content} of the files at an address."""
    place = Place(address)
    return {name: place.read(name).decode() for name in place.listing() if name not in (COPIED, HOLDER)}


def begun():
    """A copy of an address where nothing is, with a config."""
    copy = RunCopy(ADDRESS, wait=lambda seconds: None)
    copy.fetch()
    copy.folder.mkdir(parents=True, exist_ok=True)
    (copy.folder / "config.json").write_text("{}")
    return copy


def elsewhere(monkeypatch, tmp_path, number=2):
    """From now on this is another machine, with a cache of its own."""
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / f"machine-{number}"))


def trained(*steps):
    """Trains on this machine to the steps, and copies."""
    copy = begun()
    with copy.holding():
        for step in steps:
            save(copy.folder, step)
    return copy
