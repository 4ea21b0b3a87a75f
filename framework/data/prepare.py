"""Writes ArrayRecord shards of a folder of pictures, or of TFRecord shards.

    python -m framework.data.prepare pets prepared/pets                                  # pets/cat/1.jpg, …
    python -m framework.data.prepare 'cifar10/train-*.tfrecord' prepared/train --shards=8 --damaged=stop

Records are read, checked and written in parallel, a thread for each shard. A damaged picture is reported and left out.
The same command continues an interrupted preparation: shards that are complete stay. `manifest.json`, written last,
lists the shards with their hashes, which `data.array_records` checks.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import math
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tensorflow as tf
from absl import logging
from google.protobuf.message import DecodeError
from tqdm import tqdm

from framework import extras, files
from framework.data.files import manifest, notes, pictures
from framework.data.files.folder import IMAGE, FolderRecords
from framework.data.files.records import THREADS, RecordError, Records, TfRecords
from framework.data.files.shards import find
from framework.errors import DataError, RunError, UserError

# A chunk for each record, because reads are random; compressed, because a record may be text.
_OPTIONS = "group_size:1,zstd:1"
_SHARD_BYTES = 2**28
_CHUNK = 64  # records read at a time
_NAMED = 100  # damaged records that the manifest names


@dataclasses.dataclass(frozen=True)
class Request:
    """Holds what is to be written; `main` makes it of the command.

    Attributes:
      source: a folder with a folder of pictures for each class, or TFRecord shards: a file, a folder or a pattern.
      folder: where the shards are written; it has no other files.
      shards: how many; 0 for one for each 256 MB, and at least 4.
      workers: threads.
      image: the feature of a tf.train.Example that has a picture; pictures are decoded once to find damaged ones.
      max_pixels: most pixels of a picture, by its header.
      damaged: 'skip' reports damaged records and leaves them out, 'stop' ends at the first one.
    """

    source: str
    folder: Path
    shards: int = 0
    workers: int = THREADS
    image: str = IMAGE
    max_pixels: int = pictures.MAX_PIXELS
    damaged: str = "skip"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit status: 2 for bad input, 1 for another failure."""
    try:
        request = _parsed(argv)
        facts = prepare(request)
    except KeyboardInterrupt:
        print("interrupted; the same command continues", file=sys.stderr)
        return 128 + 2
    except (UserError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    shards, skipped = len(facts["shards"]), facts["skipped"]["records"]
    print(f"{request.folder}: {facts['records']} records in {shards} shards, {skipped} damaged ones left out")
    return 0


def prepare(request: Request) -> dict[str, Any]:
    """Writes the shards and returns their manifest; returns at once if they are complete.

    Raises:
      UserError: there is nothing to read, the folder has other files, or array_record is not installed.
      DataError: a record is damaged, and `request.damaged` is 'stop'.
    """
    extras.load("array_record.python.array_record_module", "data")
    reader = _reader(request.source)
    if request.folder.resolve().is_relative_to(Path(request.source).resolve()):
        raise UserError(f"{request.folder} is inside of {request.source}. Write the shards to another folder.")
    _open(request.folder)
    with files.held(request.folder / ".lock", lambda holder: f"{request.folder} is being prepared by {holder}."):
        return _Preparation(request, reader).run()


def _open(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} cannot be made: {error.strerror}. Use another folder.") from error
    is_ours = (folder / manifest.NAME).exists() or (folder / manifest.PLAN).exists()
    others = [path.name for path in folder.iterdir() if not path.name.startswith(".")]
    if others and not is_ours:
        raise UserError(f"{folder} has other files, such as {min(others)}. Use another folder.")


class _Preparation:
    """Writes the shards of a request."""

    def __init__(self, request: Request, reader: Records) -> None:
        self._request = request
        self._reader = reader
        self._image = request.image if _has_feature(reader, request.image) else ""
        self._shards = min(len(reader), request.shards or max(4, math.ceil(reader.nbytes / _SHARD_BYTES)))
        # Whatever decides on the bytes of the shards.
        plan = [reader.digest, self._shards, self._image, request.max_pixels, request.damaged, _OPTIONS]
        self._key = hashlib.sha256(repr(plan).encode()).hexdigest()
        self._stopped = threading.Event()

    def run(self) -> dict[str, Any]:
        folder = self._request.folder
        facts = manifest.read(folder) if (folder / manifest.NAME).exists() else None
        self._check_plan(facts)
        if facts is not None:
            logging.info("%s is complete already", folder)
            return facts
        files.write_json(folder / manifest.PLAN, {"plan": self._key})
        entries = self._all_shards()
        facts = self._facts(entries)
        files.write_json(folder / manifest.NAME, facts)
        for entry in entries:
            files.remove(self._entry(entry["name"]))
        files.remove(folder / manifest.PLAN)
        return facts

    def _check_plan(self, facts: dict[str, Any] | None) -> None:
        """Raises UserError if the folder has, or was to have, other shards."""
        plan = self._request.folder / manifest.PLAN
        begun = files.read_json(plan, lambda value: str(value["plan"]), None, "the preparation starts again")
        for key in (begun, None if facts is None else facts["plan"]):
            if key not in (None, self._key):
                raise UserError(
                    f"{self._request.folder} was prepared from other files, or by another command. Use another folder,"
                    " or remove this one."
                )

    def _facts(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        skipped = [text for entry in entries for text in entry["skipped"]]
        return {
            "version": manifest.VERSION,
            "records": sum(entry["records"] for entry in entries),
            "shards": [{key: entry[key] for key in ("name", "records", "bytes", "sha256")} for entry in entries],
            "classes": list(self._reader.classes),
            "skipped": {"records": len(skipped), "first": skipped[:_NAMED]},
            "origin": self._request.source,
            "plan": self._key,
        }

    def _all_shards(self) -> list[dict[str, Any]]:
        """Returns an entry of the manifest for each shard, in their order."""
        rows = np.array_split(np.arange(len(self._reader)), self._shards)
        names = [f"records-{shard:05d}-of-{self._shards:05d}.array_record" for shard in range(self._shards)]
        with (
            tqdm(total=len(self._reader), unit=" records", disable=None) as bar,
            concurrent.futures.ThreadPoolExecutor(self._request.workers) as pool,
        ):
            jobs = [pool.submit(self._shard, name, share, bar) for name, share in zip(names, rows, strict=True)]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [job.result() for job in jobs]

    def _entry(self, name: str) -> Path:
        return self._request.folder / f".{name}.json"

    def _shard(self, name: str, rows: np.ndarray, bar: Any) -> dict[str, Any]:
        """Returns the entry of a shard; writes the shard unless it is there already."""
        path = self._request.folder / name
        entry = files.read_json(self._entry(name), dict, None, "the shard is written again")
        if entry is None or not path.is_file() or notes.content_hash(path) != entry["sha256"]:
            entry = self._written(path, rows, bar)
            files.write_json(self._entry(name), entry)
        else:
            bar.update(len(rows))
        return entry

    def _written(self, path: Path, rows: np.ndarray, bar: Any) -> dict[str, Any]:
        module = extras.load("array_record.python.array_record_module", "data")
        aside = path.with_name(f".{path.name}.tmp")
        files.remove(aside)
        writer = module.ArrayRecordWriter(str(aside), _OPTIONS)
        skipped: list[str] = []
        count = 0
        try:
            for chunk in np.array_split(rows, math.ceil(len(rows) / _CHUNK)):
                for record in self._good(chunk, skipped):
                    writer.write(record)
                    count += 1
                bar.update(len(chunk))
        except RuntimeError as error:  # of the package
            raise RunError(f"{aside} could not be written: {' '.join(str(error).split())[:200]}.") from error
        finally:
            writer.close()
        if not count:
            raise UserError(f"all {len(rows)} records of {path.name} are damaged: {skipped[0]}. Use fewer --shards.")
        reader = module.ArrayRecordReader(str(aside), "readahead_buffer_size:0")
        is_whole = reader.num_records() == count
        reader.close()
        if not is_whole:
            raise RunError(f"{aside} could not be written as a whole. Is the disk full?")
        files.sync(aside)
        aside.replace(path)
        files.sync(path.parent)
        size, digest = path.stat().st_size, notes.content_hash(path)
        return {"name": path.name, "records": count, "bytes": size, "sha256": digest, "skipped": skipped}

    def _good(self, rows: np.ndarray, skipped: list[str]) -> Iterator[bytes]:
        """Yields the records that are not damaged, and adds the others to `skipped`."""
        if self._stopped.is_set():
            raise RunError("stopped, because another shard could not be written.")
        for row in rows:
            try:
                (record,) = self._reader.read(row[np.newaxis])
                if self._image:
                    _check_picture(record, self._image, self._request.max_pixels)
                yield record
            except RecordError as error:
                shown = f"{self._reader.name(int(row))}: {error.why}"
                if self._request.damaged == "stop":
                    raise DataError(f"{shown}. Mend the file, or use --damaged=skip.") from error
                logging.warning("left out: %s", shown)
                skipped.append(shown)


def _reader(source: str) -> Records:
    """Returns a reader of a folder of pictures, or of TFRecord shards."""
    folder = Path(source).expanduser()
    is_records = folder.is_dir() and any(path.suffix == ".tfrecord" for path in folder.iterdir())
    return FolderRecords(folder) if folder.is_dir() and not is_records else TfRecords(find(source, ".tfrecord"))


def _has_feature(reader: Records, name: str) -> bool:
    """Returns whether the first record that can be read is a tf.train.Example with this feature."""
    for row in range(len(reader)):
        try:
            (record,) = reader.read(np.array([row]))
            break
        except RecordError:
            continue
    else:
        return False
    try:
        is_there = name in tf.train.Example.FromString(record).features.feature
    except DecodeError:
        is_there = False
    if not is_there:
        logging.warning("the records have no feature '%s': their pictures, if any, are not checked", name)
    return is_there


def _check_picture(record: bytes, name: str, max_pixels: int) -> None:
    """Raises RecordError unless the record has a picture that can be decoded."""
    try:
        (content,) = tf.train.Example.FromString(record).features.feature[name].bytes_list.value
        pictures.verify(content, max_pixels)
    except DecodeError as error:
        raise RecordError(0, "it is no tf.train.Example") from error
    except ValueError as error:
        raise RecordError(0, str(error)) from error


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. See python -m framework.data.prepare --help.")


def _parsed(argv: Sequence[str] | None) -> Request:
    parser = _Parser(prog="python -m framework.data.prepare", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("source", help="folder with a folder of pictures for each class, or TFRecord shards")
    parser.add_argument("folder", type=Path, help="where the shards are written")
    parser.add_argument("--shards", type=_count, default=0, help="how many files; one for each 256 MB, and at least 4")
    parser.add_argument("--workers", type=_count, default=THREADS, help="threads; one for each core")
    parser.add_argument("--image", default=IMAGE, help="the feature that has a picture")
    parser.add_argument("--max_pixels", type=_count, default=pictures.MAX_PIXELS, help="most pixels of a picture")
    parser.add_argument("--damaged", choices=("skip", "stop"), default="skip", help="what to do with damaged records")
    return Request(**vars(parser.parse_args(argv)))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


if __name__ == "__main__":
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    sys.exit(main())
