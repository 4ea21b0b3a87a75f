"""What a run was trained and evaluated on: tables of its splits and, of batches of several shapes, of their buckets.

section(run.result["data"])
"""

from collections.abc import Mapping
from typing import Any

from framework.pages import html

_COUNTS = ("size", "examples", "batches")  # of a bucket, beside its lengths


def section(data: Mapping[str, Any]) -> str:
    """Returns the tables as HTML, '' without data.

    Args:
      data: `data` of result.json, {split: what is said of it}.

    Raises:
      AttributeError, LookupError, TypeError, ValueError: it is something else.
    """
    splits, buckets = [], []
    for split, said in data.items():
        left_out = f"{said['left_out']:,}" if said.get("left_out") else ""
        splits.append(html.row((split, said["source"], f"{said['examples']:,}", left_out, said["placement"])))
        for bucket in said.get("buckets", ()):
            lengths = ", ".join(f"{field} {length}" for field, length in bucket.items() if field not in _COUNTS)
            buckets.append(html.row((split, lengths, *(f"{bucket[name]:,}" for name in _COUNTS))))
    if not splits:
        return ""
    tables = [html.table(("split", "source", "examples", "left out", "placement"), splits)]
    if buckets:
        tables.append(html.table(("split", "lengths of a bucket", "batch size", "examples", "batches"), buckets))
    return "".join(f'<div class="wide">{table}</div>\n' for table in tables)
