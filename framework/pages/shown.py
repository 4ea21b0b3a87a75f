"""The newest pictures and texts that a run has shown, from its event files.

    shown = newest(workdir / "tensorboard")
    shown.pictures["eval/digits/confusion"]       # (469, b'\\x89PNG…')

TensorFlow is not needed: an event file is a sequence of records, each a protocol buffer that TensorBoard knows.
"""

import contextlib
import dataclasses
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

_HEAD = struct.Struct("<QI")  # length of a record, and its checksum
_TAIL_BYTES = 4
_PNG = b"\x89PNG\r\n\x1a\n"


@dataclasses.dataclass
class Shown:
    """Holds {name: (step, PNG or text)}."""

    pictures: dict[str, tuple[int, bytes]] = dataclasses.field(default_factory=dict)
    texts: dict[str, tuple[int, str]] = dataclasses.field(default_factory=dict)


def newest(folder: Path) -> Shown:
    """Returns the newest picture and text of each name; a damaged record ends its file."""
    shown = Shown()
    for path in sorted(folder.glob("train/*.tfevents.*")):
        with contextlib.suppress(OSError, ValueError):  # ValueError: an empty file cannot be mapped
            for record in _records(path):
                if b"images" in record or b"text" in record:  # the names of plugins; others are not worth parsing
                    _take(shown, record)
    return shown


def _records(path: Path) -> Iterator[bytes]:
    if not path.is_file():
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        start = 0
        while start + _HEAD.size <= len(data):
            content = start + _HEAD.size
            end = content + _HEAD.unpack_from(data, start)[0]
            if end + _TAIL_BYTES > len(data):
                return
            yield data[content:end]
            start = end + _TAIL_BYTES


def _take(shown: Shown, record: bytes) -> None:
    # Loaded at need: most runs show nothing.
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    try:
        event = Event.FromString(record)
    except DecodeError:
        return
    for value in event.summary.value:
        plugin, strings = value.metadata.plugin_data.plugin_name, value.tensor.string_val
        if plugin == "images" and len(strings) > 2 and strings[2].startswith(_PNG):
            shown.pictures[value.tag] = (event.step, strings[2])
        elif plugin == "text" and strings:
            shown.texts[value.tag] = (event.step, strings[0].decode(errors="replace"))
