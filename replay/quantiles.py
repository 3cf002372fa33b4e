"""Exact moments and percentiles of data that does not fit into memory, column by column.

float32 numbers, read as integers, can be made to sort like the numbers. So a first pass counts
the upper 16 bits of each number, and a second one the lower 16 bits of those that share their
upper bits with a percentile: its order statistics are then known to the last bit. Memory is the
same for any number of rows, and the result depends neither on their order nor on their portions.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, UInt32

_HALF = 2**16
Portions = Callable[[], Iterable[Float32[np.ndarray, "rows columns"]]]


@dataclass(frozen=True, slots=True)
class Moments:
    """Of each column; ``std`` divides by n, as numpy's does."""

    count: int
    low: Float64[np.ndarray, " columns"]
    high: Float64[np.ndarray, " columns"]
    mean: Float64[np.ndarray, " columns"]
    std: Float64[np.ndarray, " columns"]


def moments(portions: Portions) -> Moments:
    """Moments over all portions (Chan et al. 1983: stable when portions are merged).

    Raises:
        ValueError: there is not one row.
    """
    count, mean, squares, low, high = 0, np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0)
    for portion in portions():
        rows = np.asarray(portion, np.float64)
        if not len(rows):
            continue
        if not count:
            mean, squares = np.zeros(rows.shape[1]), np.zeros(rows.shape[1])
            low, high = rows.min(axis=0), rows.max(axis=0)
        total, own = count + len(rows), rows.mean(axis=0)
        squares += ((rows - own) ** 2).sum(axis=0) + (own - mean) ** 2 * count * len(rows) / total
        mean, count = mean + (own - mean) * len(rows) / total, total
        low, high = np.minimum(low, rows.min(axis=0)), np.maximum(high, rows.max(axis=0))
    if not count:
        raise ValueError("statistics of zero rows: the chosen episodes hold none")
    return Moments(count, low, high, mean, np.sqrt(squares / count))


def quantiles(portions: Portions, at: Iterable[float]) -> Float64[np.ndarray, "quantile columns"]:
    """Percentiles ``at`` (0 to 1) of every column, linear between order statistics as numpy's.

    ``portions`` is called twice and must give the same rows both times.

    Raises:
        ValueError: there is not one row; a number is NaN.
    """
    upper = _count_upper(portions)
    count = int(upper[0].sum())
    places = np.array([q * (count - 1) for q in at])
    ranks = np.unique([np.floor(places), np.ceil(places)]).astype(np.int64)
    ordered = _order_statistics(portions, upper, ranks)
    below = ordered[np.searchsorted(ranks, np.floor(places).astype(np.int64))]
    above = ordered[np.searchsorted(ranks, np.ceil(places).astype(np.int64))]
    return below + (above - below) * (places - np.floor(places))[:, None]


def _count_upper(portions: Portions) -> Int64[np.ndarray, "columns 65536"]:
    counts: np.ndarray | None = None
    for portion in portions():
        keys = _sortable(portion) >> 16
        if counts is None:
            counts = np.zeros((keys.shape[1], _HALF), np.int64)
        for column, own in enumerate(keys.T):
            np.add.at(counts[column], own, 1)
    if counts is None or not counts.sum():
        raise ValueError("percentiles of zero rows: the chosen episodes hold none")
    return counts


def _order_statistics(
    portions: Portions, upper: Int64[np.ndarray, "columns 65536"], ranks: Int64[np.ndarray, " rank"]
) -> Float64[np.ndarray, "rank columns"]:
    """The numbers of these ranks (0 is the smallest) in every column."""
    ends = upper.cumsum(axis=1)
    heads = np.stack([np.searchsorted(end, ranks, side="right") for end in ends])
    lower = {
        (column, int(head)): np.zeros(_HALF, np.int64)
        for column, found in enumerate(heads)
        for head in found
    }
    for portion in portions():
        keys = _sortable(portion)
        for (column, head), counts in lower.items():
            own = keys[:, column]
            np.add.at(counts, own[own >> 16 == head] & (_HALF - 1), 1)
    found = np.empty((len(ranks), len(upper)), np.uint32)
    for column, end in enumerate(ends):
        for row, (rank, head) in enumerate(zip(ranks, heads[column], strict=True)):
            inside = rank - (end[head] - upper[column, head])
            tail = np.searchsorted(lower[column, int(head)].cumsum(), inside, side="right")
            found[row, column] = int(head) << 16 | int(tail)
    return _number(found).astype(np.float64)


def _sortable(rows: Float32[np.ndarray, "rows columns"]) -> UInt32[np.ndarray, "rows columns"]:
    """Integers in the order of the numbers: negative ones flipped, the others above them."""
    if np.isnan(rows).any():
        raise ValueError("percentiles of NaN: an episode holds numbers that are not finite")
    bits = np.ascontiguousarray(rows + np.float32(0), np.float32).view(np.uint32)  # -0 becomes 0
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31))


def _number(keys: UInt32[np.ndarray, "*shape"]) -> Float32[np.ndarray, "*shape"]:
    bits = np.where(keys >> 31, keys & np.uint32(2**31 - 1), ~keys)
    return bits.astype(np.uint32).view(np.float32)
