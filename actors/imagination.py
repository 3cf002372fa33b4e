"""The policy acts inside the world model: a batch of slots, refilled from a work queue."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from contracts.constants import CONTROL_HZ, NEW_FRAMES, TICKS_PER_CHUNK, TICKS_PER_FRAME
from contracts.protocols import Policy, PoseAdapter, TrajectoryWriter, WorkQueue, WorldModel
from contracts.seeds import fold
from contracts.types import ActionChunk, Observation, Provenance, RobotState, Trajectory, WorkItem

ADAPTER_TICKS = (
    15  # Ctrl-World's adapter is an MLP over 15 velocities; later ones are never executed
)

Kinematics = Callable[[Float[np.ndarray, "*batch 7"]], Float[np.ndarray, "*batch 6"]]
Clock = Callable[[], float]


def never() -> bool:
    """The stop signal of a worker that ends with its queue."""
    return False


@dataclass(frozen=True, slots=True)
class ImaginationSettings:
    """``slots`` trajectories advance together, each for ``max_chunks`` decisions (paper: 20)."""

    slots: int = 16
    max_chunks: int = 20

    def __post_init__(self) -> None:
        for name, value in (("slots", self.slots), ("max_chunks", self.max_chunks)):
            if value < 1:
                raise ValueError(f"imagination.{name}={value} must be at least 1")


@dataclass(frozen=True, slots=True)
class Models:
    """What one worker imagines with; ``kinematics`` maps joint angles to flange poses."""

    policy: Policy
    world_model: WorldModel
    adapter: PoseAdapter
    kinematics: Kinematics


@dataclass
class ImaginationStats:
    """Work done so far. ``frames`` are net: the current frame of each chunk is not counted."""

    trajectories: int = 0
    chunks: int = 0
    frames: int = 0
    policy_s: float = 0.0
    world_model_s: float = 0.0
    host_s: float = 0.0  # everything else: adapter, kinematics, queue and store

    @property
    def seconds(self) -> float:
        return self.policy_s + self.world_model_s + self.host_s


@dataclass
class _Dream:
    """One trajectory under way; row k of ``actions`` was taken from row k of the states."""

    item: WorkItem
    memory: Any  # the world model's slot
    frames: list[UInt8[np.ndarray, "frames 3 height width 3"]]
    joints: list[Float32[np.ndarray, "rows 7"]]
    gripper: list[Float32[np.ndarray, " rows"]]
    cartesian: list[Float32[np.ndarray, "rows 6"]]
    actions: list[Float32[np.ndarray, "ticks 8"]] = field(default_factory=list)
    policy_version: int = 0

    @property
    def chunks(self) -> int:
        return len(self.actions)

    def joint_motion(self) -> Float32[np.ndarray, " 7"]:
        """Way [rad] of the last tick. A start state is an arm at rest: an episode's first frame."""
        rows = self.joints[-1]
        return rows[-1] - rows[-2] if len(rows) > 1 else np.zeros_like(rows[-1])

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


