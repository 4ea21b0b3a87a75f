"""Which versions of a folder are served: the newest that is whole and known, and the earlier one until it is loaded."""

import types

import numpy as np
import pytest

from framework import manifest
from framework.errors import UserError
from framework.serving import versions as module
from framework.serving.errors import CodeError
from framework.serving.model import WARM_UP, Model
from framework.serving.transport import State
from framework.serving.versions import Versions
from tests.export.fakes import X
from tests.serving.started import export

TRUST = "A SavedModel is a program: if you trust it, type --trust."
CHANGED = f"its files are not those of manifest.json: half-written, or changed. {TRUST}"


def write(folder, number, text="graph", is_known=True):
    path = folder / str(number)
    path.mkdir(exist_ok=True)
    (path / "saved_model.pb").write_text(text)
    if is_known:
        manifest.add(folder, str(number), manifest.digest(path))


@pytest.fixture
def made(tmp_path, monkeypatch):
    """made(is_trusted): the versions of tmp_path, whose files are loaded as text, and the lines that they say."""

    def load(path):
        text = (path / "saved_model.pb").read_text()
        if text == "bad":
            raise ValueError("no\ngraph")
        return types.SimpleNamespace(version=int(path.name), text=text)

    monkeypatch.setattr(module.Model, "load", load)

    def make(is_trusted=False):
        said = []
        return Versions(tmp_path, "m", is_trusted, said.append), said

    return make


def served(versions):
    return versions.asked("m", None).version


def test_the_newest_version_is_served_and_a_newer_one_when_it_comes(tmp_path, made):
    for number in (2, 10, 9):  # by number, not by text
        write(tmp_path, number)
    (tmp_path / "notes").mkdir()
    (tmp_path / "11").write_text("a file")
    (tmp_path / str(2**63)).mkdir()  # no int64, as the protos have it
    versions, said = made()
    versions.look()
    assert served(versions) == 10 and said == []
    versions.look()
    write(tmp_path, 12)
    versions.look()
    assert served(versions) == 12 and said == ["version 12 is served instead of 10"]
    assert versions.states("m", None) == [State(12, "AVAILABLE"), State(10, "END")]
    with pytest.raises(CodeError, match=r"^NOT_FOUND: Servable not found for request: Specific\(m, 10\)$"):
        versions.asked("m", 10)
    with pytest.raises(CodeError, match=r"^NOT_FOUND: Servable not found for request: Latest\(other\)$"):
        versions.asked("other", None)
    for name, version in (("other", None), ("m", 77)):
        with pytest.raises(CodeError, match=r"^NOT_FOUND: Could not find any versions of model"):
            versions.states(name, version)


def test_a_half_written_version_waits_until_it_is_whole(tmp_path, made):
    write(tmp_path, 1)
    versions, said = made()
    versions.look()
    (tmp_path / "2/variables").mkdir(parents=True)
    versions.look()
    versions.look()
    half = "version 2 is not served: it is half-written: it has no saved_model.pb"
    assert served(versions) == 1 and said == [half]
    write(tmp_path, 2)
    versions.look()
    assert served(versions) == 2 and said == [half, "version 2 is served instead of 1"]


@pytest.mark.parametrize("change", ["content", "name", "more", "less", "link"])
def test_a_changed_version_is_refused_and_the_earlier_one_is_served(tmp_path, made, change):
    write(tmp_path, 1)
    (tmp_path / "2/variables").mkdir(parents=True)
    (tmp_path / "2/variables/index").write_bytes(b"0123")
    write(tmp_path, 2)
    file = tmp_path / "2/variables/index"
    if change == "content":
        file.write_bytes(b"0124")
    elif change == "name":
        file.rename(file.with_name("indes"))
    elif change == "more":
        file.with_name("more").touch()
    elif change == "less":
        file.unlink()
    else:  # its files would be loaded, such as requests to warm up with
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "2/assets.extra").symlink_to(tmp_path / "elsewhere")
    versions, said = made()
    versions.look()
    assert served(versions) == 1 and said == [f"version 2 is not served: {CHANGED}"]
    assert versions.states("m", 2) == [State(2, "END", "FAILED_PRECONDITION", CHANGED)]


def test_a_version_that_the_manifest_does_not_know_needs_trust(tmp_path, made):
    write(tmp_path, 3, is_known=False)
    versions, said = made()
    versions.look()
    assert said == [f"version 3 is not served: manifest.json does not know it. {TRUST}"]
    with pytest.raises(UserError) as caught:
        versions.start(60.0)
    assert str(caught.value) == f"{tmp_path / '3'} is not served: manifest.json does not know it. {TRUST}"
    trusting, said = made(is_trusted=True)
    trusting.look()
    assert served(trusting) == 3 and said == []


def test_nothing_to_serve_is_one_line(tmp_path, made):
    with pytest.raises(UserError) as caught:
        made()[0].start(60.0)
    assert str(caught.value) == f"{tmp_path} has no version to serve. Export one: --mode=export."


def test_a_version_that_cannot_be_loaded_leaves_the_earlier_one_and_is_tried_again_when_it_changes(tmp_path, made):
    write(tmp_path, 1)
    versions, said = made()
    versions.look()
    write(tmp_path, 2, "bad")
    versions.look()
    versions.look()
    bad = "version 2 is not served: it cannot be loaded: ValueError: no graph"
    assert served(versions) == 1 and said == [bad]
    write(tmp_path, 2, "mended")
    versions.look()
    assert versions.asked("m", 2).text == "mended"
    assert versions.states("m", 2) == [State(2, "AVAILABLE")]


def test_a_version_that_is_removed_is_served_until_another_is_there(tmp_path, made):
    write(tmp_path, 1)
    write(tmp_path, 2)
    versions, _ = made()
    versions.look()
    for number in (2, 1):
        (tmp_path / str(number) / "saved_model.pb").unlink()
        (tmp_path / str(number)).rmdir()
        versions.look()
        assert served(versions) == 1  # the last stays although its folder is gone


def test_a_model_replays_its_warm_up_requests_before_it_is_returned(tmp_path, monkeypatch):
    pytest.importorskip("tensorflow_serving.apis.prediction_log_pb2", reason="needs the extra 'serve'")
    export(tmp_path, 3.0)
    path = tmp_path / "exports/saved_model/1"
    asked, predict = [], Model.predict

    def note(self, name, inputs, outputs=()):
        answer = predict(self, name, inputs, outputs)
        asked.append((name, len(next(iter(inputs.values())))))
        return answer

    monkeypatch.setattr(Model, "predict", note)
    model = Model.load(path)
    assert asked == [(name, size) for name in ("serving_default", "texts", "table") for size in (1, 4)]
    np.testing.assert_array_equal(model.predict("", {"x": X})["logits"], 3 * X)
    content = (path / WARM_UP).read_bytes()
    (path / WARM_UP).write_bytes(content[:-3])
    with pytest.raises(Exception, match=r"truncated|corrupted"):
        Model.load(path)
