"""Retrieval: the best of all items for each user, exactly, in blocks.

`top_k` and `ranks` are operations of a graph; `top_k_of_all`, `ranks_of_all` and `ranked_of_all`, which does both, take
any number of users as arrays. `padded` fills up lists of rows, and `Seen` prepares them for several searches. `Index`
is inside an export that takes features and returns ids and titles.
`Approximate` is an index for more items, `overlap` says how much of the exact lists it finds, and `compared` also how
long both take. The metrics of what they return are those of `framework/metrics/ranking.py`.
"""

from framework.retrieval.approximate import Approximate, overlap
from framework.retrieval.compared import compared
from framework.retrieval.index import Index
from framework.retrieval.of_all import Seen, padded, ranked_of_all, ranks_of_all, top_k_of_all
from framework.retrieval.top_k import ranks, top_k

__all__ = [
    "Approximate",
    "Index",
    "Seen",
    "compared",
    "overlap",
    "padded",
    "ranked_of_all",
    "ranks",
    "ranks_of_all",
    "top_k",
    "top_k_of_all",
]