class ImaginationWorker:
    """Imagines work items until the queue has no more. Holds nothing that a restart would lose.

    A trajectory is stored first and acknowledged second, so a crash between the two repeats work
    and never loses it. All randomness comes from the item's seed and the index of the chunk.
    """

    def __init__(
        self, models: Models, settings: ImaginationSettings, clock: Clock = time.perf_counter
    ) -> None:
        self._models = models
        self._settings = settings
        self._clock = clock
        self.stats = ImaginationStats()

    def run(
        self,
        name: str,
        queue: WorkQueue,
        sink: TrajectoryWriter,
        should_stop: Callable[[], bool] = never,
    ) -> ImaginationStats:
        """Work until nothing is left to take or ``should_stop`` says so, asked once per chunk.

        Returns what this worker has done in all its runs. What is under way at a stop is dropped;
        its leases end and it runs again with the same seeds. An item that another worker lets go
        of after this returns needs another call.

        Raises:
            ValueError: the policy plans fewer than 12 ticks.
        """
        dreams: list[_Dream] = []
        while not should_stop():
            begin, timed = self._clock(), self.stats.policy_s + self.stats.world_model_s
            free = self._settings.slots - len(dreams)
            if free:
                dreams += [self._start(item) for item in queue.take(name, free)]
            if not dreams:
                break
            self._advance(dreams)
            finished = [d for d in dreams if d.chunks == self._settings.max_chunks]
            for dream in finished:
                sink.add(self._trajectory(dream), None)
                queue.done(name, dream.item.trajectory_id)
            dreams = [d for d in dreams if d.chunks < self._settings.max_chunks]
            self.stats.trajectories += len(finished)
            elsewhere = self.stats.policy_s + self.stats.world_model_s - timed
            self.stats.host_s += self._clock() - begin - elsewhere
        return self.stats

    def _start(self, item: WorkItem) -> _Dream:
        start, began = item.start, self._clock()
        memory = self._models.world_model.begin(start, item.seed)
        self.stats.world_model_s += self._clock() - began
        joints = start.joint_position[None].astype(np.float32)
        return _Dream(
            item,
            memory,
            frames=[start.frame[None]],
            joints=[joints],
            gripper=[np.asarray([start.gripper_position], np.float32)],
            cartesian=[self._poses(joints)],
        )

    def _advance(self, dreams: Sequence[_Dream]) -> None:
        """One chunk of every slot: decide, move the arm, imagine what the cameras see."""
        plans = self._decide(dreams)
        actions = np.stack([plan.actions for plan in plans])
        joints, gripper = self._models.adapter.predict(
            np.stack([d.joints[-1][-1] for d in dreams]),
            np.stack([d.joint_motion() for d in dreams]),
            np.asarray([d.gripper[-1][-1] for d in dreams], np.float32),
            actions[:, :ADAPTER_TICKS],
        )
        joints, gripper = joints[:, :TICKS_PER_CHUNK], gripper[:, :TICKS_PER_CHUNK]
        cartesian = self._poses(joints)
        frames = self._imagine(dreams, _frame_poses(dreams, cartesian, gripper))
        for row, (dream, plan) in enumerate(zip(dreams, plans, strict=True)):
            dream.policy_version = plan.version
            dream.actions.append(actions[row, :TICKS_PER_CHUNK])
            dream.joints.append(joints[row])
            dream.gripper.append(gripper[row])
            dream.cartesian.append(cartesian[row])
            dream.frames.append(frames[row])
        self.stats.chunks += len(dreams)
        self.stats.frames += NEW_FRAMES * len(dreams)

    def _decide(self, dreams: Sequence[_Dream]) -> list[ActionChunk]:
        began = self._clock()
        plans = self._models.policy.act(
            [dream.observation() for dream in dreams],
            [fold(dream.item.seed, dream.chunks) for dream in dreams],
        )
        self.stats.policy_s += self._clock() - began
        if len(plans[0].actions) < TICKS_PER_CHUNK:
            raise ValueError(
                f"the policy plans {len(plans[0].actions)} ticks, imagination executes "
                f"{TICKS_PER_CHUNK}: raise policy.horizon"
            )
        return plans

    def _imagine(self, dreams: Sequence[_Dream], poses: np.ndarray) -> np.ndarray:
        began = self._clock()
        frames = self._models.world_model.imagine([dream.memory for dream in dreams], poses)
        self.stats.world_model_s += self._clock() - began
        return frames

    def _poses(self, joints: np.ndarray) -> np.ndarray:
        return np.asarray(self._models.kinematics(joints), np.float32)

    def _trajectory(self, dream: _Dream) -> Trajectory:
        item, start = dream.item, dream.item.start
        provenance = Provenance(
            trajectory_id=item.trajectory_id,
            origin="imagined",
            task=start.task,
            iteration=item.iteration,
            seed=item.seed,
            policy_version=dream.policy_version,
            world_model_version=self._models.world_model.version,
            parent=start.parent,
            parent_frame=start.parent_frame,
        )
        return Trajectory(
            provenance=provenance,
            instruction=start.instruction,
            actions=np.concatenate(dream.actions),
            joint_position=np.concatenate(dream.joints),
            gripper_position=np.concatenate(dream.gripper),
            cartesian_position=np.concatenate(dream.cartesian),
            frames=np.concatenate(dream.frames),
            ending="timeout",
        )


def _frame_poses(
    dreams: Sequence[_Dream], cartesian: np.ndarray, gripper: np.ndarray
) -> Float32[np.ndarray, "slot 5 7"]:
    """Pose and gripper now and after ticks 3, 6, 9 and 12 of the chunk."""
    now = np.stack([np.append(d.cartesian[-1][-1], d.gripper[-1][-1]) for d in dreams])
    ticks = slice(TICKS_PER_FRAME - 1, TICKS_PER_CHUNK, TICKS_PER_FRAME)
    after = np.concatenate([cartesian[:, ticks], gripper[:, ticks, None]], axis=2)
    return np.concatenate([now[:, None], after], axis=1).astype(np.float32)
