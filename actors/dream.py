"""One imagined trajectory under way, and what is stored of it when it ends."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from contracts.constants import CONTROL_HZ, TICKS_PER_CHUNK, TICKS_PER_FRAME
from contracts.types import (
    Clip,
    Observation,
    Provenance,
    RobotState,
    Score,
    Trajectory,
    WorkItem,
)
from replay.store import clip_indices

ANSWER_S = 120.0  # that the judge's last answers about a trajectory are waited for


@dataclass(frozen=True, slots=True)
class Ending:
    """Ends a trajectory after the second chunk in a row that the judge calls a success, as whoever
    labels a real episode ends it there. The first yes often comes a chunk too early: what is cut
    there would teach the policy to stop before the goal.

    ``ask`` answers later and may be asked by several threads; a clip has ``num_frames``. What the
    judge cannot score ends nothing.
    """

    ask: Callable[[Clip], Future[Score]]
    alpha: float
    num_frames: int

    def reached(self, answer: Future[Score]) -> bool:
        return answer.exception() is None and answer.result().p_yes > self.alpha


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
    answers: list[Future[Score]] = field(default_factory=list)  # of the judge, after each chunk
    ending: str = "timeout"

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

    def ask(self, ending: Ending) -> None:
        """Whether what was imagined so far reaches the goal."""
        frames = np.concatenate(self.frames)
        picks = clip_indices(len(frames), ending.num_frames)
        clip = Clip(frames[list(picks)], picks, self.item.start.instruction)
        self.answers.append(ending.ask(clip))

    def done(self, ending: Ending) -> int | None:
        """Chunks after which the goal stays reached; None as long as that is not known. An answer
        counts only when all earlier ones are there, so it does not matter how fast they come."""
        before = False
        for chunks, answer in enumerate(self.answers, start=1):
            if not answer.done():
                return None
            reached = ending.reached(answer)
            if reached and before:
                return chunks
            before = reached
        return None

    def cut(self, ending: Ending) -> None:
        """Forget what was imagined after that, when the last answer is there."""
        wait(self.answers, ANSWER_S)
        chunks = self.done(ending)
        if chunks is None:
            return
        for rows in (self.frames, self.joints, self.gripper, self.cartesian):
            del rows[chunks + 1 :]  # the start is their first
        del self.actions[chunks:]
        self.ending = "done"

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
            ending=self.ending,
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
