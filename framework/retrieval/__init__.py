"""Retrieval: the best of all items for each user, exactly, in blocks.

`top_k` and `ranks` are operations of a graph, `top_k_of_all` and `ranks_of_all` take any number of users as arrays, and
`padded` fills up lists of rows. `Index` is inside an export that takes features and returns ids and titles.
`Approximate` is an index for more items, `overlap` says how much of the exact lists it finds, and `compared` also how
long both take. The metrics of what they return are those of `framework/metrics/ranking.py`.
"""

from framework.retrieval.approximate import Approximate, overlap
from framework.retrieval.compared import compared
from framework.retrieval.index import Index
from framework.retrieval.top_k import padded, ranks, ranks_of_all, top_k, top_k_of_all

__all__ = ["Approximate", "Index", "compared", "overlap", "padded", "ranks", "ranks_of_all", "top_k", "top_k_of_all"]
