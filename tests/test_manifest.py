"""The hashes of exported versions, against those of hashlib."""

import hashlib
import json

import pytest

from framework import manifest
from framework.export import SavedModel, export_all
from tests.export.fakes import SIGNATURE, Scale, X, make_batch


def by_hand(folder):
    """SHA-256 of 'name length\\n' and content of each file, in the order of their paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [
        f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes() for path in files
    ]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def test_each_version_of_an_export_is_in_the_manifest(tmp_path):
    for factor in (1.0, 2.0):
        [report] = export_all(
            [SavedModel({"serving_default": SIGNATURE})], Scale(factor), [make_batch(X)], {}, tmp_path
        )
    folder = tmp_path / "saved_model"
    known = json.loads((folder / "manifest.json").read_text())
    assert known == {name: by_hand(folder / name) for name in ("1", "2")} and known["2"] == report.sha256
    assert manifest.known(folder) == known


def test_a_version_that_is_gone_leaves_the_manifest(tmp_path):
    (tmp_path / "2").mkdir()
    manifest.add(tmp_path, "1", "one")
    manifest.add(tmp_path, "2", "two")
    assert manifest.known(tmp_path) == {"2": "two"}
    manifest.add(tmp_path, "3", "three")
    assert manifest.known(tmp_path) == {"2": "two", "3": "three"}


def test_versions_are_what_tensorflow_serving_sees(tmp_path):
    """Its names are int64, so a time to the microsecond is none."""
    for name in ("2", "007", str(2**63 - 1), str(2**63), "20261129134500123456", "-3", "٣", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "9").touch()
    assert manifest.versions(tmp_path) == {
        2: tmp_path / "2",
        7: tmp_path / "007",
        2**63 - 1: tmp_path / str(2**63 - 1),
    }
    assert [manifest.number(name) for name in ("0", "12", "", "1.5", "²")] == [0, 12, None, None, None]


@pytest.mark.parametrize("content", ["{", "[1]", "null"])
def test_a_damaged_manifest_knows_nothing(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    assert manifest.known(tmp_path) == {}
