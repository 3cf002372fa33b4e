"""A stored trajectory on its way out: its 15 Hz rows under DROID's names, and who made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32

from contracts.constants import NO_VERSION, NUM_JOINTS, RAD_PER_TICK
from contracts.droid_features import (
    GRIPPER,
    GRIPPER_TARGET,
    INSTRUCTIONS,
    JOINT_TARGET,
    JOINTS,
    LABELLED,
    POSE,
    POSE_TARGET,
    SUCCESS,
    VELOCITY,
)
from contracts.types import Trajectory, Verdict

NO_VERDICT = -1.0  # vlaw.p_yes where no reward model has judged


@dataclass(frozen=True, slots=True)
class Exported:
    """``success`` is the label where ``labelled``, else what the reward model's verdict comes to.

    ``pose_target`` is the flange pose of each row's joint target.
    """

    trajectory: Trajectory
    success: bool
    labelled: bool
    verdict: Verdict | None
    pose_target: Float32[np.ndarray, "rows 6"]

    @property
    def num_rows(self) -> int:
        """Rows at 15 Hz: one more than there are actions, as a recording has it."""
        return self.trajectory.num_ticks + 1

    def provenance(self) -> dict[str, Any]:
        """Who made it, one value each; kept as features of a LeRobot dataset."""
        source, verdict = self.trajectory.provenance, self.verdict
        judged = verdict is not None and not verdict.error
        return {
            "vlaw.trajectory_id": source.trajectory_id,
            "vlaw.origin": source.origin,
            "vlaw.iteration": source.iteration,
            "vlaw.seed": source.seed,
            "vlaw.policy_version": source.policy_version,
            "vlaw.world_model_version": source.world_model_version,
            "vlaw.parent": source.parent,
            "vlaw.parent_frame": source.parent_frame,
            "vlaw.ending": self.trajectory.ending,
            LABELLED: self.labelled,
            "vlaw.p_yes": verdict.p_yes if verdict is not None and judged else NO_VERDICT,
            "vlaw.reward_version": verdict.reward_version if verdict and judged else NO_VERSION,
        }


def padded_actions(trajectory: Trajectory) -> Float32[np.ndarray, "rows 8"]:
    """One action per row of the states. The last row, from which nothing was done, holds still."""
    last = np.zeros((1, trajectory.actions.shape[1]), np.float32)
    grip = trajectory.actions[-1:, NUM_JOINTS] if trajectory.num_ticks else np.zeros(1)
    last[:, NUM_JOINTS] = grip if trajectory.num_ticks else trajectory.gripper_position[-1:]
    return np.concatenate([trajectory.actions, last])


def joint_target(trajectory: Trajectory) -> Float32[np.ndarray, "rows 7"]:
    """The joint angles [rad] that each row asks for.

    DROID's law (``robot_ik_solver``): measured joints + 0.2 rad * velocity; a velocity vector with
    an entry beyond 1 is scaled down as a whole.
    """
    velocity = padded_actions(trajectory)[:, :NUM_JOINTS]
    largest = np.maximum(np.abs(velocity).max(axis=1, keepdims=True), 1)
    target = trajectory.joint_position + np.float32(RAD_PER_TICK) * velocity / largest
    return target.astype(np.float32)


def droid_rows(episode: Exported) -> dict[str, np.ndarray]:
    """The 15 Hz number columns that every layout shares, by DROID's names."""
    trajectory = episode.trajectory
    actions = padded_actions(trajectory)
    return {
        GRIPPER: trajectory.gripper_position[:, None],
        POSE: trajectory.cartesian_position,
        JOINTS: trajectory.joint_position,
        GRIPPER_TARGET: actions[:, NUM_JOINTS:],
        POSE_TARGET: episode.pose_target,
        JOINT_TARGET: joint_target(trajectory),
        VELOCITY: actions[:, :NUM_JOINTS],
    }


def droid_flags(episode: Exported) -> dict[str, np.ndarray]:
    """The other columns of ``droid_1.0.1`` that a trajectory can fill."""
    rows, trajectory = episode.num_rows, episode.trajectory
    last = np.arange(rows) == rows - 1
    return {
        "is_first": np.arange(rows) == 0,
        "is_last": last,
        "is_terminal": last & (trajectory.ending == "done"),
        "discount": np.ones(rows, np.float32),
        "reward": (last & episode.success).astype(np.float32),
        SUCCESS: np.full(rows, episode.success),
    }


def droid_texts(episode: Exported) -> Mapping[str, str]:
    """Texts, equal in all rows. A trajectory has one instruction, so the other two are empty."""
    texts = dict.fromkeys(INSTRUCTIONS, "")
    texts[INSTRUCTIONS[0]] = episode.trajectory.instruction
    return texts | {"task_category": episode.trajectory.provenance.task}
