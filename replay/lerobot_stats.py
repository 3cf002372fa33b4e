"""The statistics that a LeRobot dataset carries: per episode, and of the whole."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from replay.quantiles import moments, quantiles

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
_BINS = 256  # values of a colour channel
Stats = dict[str, np.ndarray]


def feature_stats(rows: Float32[np.ndarray, "rows columns"]) -> Stats:
    """Minimum, maximum, mean, standard deviation, count and percentiles of every column."""
    at = np.quantile(rows.astype(np.float64), list(QUANTILES.values()), axis=0)
    return _named(moments(lambda: [rows]), at)


def image_stats(frames: UInt8[np.ndarray, "frame height width 3"]) -> Stats:
    """The same of every colour channel, scaled to 0..1, in LeRobot's shape (3, 1, 1)."""
    counts = [np.bincount(frames[..., c].reshape(-1), minlength=_BINS) for c in range(3)]
    return _of_histogram(np.stack(counts), len(frames))


def whole_stats(
    names: Sequence[str],
    portions: Callable[[str], Iterable[np.ndarray]],
    images: Mapping[str, Stats],
) -> dict[str, Any]:
    """Statistics of a dataset as JSON: exact ones of the features ``names``, whose numbers
    ``portions`` reads again, and those of the pictures as they were merged."""
    stats: dict[str, Stats] = dict(images)
    for name in names:
        rows = partial(portions, name)
        stats[name] = _named(moments(rows), quantiles(rows, QUANTILES.values()))
    return {
        name: {key: value.tolist() for key, value in found.items()} for name, found in stats.items()
    }


def flat(stats: Mapping[str, Stats]) -> dict[str, Any]:
    """``stats/<feature>/<name>`` as columns of the index of episodes."""
    return {
        f"stats/{feature}/{name}": value.tolist()
        for feature, found in stats.items()
        for name, value in found.items()
    }


def _named(found: Any, at: np.ndarray) -> Stats:
    named = {"min": found.low, "max": found.high, "mean": found.mean, "std": found.std}
    named["count"] = np.array([found.count])
    return named | dict(zip(QUANTILES, at, strict=True))


def _of_histogram(counts: np.ndarray, num_frames: int) -> Stats:
    levels = np.arange(_BINS) / (_BINS - 1)
    total = counts.sum(axis=1)
    mean = counts @ levels / total
    std = np.sqrt(np.maximum(counts @ levels**2 / total - mean**2, 0))
    ends = counts.cumsum(axis=1)
    stats = {
        "min": np.array([levels[np.flatnonzero(row)[0]] for row in counts]),
        "max": np.array([levels[np.flatnonzero(row)[-1]] for row in counts]),
        "mean": mean,
        "std": std,
    }
    for name, q in QUANTILES.items():
        ranks = np.floor(q * (total - 1))
        places = [
            np.searchsorted(end, rank, "right") for end, rank in zip(ends, ranks, strict=True)
        ]
        stats[name] = levels[np.array(places)]
    shaped = {name: value.reshape(3, 1, 1) for name, value in stats.items()}
    return shaped | {"count": np.array([num_frames])}


def merged(*parts: Stats) -> Stats:
    """Statistics of pictures together. Percentiles are means weighted by frames, as LeRobot's."""
    weight = np.array([part["count"][0] for part in parts], float)
    share = (weight / weight.sum())[:, None, None, None]
    mean = (share * np.stack([part["mean"] for part in parts])).sum(axis=0)
    spread = np.stack([part["std"] ** 2 + (part["mean"] - mean) ** 2 for part in parts])
    whole = {
        "min": np.min([part["min"] for part in parts], axis=0),
        "max": np.max([part["max"] for part in parts], axis=0),
        "mean": mean,
        "std": np.sqrt((share * spread).sum(axis=0)),
        "count": np.array([int(weight.sum())]),
    }
    for name in QUANTILES:
        whole[name] = (share * np.stack([part[name] for part in parts])).sum(axis=0)
    return whole
