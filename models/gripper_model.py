"""How fast the recorded gripper really closed and opened, by its position."""

import numpy as np
from jaxtyping import Float32, Float64

from models.motion import MotionWindows

_MOVES = 0.005  # way of a tick; less is standing still
_BINS = 20  # of the gripper's range, each with its own closing and opening rate


def gripper_rates(windows: MotionWindows, moving: bool = False) -> Float64[np.ndarray, "2 bins"]:
    """Median way per tick while closing (row 0) and opening (row 1), by position.

    Positions never seen in motion get the median over all positions. ``moving``: of the ticks alone
    in which it moved, so that where it often waits or is held up it is not slow.
    """
    before = np.concatenate(
        [windows.gripper_position[:, None], windows.future_gripper[:, :-1]], axis=1
    ).ravel()
    way = windows.future_gripper.ravel() - before
    wanted = windows.actions[..., 7].ravel() - before
    rates = np.zeros((2, _BINS))
    for row, sign in enumerate((1.0, -1.0)):
        asked = (sign * wanted > 0.1) & (sign * way > (_MOVES if moving else -np.inf))
        steps = np.maximum(sign * way[asked], 0.0)
        bins = _bin(before[asked])
        rates[row] = np.median(steps) if steps.size else 0.0
        for index in np.unique(bins):
            rates[row, index] = np.median(steps[bins == index])
    return rates


def follow(
    start: Float32[np.ndarray, " slot"],
    command: Float32[np.ndarray, "slot ticks"],
    rates: Float64[np.ndarray, "2 bins"],
) -> Float64[np.ndarray, "slot ticks"]:
    """Gripper after each tick, moving towards the command no faster than the table allows."""
    position = start.astype(np.float64)
    out = np.empty(command.shape)
    for tick in range(command.shape[1]):
        closing, opening = rates[:, _bin(position)]
        position = position + np.clip(command[:, tick] - position, -opening, closing)
        out[:, tick] = position
    return out


def _bin(position: np.ndarray) -> np.ndarray:
    return np.clip((position * _BINS).astype(int), 0, _BINS - 1)
