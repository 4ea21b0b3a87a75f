"""Mixtures: what make_batches is given, one source or several with shares, and what a run records of them.

shares_of([(north, 3), (list_of_dicts, 1)])             # [(north, 3), (Items, 1)]
check_repeatable([north, south], reader, True)          # UserError if an example is another one when it is read again
fingerprint_of([north, south], reader)                  # a text by which a run recognises its data, or None
"""

import hashlib
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging

from framework.data.items import from_items, is_map_style
from framework.data.reading import RetryingReader
from framework.data.sources import (
    IndexedSource,
    Source,
    bytes_of,
    common_classes,
    hash_of_arrays,
    hash_of_sample,
    instead,
    is_source,
)
from framework.errors import UserError

_READ_TWICE = 8  # examples of a source; one that flips a coin for each is found out but for 1 of 256 times


def shares_of(sources: Any) -> list[tuple[IndexedSource, float]]:
    """Returns [(source, share)] of one source, or of a mixture [(source, share), …].

    Raises:
      UserError: `sources` is something else; the message says how to make a source of it.
    """
    is_list = isinstance(sources, list | tuple)
    if not is_list or (sources and isinstance(sources[0], Mapping)):
        return [(_source_of(sources, ""), 1.0)]
    if not sources:
        raise UserError(f"make_batches was given {instead(sources)}")
    return [_pair_of(pair) for pair in sources]


def _pair_of(pair: Any) -> tuple[IndexedSource, Any]:
    """Returns (source, share) of one entry of a mixture."""
    if is_source(pair):
        raise UserError(f"make_batches was given a list with '{pair.origin}' alone. A mixture is [(source, share), …].")
    if not (isinstance(pair, tuple | list) and len(pair) == 2):
        raise UserError(f"make_batches was given a list with {instead(pair)}")
    source = _source_of(pair[0], "a list with ")
    share: Any = pair[1]
    if isinstance(share, bool) or not isinstance(share, int | float | np.integer | np.floating):
        raise UserError(f"make_batches: the share of '{source.origin}' in a mixture is {share!r}, not a number.")
    return source, share


def _source_of(given: Any, where: str) -> IndexedSource:
    """Returns a value that is a source, or the source of a map-style data set."""
    if is_source(given):
        return given
    if is_map_style(given):
        return from_items(given)
    raise UserError(f"make_batches was given {where}{instead(given)}")


def origin_of(sources: Sequence[IndexedSource], placement: str, fingerprint: str | None) -> dict[str, Any]:
    """Returns what result.json says of the data of a split: where it comes from, its size and how it is recognised.

    `sample` is the fingerprint, `sha256` the hash of all examples of arrays in memory.
    `skipped` is there if a source leaves damaged records out: {origin: how many, and the first ones}.
    """
    skipped = {source.origin: getattr(source, "skipped", None) for source in sources}
    return {
        "placement": placement,
        "source": " + ".join(source.origin for source in sources),
        "examples": sum(len(source) for source in sources),
        "bytes": sum(source.nbytes for source in sources),
        "subset": any(source.is_subset for source in sources),
        "sample": fingerprint,
        "sha256": hash_of_arrays(sources),
        **({"skipped": skipped} if any(skipped.values()) else {}),
    }


def check_repeatable(sources: Sequence[IndexedSource], reader: RetryingReader, is_deterministic: bool) -> None:
    """Reads some examples twice of each source whose examples code of the user's makes one by one.

    Those are map-style data sets and records that a function decodes: `is_repeatable` is False. A source with a `take`
    of its own may be slow, and is not read to be known.

    Args:
      sources: the sources.
      reader: reads them.
      is_deterministic: `runtime.deterministic`; without it, a source that is not repeatable is warned of.

    Raises:
      UserError: an example is another one when it is read again, and the run must be repeatable.
    """
    for source in sources:
        if getattr(source, "is_repeatable", True):
            continue
        rows = np.unique(np.linspace(0, len(source) - 1, _READ_TWICE).astype(np.int64))
        once, twice = (reader.learn(source, operator.methodcaller("take", rows)) for _ in range(2))
        differing = _differing(once, twice)
        if differing is None:
            continue
        name, place = differing
        what = f"'{name}' of example {rows[place]} of '{source.origin}' is another one when it is read again"
        if is_deterministic:
            raise UserError(
                f"{what}, so no resume can be exact. Draw in the transform instead (framework.data.augment or"
                " framework.rng), or by a generator of the index; or type --config.runtime.deterministic=false."
            )
        logging.warning("%s: a resumed, rewound or replayed run goes on with others", what)


def _differing(once: Any, twice: Any) -> tuple[str, int] | None:
    """Returns a field and the first place at which two readings of the same examples differ, None if none does."""
    if not isinstance(once, Mapping) or not isinstance(twice, Mapping):
        return None  # refused where batches are read
    for name in sorted(once.keys() & twice.keys()):
        one, other = np.atleast_1d(once[name]), np.atleast_1d(twice[name])
        for place in range(min(len(one), len(other))):
            if bytes_of(one[place : place + 1]) != bytes_of(other[place : place + 1]):
                return name, place
    return None


def classes_of(sources: Sequence[IndexedSource]) -> tuple[str, ...]:
    """Returns the names of the classes of all sources, by label; () if they do not say.

    Raises:
      UserError: a label stands for another class in another source.
    """
    return common_classes({f"'{source.origin}'": tuple(getattr(source, "classes", ())) for source in sources})


def fingerprint_of(sources: Sequence[IndexedSource], reader: RetryingReader) -> str | None:
    """Returns the text by which a run recognises its data; None, with a log line, if a source has no fingerprint."""
    if len(sources) > 1 and all(type(source) is Source for source in sources):
        return hash_of_sample(sources)  # checkpoints of mixtures hold this hash
    fingerprints = [reader.learn(source, lambda source: source.fingerprint()) for source in sources]
    for source, fingerprint in zip(sources, fingerprints, strict=True):
        if fingerprint is None:
            logging.info(
                "'%s' has no fingerprint(): a resumed run does not check that its examples are those of before",
                source.origin,
            )
        elif not isinstance(fingerprint, str) or not fingerprint:
            raise UserError(f"fingerprint() of '{source.origin}' returned {fingerprint!r}. Return a text, or None.")
    if None in fingerprints:
        return None
    return fingerprints[0] if len(sources) == 1 else hashlib.sha256(repr(fingerprints).encode()).hexdigest()
