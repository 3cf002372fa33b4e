"""What a chunk is conditioned on: pose normalisation and the choice of history frames."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64

from contracts.constants import NEW_FRAMES

# 1st and 99th percentile of DROID's poses (Ctrl-World dataset_meta_info/droid/stat.json)
DROID_LOW = (
    *(0.2676655471324921, -0.441715806722641, -0.042784303426742554),
    *(-3.1373724937438965, -1.214390754699707, -2.11581574678421, 0.0),
)
DROID_HIGH = (
    *(0.781050771474838, 0.4366717040538788, 0.7843997478485107),
    *(3.137465238571167, 0.9039141565561147, 1.9915846586227417, 0.9911894202232361),
)
NARROWEST = 0.01  # of a fitted range, m or rad: a still coordinate must not become noise
FIRST_FRAME = -1_000_000  # offset that every sampler clips to an episode's first frame


@dataclass(frozen=True, slots=True)
class PoseRange:
    """Linear map of each pose coordinate from [low, high] to [-1, 1], clipped."""

    low: tuple[float, ...] = DROID_LOW
    high: tuple[float, ...] = DROID_HIGH

    def normalise(self, poses: Float[np.ndarray, "*batch 7"]) -> Float32[np.ndarray, "*batch 7"]:
        """Computed in float64, as upstream (dataset_droid_exp33.py normalize_bound)."""
        low, high = np.array(self.low), np.array(self.high)
        share = (poses.astype(np.float64) - low) / (high - low + 1e-8)
        return np.clip(2 * share - 1, -1, 1).astype(np.float32)

    @classmethod
    def fit(cls, poses: Float[np.ndarray, "*batch 7"]) -> "PoseRange":
        """1st to 99th percentile of each coordinate, at least ``NARROWEST`` wide."""
        rows = poses.reshape(-1, poses.shape[-1]).astype(np.float64)
        low, high = np.percentile(rows, [1, 99], axis=0)
        missing = np.maximum(NARROWEST - (high - low), 0) / 2
        return cls(tuple((low - missing).tolist()), tuple((high + missing).tolist()))


def history_positions(count: int, ids: Sequence[int]) -> list[int]:
    """Which of a slot's ``count`` frames, one per chunk, fill the history slots.

    ``ids`` are upstream's python indices into a list that starts with 24 copies of the first
    frame; here the list holds it once, so what lies before it is clipped to it.
    """
    return [0 if index >= 0 else max(count + index, 0) for index in ids]


def history_offsets(ids: Sequence[int]) -> tuple[int, ...]:
    """The same choice as 5 Hz frame offsets from the current frame, for training windows.

    Index -1 is the current frame and each step back is one chunk of four frames. Index 0 is the
    episode's first frame: an offset below any start, which the sampler clips.
    """
    return tuple(FIRST_FRAME if index >= 0 else NEW_FRAMES * (index + 1) for index in ids)


def upstream_offsets() -> tuple[tuple[int, ...], ...]:
    """Forty equally likely training windows, as frame offsets from the current one, clipped by the
    sampler at both ends of an episode.

    Frames to predict lie 1 or 2 apart, history frames 4 times as far; with probability 0.15 = 3/20
    the history is the current frame. Source: dataset_droid_exp33.py ``__getitem__``.
    """
    windows = []
    for skip in (1, 2):
        ahead = [skip * k for k in range(NEW_FRAMES + 1)]
        back = [-4 * skip * k for k in range(6, 0, -1)]
        windows += [(*back, *ahead)] * 17 + [(0,) * 6 + tuple(ahead)] * 3
    return tuple(windows)


def pose_table(
    past: Sequence[Float[np.ndarray, " 7"]],
    ids: Sequence[int],
    chunk: Float[np.ndarray, "future 7"],
) -> Float64[np.ndarray, "frames 7"]:
    """Poses of all frames of a chunk; ``past`` ends with the current frame's."""
    history = [past[position] for position in history_positions(len(past), ids)]
    return np.concatenate([np.stack(history), chunk]).astype(np.float64)
