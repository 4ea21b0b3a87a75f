"""framework/remote/run_copy.py: a run folder, its copy on this machine, and what is at the address at each moment."""

import json
import os
import shutil
import threading

import pytest

from framework.errors import RunError, UserError
from framework.folder import name_of
from framework.remote.address import Place, Unreachable
from framework.remote.holder import HOLDER
from framework.remote.run_copy import COPIED, RunCopy
from tests.remote.copies import ADDRESS, at_address, begun, contents, elsewhere, save, trained


@pytest.fixture
def puts(monkeypatch):
    """The names that were copied to an address or (with a minus) deleted there, in order."""
    names, put, delete = [], Place.put, Place.delete

    def spied_put(self, source, name):
        names.append(name)
        put(self, source, name)

    def spied_delete(self, name):
        names.append(f"-{name}")
        delete(self, name)

    monkeypatch.setattr(Place, "put", spied_put)
    monkeypatch.setattr(Place, "delete", spied_delete)
    return names


def test_all_files_are_at_the_address_and_another_machine_gets_them(tmp_path, monkeypatch):
    copy = trained(1, 2)
    (copy.folder / ".lock").write_text("123")
    assert at_address() == contents(copy.folder) and len(at_address()) == 7
    assert HOLDER not in Place(ADDRESS).listing()
    elsewhere(monkeypatch, tmp_path)
    other = RunCopy(ADDRESS)
    other.fetch()
    assert other.folder != copy.folder and contents(other.folder) == contents(copy.folder)
    with other.holding():
        save(other.folder, 3)
    monkeypatch.undo()
    assert [path for path in at_address() if "00000003" in path]
    monkeypatch.setenv("FRAMEWORK_CACHE", str(tmp_path / "cache"))
    copy.fetch()
    assert contents(copy.folder) == contents(other.folder)


def test_the_order_is_rows_arrays_manifest_pointer_result(puts):
    copy = begun()
    with copy.holding():
        save(copy.folder, 1)
        (copy.folder / "result.json").write_text("{}")
    assert sorted(puts[:2]) == ["config.json", "metrics.jsonl"]
    folder = f"checkpoints/{name_of(1)}"
    order = [f"{folder}/arrays.bin", f"{folder}/manifest.json", "checkpoints/last.json", "result.json", f"-{HOLDER}"]
    assert puts[2:] == order


def test_only_what_changed_is_copied_and_what_is_gone_is_deleted(puts):
    copy = trained(1, 2)
    puts.clear()
    with copy.holding():
        save(copy.folder, 3, keep=(2,))
    of = "checkpoints/step-0000000"
    new = ["metrics.jsonl", f"{of}3/arrays.bin", f"{of}3/manifest.json", "checkpoints/last.json"]
    assert puts == [*new, f"-{of}1/manifest.json", f"-{of}1/arrays.bin", f"-{HOLDER}"]
    assert at_address() == contents(copy.folder)
    puts.clear()
    with copy.holding():
        pass
    assert puts == [f"-{HOLDER}"]


def test_what_was_deleted_at_the_address_is_copied_again(memory):
    copy = trained(1)
    memory.rm("/bucket/run/checkpoints/step-00000001/arrays.bin")
    copy.fetch()
    with copy.holding():
        pass
    assert at_address() == contents(copy.folder)


def test_later_returns_at_once_and_a_thread_copies():
    copy = begun()
    done = threading.Event()
    write, ids = Place.write, []

    def spied(self, name, content):
        write(self, name, content)
        if name == COPIED and "step" in json.loads(content):
            ids.append(json.loads(content)["step"])
            done.set()

    with pytest.MonkeyPatch.context() as patch, copy.holding():
        patch.setattr(Place, "write", spied)
        save(copy.folder, 1)
        copy.later()
        assert done.wait(20)
        assert at_address() == contents(copy.folder)
    assert ids == [1]


def test_a_checkpoint_that_is_deleted_while_it_is_copied_arrives_whole(monkeypatch):
    copy, put = begun(), Place.put

    def deleting(self, source, name):
        shutil.rmtree(copy.folder / "checkpoints" / name_of(1), ignore_errors=True)
        put(self, source, name)

    with copy.holding():
        save(copy.folder, 1)
        monkeypatch.setattr(Place, "put", deleting)
        copy._copy()
        place = Place(ADDRESS)
        assert place.read("checkpoints/step-00000001/arrays.bin") == b"arrays of 1"
        assert place.read("checkpoints/step-00000001/manifest.json") == b"manifest of 1"
    assert at_address() == contents(copy.folder)


def test_a_disk_without_second_names_copies(monkeypatch):
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("not supported")))
    copy = trained(1, 2)
    assert at_address() == contents(copy.folder)


def test_a_failing_network_costs_a_warning_and_nothing_else(monkeypatch, caplog):
    copy, failures, put = begun(), [], Place.put

    def failing(self, source, name):
        if len(failures) < 3:
            failures.append(name)
            raise Unreachable("the network is down")
        put(self, source, name)

    monkeypatch.setattr(Place, "put", failing)
    monkeypatch.setattr("framework.remote.run_copy._DELAYS", (0.01, 0.01, 0.01, 0.01))
    with copy.holding():
        save(copy.folder, 1)
        copy.later()
        while len(at_address()) < 5:
            pass
    assert at_address() == contents(copy.folder)
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"{ADDRESS}: not copied (the network is down). Training goes on; it is tried again."]


