"""Fits the pose adapter to the motion of stored trajectories."""

from collections.abc import Sequence
from pathlib import Path

from learners.selection import Episodes, Selection
from models.adapter import LEAST_WINDOWS, FittedAdapter
from models.motion import TICKS, AdapterErrors, MotionWindows
from models.shipped_adapter import ShippedAdapter
from replay.codec import EpisodeRow


def fit_adapter(
    selections: Sequence[Selection], shipped: str = ""
) -> tuple[FittedAdapter, AdapterErrors]:
    """An adapter fitted to as many of the selections, in their order, as give enough motion.

    Give D_real first: its motion is what the policy makes. Demonstrations help out before the
    first rollouts. ``shipped`` names Ctrl-World's adapter (safetensors) to build on, if there is
    one. Also returns how far off the flange is on held-out windows.

    Raises:
        ValueError: no trajectory has 15 ticks, or ``shipped`` is not what it should be.
    """
    rows: list[EpisodeRow] = []
    for selection in selections:
        rows += Episodes(selection).rows
        if len(MotionWindows.of(rows)) >= LEAST_WINDOWS:
            break
    windows = MotionWindows.of(rows)
    if not len(windows):
        raise ValueError(
            f"none of {len(rows)} trajectories has {TICKS} ticks: the pose adapter has no motion "
            "to go by. Collect rollouts or demonstrations, or set world_model.adapter=shipped"
        )
    adapter = FittedAdapter(ShippedAdapter(Path(shipped)) if shipped else None)
    return adapter, adapter.fit(windows)
