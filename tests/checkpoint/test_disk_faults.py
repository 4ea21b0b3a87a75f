"""A disk that is full or fails: when a checkpoint's error is raised, and when it is passed over."""

import contextlib
import errno
import resource

import pytest

from framework.checkpoint import checkpoints as checkpoint
from framework.checkpoint import storage
from framework.checkpoint.checkpoints import Checkpoints
from framework.errors import MachineError
from tests.checkpoint.states import make_state, save_at


def full(patch, undo):
    """The device that is always full, instead of the file."""
    patch.setattr(storage, "_ARRAYS", "/dev/full")


def quota(patch, undo):
    """No file may grow beyond a few bytes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    undo.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limits)


def failing(patch, undo):
    """fsync is where a failing disk shows."""

    def fsync(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    patch.setattr(storage.os, "fsync", fsync)


FAULTS = {
    "full": (full, "[Errno 28] No space left on device"),
    "quota": (quota, "[Errno 27] File too large"),
    "disk": (failing, "[Errno 5] Input/output error"),
}


@contextlib.contextmanager
def fault(name):
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as undo:
        FAULTS[name][0](patch, undo)
        yield


@pytest.mark.parametrize("name", FAULTS)
def test_an_error_of_the_disk_is_raised_at_the_next_save_and_at_the_end(tmp_path, name, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3)
    before = save_at(checkpoints, created, 1)
    whole = checkpoint.digest(created)
    said = (
        f"{tmp_path}: the checkpoint of step 2 could not be saved: {FAULTS[name][1]};"
        " the last complete one is of step 1."
    )
    for again in (lambda: checkpoints.save(created, {}), checkpoints.close):
        caplog.clear()
        created.step.assign(2)
        with fault(name):
            checkpoints.save(created, {})
            assert checkpoints.steps() == [1]
        assert [record.getMessage() for record in caplog.records] == [said]
        created.step.assign(3)
        with pytest.raises(MachineError) as caught:
            again()
        assert str(caught.value) == f"{said} Mend that and type the same command again."
        assert sorted(path.name for path in tmp_path.iterdir()) == ["last.json", "step-00000001"]
        checkpoints.close()  # raised once
    assert checkpoint.digest(checkpoint.read_arrays(before)) == whole
    save_at(checkpoints, created, 3)
    assert checkpoints.steps() == [1, 3]


def test_an_error_of_the_disk_is_passed_over_on_request_but_at_the_end(tmp_path, caplog):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3, on_error="continue")
    with fault("full"):
        for step in (1, 2):
            created.step.assign(step)
            checkpoints.save(created, {})
        assert checkpoints.steps() == []
    said = [
        f"{tmp_path}: the checkpoint of step {step} could not be saved: [Errno 28] No space left on device;"
        " there is no complete one."
        for step in (1, 2)
    ]
    assert [record.getMessage() for record in caplog.records] == said
    checkpoints.save(created, {"at": 2})  # the same step once more, now that there is room
    checkpoints.close()
    assert checkpoints.restore(created) == {"at": 2}
    created.step.assign(3)
    with fault("full"), pytest.raises(MachineError) as caught, checkpoints:
        checkpoints.save(created, {})
    assert str(caught.value) == (
        f"{tmp_path}: the checkpoint of step 3 could not be saved: [Errno 28] No space left on device;"
        " the last complete one is of step 2. Mend that and type the same command again."
    )


def test_a_synchronous_save_raises_itself(tmp_path):
    created = make_state()
    checkpoints = Checkpoints(tmp_path, 3, asynchronous=False)
    with fault("full"), pytest.raises(MachineError, match=r"could not be saved: .* No space left on device"):
        checkpoints.save(created, {})
    checkpoints = Checkpoints(tmp_path, 3, asynchronous=False, on_error="continue")
    with fault("full"):
        checkpoints.save(created, {})
    with pytest.raises(MachineError):
        checkpoints.close()


def test_a_slip_in_the_code_is_raised_whatever_is_asked_for(tmp_path):
    created, checkpoints = make_state(), Checkpoints(tmp_path, 3, on_error="continue")
    checkpoints.save(created, {"at": object()})
    created.step.assign(3)
    with pytest.raises(TypeError, match="Object of type object is not JSON serializable"):
        checkpoints.save(created, {})
