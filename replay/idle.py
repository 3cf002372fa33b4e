"""Which ticks of a recording a policy should learn from: openpi's idle filter for DROID.

People who drive a robot pause. A policy that learns the pauses stops and never starts again.
Source: openpi 15a9616, ``examples/droid/compute_droid_nonidle_ranges.py`` and the cut of the last
ticks in ``src/openpi/training/droid_rlds_dataset.py``.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32


@dataclass(frozen=True, slots=True)
class IdleRule:
    """openpi's numbers, in ticks, but ``still``, in joint-velocity units.

    A tick is idle if no joint's commanded velocity moved by ``still`` or more since the last one.
    Runs of at least ``idle`` idle ticks go, then what remains in runs shorter than ``moving``, then
    the last ``tail`` ticks of each run: chunks that begin there would be mostly idle.
    """

    still: float = 1e-3
    idle: int = 7
    moving: int = 16
    tail: int = 10


def kept_ranges(
    joint_velocity: Float32[np.ndarray, "ticks 7"], rule: IdleRule
) -> list[tuple[int, int]]:
    """Ranges [first, end) of ticks at which a training chunk may begin, in order."""
    change = np.abs(np.diff(joint_velocity, axis=0))
    idle = np.concatenate([[False], (change < rule.still).all(axis=1)])[: len(joint_velocity)]
    keep = np.ones(len(joint_velocity), bool)
    for first, end in _runs(idle):
        if end - first >= rule.idle:
            keep[first:end] = False
    long = [(first, end) for first, end in _runs(keep) if end - first >= rule.moving]
    return [(first, end - rule.tail) for first, end in long if end - rule.tail > first]


def kept_ticks(
    joint_velocity: Float32[np.ndarray, "ticks 7"], rule: IdleRule
) -> Bool[np.ndarray, " ticks"]:
    """True at every tick inside one of ``kept_ranges``."""
    kept = np.zeros(len(joint_velocity), bool)
    for first, end in kept_ranges(joint_velocity, rule):
        kept[first:end] = True
    return kept


def _runs(flags: Bool[np.ndarray, " ticks"]) -> list[tuple[int, int]]:
    """[first, end) of every run of True."""
    edges = np.diff(np.concatenate([[0], flags.astype(np.int8), [0]]))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    return list(zip(starts.tolist(), ends.tolist(), strict=True))
