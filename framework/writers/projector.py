"""Vectors for TensorBoard's projector, with what is known of each: rows of an embedding table, items of a tower.

    write_projector(run.workdir / "tensorboard/train", "films", vectors, {"title": titles, "year": years})
    # tensorboard --logdir=RUN, then "Projector"

The folder gets films.tsv, films_metadata.tsv and projector_config.pbtxt, which the projector looks for in a log
directory and in the folder of each of its runs. https://projector.tensorflow.org takes the two tables, too.
"""

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from google.protobuf import text_format
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from framework.errors import UserError
from framework.files import write_text

_CONFIG = "projector_config.pbtxt"
_EMPTY = "-"  # the first cell of a row without a text
_BYTE_ORDER_MARK = "\ufeff"  # white space in JavaScript, but not in Python


def write_projector(
    folder: str | os.PathLike[str], name: str, vectors: np.ndarray, columns: Mapping[str, Sequence[Any]]
) -> None:
    """Writes vectors and their metadata, in place of earlier ones of that name; those of other names stay.

    Args:
      folder: made if it is missing.
      name: of the vectors in the projector, and of the files: letters, digits and _.
      vectors: floating or integer [rows, width], finite.
      columns: {name: a value for each row}, such as titles, as bytes of UTF-8 too; a tab or a line break in a text
        becomes a space, and a row without any text gets '-'. At least one.

    Raises:
      UserError: the name is none of a file, or the numbers of vectors and of values differ.
    """
    folder, vectors = Path(folder), np.asarray(vectors)
    _check(name, vectors, columns)
    folder.mkdir(parents=True, exist_ok=True)
    # Nine digits give every float32 back.
    rows = ("\t".join(f"{number:.9g}" for number in row.tolist()) for row in vectors)
    write_text(folder / f"{name}.tsv", "".join(f"{row}\n" for row in rows))
    cells = [[_cell(value) for value in column] for column in columns.values()]
    # The projector takes the first line of several columns for their names, and that of a single one for a value.
    names = [[" ".join(column.split()) for column in columns]] if len(columns) > 1 else []
    lines = ["\t".join(line) for line in [*names, *zip(*cells, strict=True)]]
    # It leaves out lines without a text, and would show each later vector with the line of the next one.
    lines = [line if line.replace(_BYTE_ORDER_MARK, "").strip() else f"{_EMPTY}{line}" for line in lines]
    write_text(folder / f"{name}_metadata.tsv", "".join(f"{line}\n" for line in lines))
    config = ProjectorConfig(embeddings=[one for one in _config(folder).embeddings if one.tensor_name != name])
    config.embeddings.add(
        tensor_name=name,
        tensor_shape=vectors.shape,
        tensor_path=f"{name}.tsv",
        metadata_path=f"{name}_metadata.tsv",
    )
    write_text(folder / _CONFIG, text_format.MessageToString(config))


def _cell(value: Any) -> str:
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return " ".join(text.split())


def _check(name: str, vectors: np.ndarray, columns: Mapping[str, Sequence[Any]]) -> None:
    if not re.fullmatch(r"\w+", name):
        raise UserError(f"write_projector: name='{name}' is not the name of a file. Use letters, digits and _.")
    if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors.astype(np.float64)).all():
        raise UserError(f"write_projector: '{name}' has shape {vectors.shape}, but must be finite [rows, width].")
    if not columns:
        raise UserError(f"write_projector: '{name}' has no columns. Give one, such as {{'title': titles}}.")
    for column, values in columns.items():
        if len(values) != len(vectors):
            raise UserError(
                f"write_projector: column '{column}' of '{name}' has {len(values)} values for {len(vectors)} vectors."
                " Give one for each row."
            )


def _config(folder: Path) -> ProjectorConfig:
    """Returns what the projector shows of a folder so far; nothing, with a warning, if that cannot be read."""
    config, path = ProjectorConfig(), folder / _CONFIG
    with contextlib.suppress(FileNotFoundError):
        try:
            return text_format.Parse(path.read_text(), config)
        except (text_format.ParseError, UnicodeDecodeError) as error:
            logging.warning("%s cannot be read (%s): it is written anew", path, error)
    return ProjectorConfig()
