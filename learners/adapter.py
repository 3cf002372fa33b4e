"""Fits the pose adapter to the motion of stored trajectories."""

from collections.abc import Sequence

import numpy as np

from contracts.constants import TICKS_PER_FRAME
from learners.selection import Episodes, Selection
from models.adapter import FittedAdapter
from models.motion import TICKS, AdapterErrors, MotionWindows
from replay.codec import EpisodeRow

LEAST_WINDOWS = 50


def fit_adapter(selections: Sequence[Selection]) -> tuple[FittedAdapter, AdapterErrors]:
    """An adapter fitted to as many of the selections, in their order, as give enough motion.

    Give D_real first: its motion is what the policy makes. Demonstrations help out before the
    first rollouts. Also returns how far off the flange is on held-out windows.

    Raises:
        ValueError: not even all selections together hold 50 windows of 15 ticks.
    """
    rows: list[EpisodeRow] = []
    for selection in selections:
        rows += Episodes(selection).rows
        if not rows:
            continue
        windows = motion_windows(rows)
        if len(windows) >= LEAST_WINDOWS:
            adapter = FittedAdapter()
            return adapter, adapter.fit(windows)
    raise ValueError(
        f"{len(rows)} trajectories hold fewer than {LEAST_WINDOWS} windows of {TICKS} ticks to fit "
        "the pose adapter on; collect more rollouts or demonstrations"
    )


def motion_windows(rows: Sequence[EpisodeRow]) -> MotionWindows:
    """Windows of 15 ticks that begin at the frames of each episode; shorter episodes have none."""
    columns = [_columns(row) for row in rows]
    return MotionWindows(*(np.concatenate(column) for column in zip(*columns, strict=True)))


def _columns(row: EpisodeRow) -> tuple[np.ndarray, ...]:
    """One episode's fields of ``MotionWindows``, in their order."""
    starts = np.arange(0, max(0, row.num_ticks - TICKS + 1), TICKS_PER_FRAME)
    ticks = starts[:, None] + np.arange(TICKS)
    return (
        row.joint_position[starts],
        row.gripper_position[starts],
        row.actions[ticks],
        row.joint_position[ticks + 1],
        row.gripper_position[ticks + 1],
    )
