"""Recorded arm motion, cut into windows that an adapter is fitted and measured on."""

from collections.abc import Iterable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float32

from contracts.types import Trajectory

TICKS = 15  # a policy's horizon; the longest chunk that can be predicted


@dataclass(frozen=True, slots=True)
class MotionWindows:
    """What the arm did after ``actions``, in the order of trajectories and time.

    Row k of ``future_*`` is the state after action k; ``joint_position`` and ``gripper_position``
    are the state before action 0. Units of ``ActionChunk``.
    """

    joint_position: Float32[np.ndarray, "window 7"]
    gripper_position: Float32[np.ndarray, " window"]
    actions: Float32[np.ndarray, "window ticks 8"]
    future_joints: Float32[np.ndarray, "window ticks 7"]
    future_gripper: Float32[np.ndarray, "window ticks"]

    @classmethod
    def of(
        cls, trajectories: Iterable[Trajectory], ticks: int = TICKS, stride: int = 3
    ) -> "MotionWindows":
        """Windows of ``ticks`` actions that start every ``stride`` ticks.

        Raises:
            ValueError: no trajectory is long enough for one window.
        """
        parts = [
            (item, start)
            for item in trajectories
            for start in range(0, item.num_ticks - ticks + 1, stride)
        ]
        if not parts:
            raise ValueError(f"no trajectory has {ticks} ticks: nothing to fit an adapter on")
        return cls(
            np.stack([item.joint_position[start] for item, start in parts]),
            np.array([item.gripper_position[start] for item, start in parts], np.float32),
            np.stack([item.actions[start : start + ticks] for item, start in parts]),
            np.stack([item.joint_position[start + 1 : start + ticks + 1] for item, start in parts]),
            np.stack(
                [item.gripper_position[start + 1 : start + ticks + 1] for item, start in parts]
            ),
        )

    def __len__(self) -> int:
        return len(self.joint_position)

    def take(self, rows: np.ndarray) -> "MotionWindows":
        """The windows at ``rows`` (indices or a mask)."""
        return type(self)(*(getattr(self, item.name)[rows] for item in fields(self)))


@dataclass(frozen=True, slots=True)
class AdapterErrors:
    """Mean distance [mm] of the predicted flange from the real one on windows held out of the fit,
    after each of ``ticks``; ``no_motion`` is the distance if the arm stood still."""

    ticks: tuple[int, ...]
    adapter: tuple[float, ...]
    no_motion: tuple[float, ...]
    windows: int
