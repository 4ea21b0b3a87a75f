"""Columns of Parquet and CSV files as arrays of numbers and texts.

source = columns("trips-*.parquet", ["distance", "fare"])     # a Source: float64 [rows] each, in memory
source = columns("trips-*.parquet", is_mapped=True)           # numbers as files that are mapped, not loaded
"""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from framework import extras, files
from framework.data.files import notes
from framework.data.files.records import in_threads
from framework.data.files.shards import Paths, find, origin_of
from framework.data.sources import Source
from framework.errors import UserError, near

_FACTS = "columns.json"


def columns(paths: Paths, names: Sequence[str] | None = None, *, is_mapped: bool = False) -> Source:
    """Returns the columns of Parquet or CSV files, one array each.

    Args:
      paths: a file, a pattern such as 'trips-*.parquet', or a list of files with the same columns.
      names: the columns; all by default.
      is_mapped: whether columns of numbers are copied once to the cache, file by file, and mapped from there, so that
        they need not fit memory. Texts are always loaded.

    Raises:
      UserError: pyarrow is not installed, a file cannot be read, or a column is missing, has a null, or holds neither
        numbers nor texts.
    """
    shards = find(paths, ".parquet")
    origin = origin_of(shards)
    if is_mapped:
        return Source(_mapped(shards, names), origin)
    tables = [_arrays(shard, _table(shard, names)) for shard in shards]
    _check_same(shards, tables)
    return Source({name: np.concatenate([table[name] for table in tables]) for name in tables[0]}, origin)


def _table(file: Path, names: Sequence[str] | None) -> Any:
    """Returns a pyarrow table of the columns `names`, in that order."""
    pyarrow = extras.load("pyarrow", "data")
    try:
        if file.suffix == ".csv":
            table = extras.load("pyarrow.csv", "data").read_csv(file)
            has = table.column_names
        else:
            parquet = extras.load("pyarrow.parquet", "data")
            has = parquet.read_schema(file).names
            known = None if names is None else [name for name in names if name in has]
            table = parquet.read_table(file, columns=known, memory_map=True, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read ({' '.join(str(error).split())[:200]}).") from error
    if len(set(has)) < len(has):
        twice = next(name for place, name in enumerate(has) if name in has[:place])
        raise UserError(f"{file} has two columns of the name '{twice}'. Rename one of them.")
    for name in names or ():
        if name not in has:
            raise UserError(f"{file} has no column '{name}', only {', '.join(has)}.{near(name, has)}")
    return table if names is None else table.select(list(names))


def _arrays(file: Path, table: Any) -> dict[str, np.ndarray]:
    arrays = {name: _array(f"{file}: the column '{name}'", table.column(name)) for name in table.column_names}
    if file.suffix == ".csv":
        for name, array in arrays.items():
            _check_integers(f"{file}: the column '{name}'", array)
    return arrays


def _array(what: str, column: Any) -> np.ndarray:
    """Returns a pyarrow column as numbers [rows] or [rows, n], or as texts [rows]."""
    types = extras.load("pyarrow", "data").types
    if column.null_count:
        row = int(np.argmax(column.is_null().to_numpy()))
        raise UserError(f"{what} is null in row {row} and {column.null_count - 1} more. Fill it, or drop the rows.")
    kind = column.type
    if types.is_dictionary(kind):
        return _array(what, column.cast(kind.value_type))
    if types.is_fixed_size_list(kind):
        return _array(what, column.combine_chunks().flatten()).reshape(len(column), kind.list_size)
    is_number = types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind)
    if not (is_number or types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind)):
        raise UserError(f"{what} is of type {kind}, neither numbers nor texts. Leave it out by names=[…].")
    return np.asarray(column)


def _check_integers(what: str, array: np.ndarray) -> None:
    """Raises UserError for what a CSV reader makes of integers of 64 bits without a sign, such as hashes: float64."""
    if array.dtype == np.float64 and len(array):
        largest = np.abs(array).max()
        if 2**53 <= largest <= 2**64 and (array == np.floor(array)).all():
            raise UserError(
                f"{what} has integers up to {largest:.6g} as float64, which tells integers apart only below 2**53."
                " Write them as texts, or as uint64 in a Parquet file."
            )


def _check_same(paths: Sequence[Path], tables: Sequence[dict[str, np.ndarray]]) -> None:
    for path, table in zip(paths, tables, strict=True):
        kinds, first = _kinds(table), _kinds(tables[0])
        if kinds != first:
            name = min(name for name in kinds.keys() | first.keys() if kinds.get(name) != first.get(name))
            raise UserError(
                f"{path}: the column '{name}' is {_shown(kinds.get(name))}, but in {paths[0]} it is"
                f" {_shown(first.get(name))}."
            )


def _kinds(table: Mapping[str, np.ndarray]) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    return {name: (array.dtype, array.shape[1:]) for name, array in table.items()}


def _shown(kind: tuple[np.dtype, tuple[int, ...]] | None) -> str:
    return "missing" if kind is None else f"{kind[0]} [{', '.join(map(str, ('rows', *kind[1])))}]"


# ---- Columns as mapped files ----


def _mapped(paths: Sequence[Path], names: Sequence[str] | None) -> dict[str, np.ndarray]:
    """Returns memory-mapped columns; the first call copies them to the cache, one file at a time."""
    hashes = in_threads(notes.content_hash, paths)
    key = hashlib.sha256(json.dumps([hashes, names and list(names)]).encode()).hexdigest()[:32]
    folder = files.cache_folder("files") / f"columns-{key}"
    if not folder.exists():
        logging.info("%s: columns are copied to %s", paths[0], folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as aside:
            _copy(paths, names, Path(aside) / "columns")
            with contextlib.suppress(FileExistsError):  # another process was faster
                os.rename(Path(aside) / "columns", folder)
    facts = files.load_json(folder / _FACTS)
    return {
        name: np.memmap(folder / str(number), np.dtype(dtype), "r", shape=tuple(shape))
        for number, (name, dtype, shape) in enumerate(facts)
    }


def _copy(paths: Sequence[Path], names: Sequence[str] | None, folder: Path) -> None:
    folder.mkdir()
    rows = 0
    first: dict[str, np.ndarray] = {}
    for path in paths:
        arrays = _arrays(path, _table(path, names))
        first = first or {name: array[:0] for name, array in arrays.items()}
        _check_same([paths[0], path], [first, arrays])
        for number, (name, array) in enumerate(arrays.items()):
            if array.dtype.hasobject:
                raise UserError(
                    f"{path}: the column '{name}' holds texts, which cannot be mapped. Leave is_mapped out."
                )
            with (folder / str(number)).open("ab") as file:
                array.tofile(file)
        rows += len(next(iter(arrays.values())))
    facts = [[name, array.dtype.str, [rows, *array.shape[1:]]] for name, array in first.items()]
    files.write_json(folder / _FACTS, facts)
