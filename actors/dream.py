"""One imagined trajectory under way, and what is stored of it when it ends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from contracts.constants import CONTROL_HZ, TICKS_PER_CHUNK, TICKS_PER_FRAME
from contracts.types import Observation, Provenance, RobotState, Trajectory, WorkItem


@dataclass
class Dream:
    """Row k of ``actions`` was taken from row k of the states."""

    item: WorkItem
    memory: Any  # the world model's slot
    frames: list[UInt8[np.ndarray, "frames 3 height width 3"]]
    joints: list[Float32[np.ndarray, "rows 7"]]
    gripper: list[Float32[np.ndarray, " rows"]]
    cartesian: list[Float32[np.ndarray, "rows 6"]]
    actions: list[Float32[np.ndarray, "ticks 8"]] = field(default_factory=list)
    policy_version: int = 0

    @property
    def id(self) -> str:
        return self.item.trajectory_id

    @property
    def chunks(self) -> int:
        return len(self.actions)

    def joint_motion(self) -> Float32[np.ndarray, " 7"]:
        """Way [rad] of the last tick."""
        rows = self.joints[-1]
        return rows[-1] - rows[-2] if self.chunks else self.item.start.joint_motion

    def observation(self) -> Observation:
        """The last imagined moment, as the policy would see it on the robot."""
        state = RobotState(
            joint_position=self.joints[-1][-1],
            joint_velocity=np.zeros(7, np.float32),
            cartesian_position=self.cartesian[-1][-1],
            gripper_position=float(self.gripper[-1][-1]),
            time_s=self.chunks * TICKS_PER_CHUNK / CONTROL_HZ,
        )
        return Observation(self.frames[-1][-1], state, self.item.start.instruction)

    def trajectory(self, world_model_version: int) -> Trajectory:
        item, start = self.item, self.item.start
        provenance = Provenance(
            trajectory_id=item.trajectory_id,
            origin="imagined",
            task=start.task,
            iteration=item.iteration,
            seed=item.seed,
            policy_version=self.policy_version,
            world_model_version=world_model_version,
            parent=start.parent,
            parent_frame=start.parent_frame,
        )
        return Trajectory(
            provenance=provenance,
            instruction=start.instruction,
            actions=np.concatenate(self.actions),
            joint_position=np.concatenate(self.joints),
            gripper_position=np.concatenate(self.gripper),
            cartesian_position=np.concatenate(self.cartesian),
            frames=np.concatenate(self.frames),
            ending="timeout",
        )


def frame_poses(
    dreams: Sequence[Dream],
    cartesian: Float32[np.ndarray, "slot ticks 6"],
    gripper: Float32[np.ndarray, "slot ticks"],
) -> Float32[np.ndarray, "slot 5 7"]:
    """Pose and gripper now and after ticks 3, 6, 9 and 12 of the chunk."""
    now = np.stack([np.append(d.cartesian[-1][-1], d.gripper[-1][-1]) for d in dreams])
    ticks = slice(TICKS_PER_FRAME - 1, TICKS_PER_CHUNK, TICKS_PER_FRAME)
    after = np.concatenate([cartesian[:, ticks], gripper[:, ticks, None]], axis=2)
    return np.concatenate([now[:, None], after], axis=1).astype(np.float32)
