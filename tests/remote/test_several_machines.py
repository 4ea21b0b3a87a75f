"""framework/remote/run_copy.py: processes and machines that want the same address, one after the other or at once."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from framework.errors import RunError, UserError
from framework.files import held
from framework.remote.address import Place, Unreachable
from framework.remote.holder import HOLDER
from framework.remote.run_copy import COPIED, RunCopy
from tests.remote.copies import ADDRESS, at_address, begun, contents, elsewhere, save, trained


def test_a_second_run_is_refused_on_this_machine_and_on_another(tmp_path, monkeypatch):
    copy = trained(1)
    with copy.holding(), copy.holding():  # train, inside of --mode=train
        second = RunCopy(ADDRESS)
        second.fetch()  # to look at the run is fine
        with pytest.raises(UserError) as error, second.holding():
            pass
        assert str(error.value) == (
            f"--workdir={ADDRESS} is in use by process {os.getpid()} on {os.uname().nodename}, in its copy"
            f" {copy.folder}. Wait for it, stop it, or use another folder."
        )
        with monkeypatch.context() as patch:
            elsewhere(patch, tmp_path)
            other = RunCopy(ADDRESS)
            other.fetch()
            with pytest.raises(UserError, match=rf"^--workdir={ADDRESS} is in use by process {os.getpid()} on "):
                other.holding().__enter__()
    with copy.holding():
        pass


def test_a_dead_run_of_this_machine_is_followed_at_once(tmp_path):
    """A process that is killed while it holds the address leaves its name there, and its lock of the system is gone."""
    address = f"file://{tmp_path}/box/run"
    script = (
        "import os, signal\nfrom framework.remote.run_copy import RunCopy\n"
        f"copy = RunCopy({address!r})\ncopy.fetch()\nheld = copy.holding()\nheld.__enter__()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert (tmp_path / "box" / "run" / HOLDER).exists()
    copy = RunCopy(address)
    copy.fetch()
    with copy.holding():
        pass
    assert not (tmp_path / "box" / "run" / HOLDER).exists()


def test_a_run_whose_address_was_taken_stops(tmp_path, monkeypatch):
    copy = trained(1)
    with pytest.raises(RunError, match="was taken by process 7 on another, which trains"), copy.holding():
        Place(ADDRESS).write(HOLDER, json.dumps({"process": "7 on another", "token": "x"}).encode())
        save(copy.folder, 2)
        copy.later()
        while True:
            copy.later()
    assert "checkpoints/step-00000002/manifest.json" not in at_address()


def test_an_address_that_changed_since_it_was_read_is_refused(tmp_path, monkeypatch):
    copy = trained(1)
    copy.fetch()
    with monkeypatch.context() as patch:
        elsewhere(patch, tmp_path)
        trained(2)
    with pytest.raises(UserError, match=rf"^{ADDRESS} was changed since this start read it. Type the same command"):
        copy.holding().__enter__()
    assert HOLDER not in Place(ADDRESS).listing()
    copy.fetch()
    with copy.holding():
        save(copy.folder, 3)
    assert at_address() == contents(copy.folder)


def failed(copy, step):
    """Trains to a step without a network."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError), copy.holding():
        patch.setattr(Place, "put", lambda *_: (_ for _ in ()).throw(Unreachable("down")))
        save(copy.folder, step)


@pytest.mark.parametrize(("ours", "theirs"), [(3, 2), (2, 2), (2, 3)])
def test_of_two_machines_the_further_one_counts_and_nothing_is_lost(tmp_path, monkeypatch, caplog, ours, theirs):
    copy = trained(1)
    copy._wait = lambda seconds: None
    failed(copy, ours)
    before = contents(copy.folder)
    with monkeypatch.context() as patch:
        elsewhere(patch, tmp_path)
        other = RunCopy(ADDRESS)
        other.fetch()
        with other.holding():
            save(other.folder, theirs, " elsewhere")
    copy.fetch()
    if ours > theirs:
        assert contents(copy.folder) == before
        assert f"{ADDRESS} is at step {theirs}, by another machine; {copy.folder} is at step {ours}" in caplog.text
        lost = at_address()
    else:
        assert contents(copy.folder) == at_address()
        assert f"manifest of {theirs} elsewhere" in at_address().values()
        (aside,) = copy.folder.parent.glob("run-*")
        assert contents(aside) == before and str(aside) in caplog.text
    with copy.holding():
        save(copy.folder, 4, keep=(1, 2, 3))
    assert at_address() == contents(copy.folder)
    if ours > theirs:
        (aside,) = copy.folder.parent.glob("run-*")
        assert (
            contents(aside) == lost
            and f"{ADDRESS}: what another machine had copied there is now in {aside}" in caplog.text
        )