@pytest.mark.parametrize("moment", ["in the run", "at its end"])
def test_an_interrupt_ends_a_run_whose_file_system_does_not_answer(moment, monkeypatch, caplog):
    monkeypatch.setattr("framework.remote.run_copy._SAID_SECONDS", 0.05)
    monkeypatch.setattr("framework.remote.run_copy._INTERRUPTED_SECONDS", 0.05)
    copy, hangs, answer = begun(), threading.Event(), threading.Event()

    def silent(self, *_):
        hangs.set()
        answer.wait(60)
        raise Unreachable("no answer")

    class Interrupted(threading.Thread):
        """A thread whose third wait a user interrupts."""

        waits = 0

        def join(self, timeout=None):
            if self.name == "end of a copy":
                Interrupted.waits += 1
                if moment == "at its end" and Interrupted.waits == 3:
                    raise KeyboardInterrupt
            super().join(timeout)

    monkeypatch.setattr(threading, "Thread", Interrupted)
    with pytest.raises(KeyboardInterrupt), copy.holding():
        monkeypatch.setattr(Place, "put", silent)
        monkeypatch.setattr(Place, "read", silent)
        save(copy.folder, 1)
        copy.later()
        assert hangs.wait(20)
        if moment == "in the run":
            raise KeyboardInterrupt
    answer.set()
    for thread in [thread for thread in threading.enumerate() if thread.daemon and "cop" in thread.name]:
        thread.join(20)
    said = [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    lost = f"{ADDRESS}: no answer; the newest files of the run are in {copy.folder}"
    assert said.count(lost) == (2 if moment == "in the run" else 1)  # the copy and the holder, or the holder alone
    waiting = [line for line in said if "the end of the run waits for it, 0 s so far. To end now, interrupt" in line]
    assert len(waiting) == (0 if moment == "in the run" else 2)


def test_what_is_missing_at_the_end_is_said_and_the_same_command_copies_it(monkeypatch):
    copy, waits = begun(), []
    copy._wait = waits.append
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RunError) as error, copy.holding():
        patch.setattr(Place, "put", lambda *_: (_ for _ in ()).throw(Unreachable("the network is down")))
        save(copy.folder, 1)
    assert str(error.value) == (
        f"{ADDRESS} lacks the newest files of the run (the network is down). Nothing is lost: they are in"
        f" {copy.folder}. Mend that and type the same command again, which copies them."
    )
    assert waits == [1.0, 2.0, 4.0, 8.0] and at_address() == {}
    again = RunCopy(ADDRESS)
    again.fetch()
    with again.holding():
        pass
    assert at_address() == contents(copy.folder) and len(at_address()) == 5


def test_an_error_of_the_run_is_raised_after_one_attempt(caplog):
    copy = begun()
    with pytest.raises(ValueError, match=r"^a bug$"), copy.holding():
        save(copy.folder, 1)
        raise ValueError("a bug")
    assert at_address() == contents(copy.folder)
    with pytest.raises(KeyboardInterrupt), copy.holding():
        save(copy.folder, 2)
        raise KeyboardInterrupt
    assert "checkpoints/step-00000002/arrays.bin" not in at_address()
    said = f"{ADDRESS}: not copied (interrupted); the newest files of the run are in {copy.folder}"
    assert said in [record.getMessage() for record in caplog.records]
    assert HOLDER not in Place(ADDRESS).listing()


def test_an_interrupted_fetch_goes_on(tmp_path, monkeypatch):
    whole = contents(trained(1, 2).folder)
    elsewhere(monkeypatch, tmp_path)
    other, get, names = RunCopy(ADDRESS), Place.get, []

    def breaking(self, name, target):
        names.append(name)
        if len(names) == 5:
            raise Unreachable("cut")
        get(self, name, target)

    monkeypatch.setattr(Place, "get", breaking)
    with pytest.raises(UserError, match=rf"^--workdir={ADDRESS} cannot be read: cut. Type another address.$"):
        other.fetch()
    other.fetch()
    assert contents(other.folder) == whole and len(names) == len(whole) + 1


def test_a_run_folder_that_was_copied_there_by_hand_is_one(memory):
    memory.pipe({"/bucket/run/config.json": b"{}", "/bucket/run/checkpoints/step-00000001/manifest.json": b"m"})
    copy = RunCopy(ADDRESS)
    copy.fetch()
    assert {*contents(copy.folder)} == {"config.json", "checkpoints/step-00000001/manifest.json"}
    with copy.holding():
        save(copy.folder, 2)
    assert at_address() == contents(copy.folder)


def test_an_address_that_cannot_be_written_is_refused_before_the_first_step(monkeypatch, memory):
    copy = begun()

    def refused(*_, **__):
        raise PermissionError("no right to write")

    monkeypatch.setattr(type(memory), "pipe_file", refused)
    with pytest.raises(UserError) as error:
        copy.holding().__enter__()
    assert str(error.value) == f"--workdir={ADDRESS} cannot be written: no right to write. Type another address."


def test_a_copy_that_is_deleted_while_the_run_trains_deletes_nothing_at_the_address():
    copy = trained(1, 2)
    copy._wait = lambda seconds: None
    before = at_address()
    said = rf"lacks the newest files of the run \({copy.folder} was deleted\)"
    with pytest.raises(RunError, match=said), copy.holding():
        shutil.rmtree(copy.folder)
        copy.folder.mkdir()
        save(copy.folder, 3)
    assert at_address() == before


def test_a_link_that_leads_nowhere_and_a_pipe_are_left_out(tmp_path, monkeypatch):
    copy = begun()
    (copy.folder / "link").symlink_to("nothing")
    os.mkfifo(copy.folder / "pipe")
    with copy.holding():
        save(copy.folder, 1)
    assert at_address() == contents(copy.folder)
