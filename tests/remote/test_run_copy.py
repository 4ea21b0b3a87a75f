"""framework/remote/run_copy.py: a run folder, its copy on this machine, and what is at the address at each moment."""

import json
import os
import shutil
import subprocess
import sys
import threading

import pytest

from framework.errors import RunError, UserError
from framework.files import held
from framework.folder import name_of
from framework.remote.address import Place, Unreachable
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


def test_a_lock_of_another_process_is_waited_for_by_no_one(tmp_path):
    copy = trained(1)
    with held(copy.folder.with_name(".run.lock"), str):
        copy.fetch()
        with pytest.raises(UserError, match="is in use by process"):
            copy.holding().__enter__()


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


def test_a_link_that_leads_nowhere_and_a_pipe_are_left_out(tmp_path, monkeypatch):
    copy = begun()
    (copy.folder / "link").symlink_to("nothing")
    os.mkfifo(copy.folder / "pipe")
    with copy.holding():
        save(copy.folder, 1)
    assert at_address() == contents(copy.folder)
