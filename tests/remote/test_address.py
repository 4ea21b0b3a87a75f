"""framework/remote/address.py: what an address is, and the files at one."""

from importlib.util import find_spec

import pytest

from framework import extras
from framework.errors import UserError
from framework.remote.address import Place, Unreachable, as_typed, check, folder_of, is_address, refuse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/run", True),
        ("memory://run", True),
        ("file:///tmp/run", True),
        ("simplecache::s3://bucket/run", True),
        ("runs/first", False),
        ("/runs/a://b", False),
        ("s3:/bucket/run", False),
        ("", False),
        (None, False),
    ],
)
def test_a_text_with_a_scheme_is_an_address(text, expected):
    assert is_address(text) is expected


@pytest.mark.parametrize(
    ("address", "said"),
    [
        (
            "simplecache::s3://b/run",
            "simplecache::s3://b/run is a chain of file systems. Type one of them, e.g. s3://bucket/run.",
        ),
        (
            "sftp://me:secret@host/run",
            "sftp://… has a password in it, which the run would record. Put it where the package of sftp:// looks, such"
            " as its environment variables, and leave it out.",
        ),
        ("s3://b/../run", "s3://b/../run has a '.' or '..' in it. Type the address without it."),
    ],
)
def test_what_is_refused_of_an_address(address, said):
    with pytest.raises(UserError) as error:
        check(address)
    assert str(error.value) == said


def test_an_unknown_file_system_and_a_missing_package_are_one_line_each():
    with pytest.raises(UserError, match=r"^nonsense://x is no address that fsspec can open \(nonsense\): Protocol not"):
        Place("nonsense://x")
    absent = [(scheme, package) for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")) if not find_spec(package)]
    for scheme, package in absent:
        with pytest.raises(UserError) as error:
            Place(f"{scheme}://b/run")
        pins = " ".join(extras.pins("remote"))
        assert str(error.value) == f"{scheme}:// needs {package}. Type python -m pip install {package} {pins}"


def test_a_folder_of_the_cache_belongs_to_the_address_alone(cache):
    one, same, other = folder_of("s3://a/run"), folder_of("s3://a/run/"), folder_of("s3://b/run")
    assert one == same != other
    assert one.name == other.name == "run" and one.is_relative_to(cache / "runs")
    assert folder_of("runs/first").as_posix() == "runs/first"


def test_an_error_names_the_address_as_typed():
    folder = folder_of("memory://run")
    with pytest.raises(UserError) as error, as_typed("memory://run"):
        raise UserError(f"--workdir={folder} holds a run; --config.resume_from={folder} continues it. See {folder}/x.")
    assert str(error.value) == (
        f"--workdir=memory://run holds a run; --config.resume_from=memory://run continues it. See {folder}/x."
    )


@pytest.mark.parametrize("scheme", ["memory://box", "file://{}/box"])
def test_files_are_listed_copied_read_and_deleted(tmp_path, scheme):
    place = Place(scheme.format(tmp_path))
    assert place.listing() == {} and place.read("a.json") is None
    source = tmp_path / "source"
    source.write_bytes(b"123")
    place.put(source, "sub/deep/a.bin")
    place.write("b.json", b"{}")
    before = place.listing()
    assert {name: entry.size for name, entry in before.items()} == {"b.json": 2, "sub/deep/a.bin": 3}
    place.get("sub/deep/a.bin", tmp_path / "target")
    assert (tmp_path / "target").read_bytes() == b"123" and place.read("b.json") == b"{}"
    place.write("b.json", b"[]")
    after = place.listing()
    assert after["b.json"].key != before["b.json"].key and after["sub/deep/a.bin"] == before["sub/deep/a.bin"]
    place.delete("b.json")
    place.delete("b.json")
    assert [*place.listing()] == ["sub/deep/a.bin"]
    with pytest.raises(FileNotFoundError):
        place.get("b.json", tmp_path / "target")


def test_a_file_is_no_folder_and_a_name_does_not_leave_it(memory):
    memory.pipe_file("/box/a", b"1")
    with pytest.raises(UserError, match=r"^memory://box/a is a file. Type the address of a folder.$"):
        Place("memory://box/a").listing()
    memory.store["/bad/../../a"] = memory.store["/box/a"]
    with pytest.raises(
        UserError, match=r"^memory://bad has a file of the name '\.\./\.\./a', which no folder can hold"
    ):
        Place("memory://bad").listing()


def test_what_a_file_system_raises_is_unreachable(monkeypatch, memory):
    def fails(*_, **__):
        raise RuntimeError("the network\n is down.")

    monkeypatch.setattr(type(memory), "pipe_file", fails)
    with pytest.raises(Unreachable, match=r"^the network is down$"):
        Place("memory://box").write("a", b"")


def test_readers_of_files_refuse_an_address():
    with pytest.raises(UserError) as error:
        refuse("s3://b/x", "image_folder")
    assert str(error.value) == (
        "image_folder: s3://b/x is an address, and this reads files of this machine. Type its folder at --data_dir,"
        " which is copied, and read cfg.data.dir."
    )