def test_another_run_and_an_emptied_address_are_refused(memory):
    copy = trained(1)
    place = Place(ADDRESS)
    place.write(COPIED, json.dumps({"run": "another", "id": "x"}).encode())
    with pytest.raises(UserError) as error:
        copy.fetch()
    assert str(error.value) == (
        f"{ADDRESS} has another run than its copy {copy.folder}. To take the one at the address, delete the copy: rm -r"
        f" {copy.folder}"
    )
    memory.rm("/bucket/run", recursive=True)
    with pytest.raises(UserError) as error:
        copy.fetch()
    assert str(error.value) == (
        f"{ADDRESS} is empty, but {copy.folder} has the run that was copied there. To begin a new one, delete that"
        f" copy: rm -r {copy.folder}"
    )
    shutil.rmtree(copy.folder)
    copy.fetch()
    copy.folder.mkdir()
    with copy.holding():
        save(copy.folder, 5)
    assert at_address() == contents(copy.folder)


def test_a_lock_of_another_process_is_waited_for_by_no_one(tmp_path):
    copy = trained(1)
    with held(copy.folder.with_name(".run.lock"), str):
        copy.fetch()
        with pytest.raises(UserError, match="is in use by process"):
            copy.holding().__enter__()


def test_a_process_that_slept_while_another_machine_trained_to_the_end_changes_nothing(tmp_path, monkeypatch):
    copy = trained(1)
    with pytest.raises(RunError) as error, copy.holding():
        Place(ADDRESS).delete(HOLDER)  # as another machine does after its run
        with monkeypatch.context() as patch:
            elsewhere(patch, tmp_path)
            other = trained(5, 6)
        save(copy.folder, 2)
    assert str(error.value) == (
        f"{ADDRESS} was changed by another run, so this run stops. What it has is in {copy.folder}. Type the same"
        " command again, which compares the two."
    )
    assert at_address() == contents(other.folder)
    copy.fetch()
    assert at_address() == contents(copy.folder)


def test_what_another_machine_deleted_is_deleted_here(tmp_path, monkeypatch):
    copy = begun()
    with copy.holding():
        save(copy.folder, 1)
        (copy.folder / "result.json").write_text("{}")
    with monkeypatch.context() as patch:
        elsewhere(patch, tmp_path)
        other = RunCopy(ADDRESS)
        other.fetch()
        (other.folder / "result.json").unlink()
        with other.holding():
            save(other.folder, 2, keep=())
    copy.fetch()
    assert contents(copy.folder) == contents(other.folder) == at_address()
    assert not list(copy.folder.parent.glob("run-*"))


@pytest.mark.parametrize(
    "state", ["[]", "{", "3", '{"files": 3}', '{"files": {"config.json": 5}}', '{"files": {"config.json": ["1", 2]}}']
)
def test_a_damaged_note_of_what_was_copied_loses_nothing(tmp_path, monkeypatch, caplog, state):
    copy = trained(1)
    copy._wait = lambda seconds: None
    failed(copy, 2)
    before = contents(copy.folder)
    with monkeypatch.context() as patch:
        elsewhere(patch, tmp_path)
        other = trained(2, 3)
    copy.folder.with_name(".run.state.json").write_text(state)
    copy.fetch()
    assert contents(copy.folder) == contents(other.folder) and "state.json is damaged" in caplog.text
    (aside,) = copy.folder.parent.glob("run-*")
    assert contents(aside) == before
    copy.folder.with_name(".run.state.json").write_text(state)
    copy.fetch()
    with copy.holding():
        save(copy.folder, 4)
    assert at_address() == contents(copy.folder)
