"""What one part may ask of another."""

from collections.abc import Collection, Generator, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8

from contracts.types import (
    ActionChunk,
    Clip,
    Label,
    Moment,
    Observation,
    RobotState,
    Score,
    StartState,
    Trajectory,
    WorkItem,
)


@runtime_checkable
class RobotEnv(Protocol):
    """One arm on one table. Single-threaded; ``step`` blocks to the next 15 Hz tick."""

    def reset(self, task: str, seed: int) -> str:
        """Bring arm and scene to a start and return the instruction to follow.

        The scene is a function of (task, seed). Raises ValueError for an unknown task.
        """
        ...

    def observe(self) -> Observation:
        """Read all cameras and the arm now; the clock does not advance."""
        ...

    def step(self, action: Float32[np.ndarray, " 8"]) -> RobotState:
        """Execute one tick of ``ActionChunk`` units and return the state after it."""
        ...

    def hold(self) -> None:
        """Stop in place. Idempotent, never raises: callers run it in ``finally``."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class PacedRobot(RobotEnv, Protocol):
    """A robot whose host keeps the 15 Hz itself, so that no delay elsewhere reaches the arm."""

    def announce(self, trajectory_id: str, policy_version: int, max_ticks: int) -> None:
        """What the next ``reset`` is for. Tells the person at the robot, changes nothing."""
        ...

    def play(self, actions: Float32[np.ndarray, "ticks 8"]) -> Generator[Moment]:
        """Execute the rows at 15 Hz. Yields how the arm stands before the first one, then after
        each. Closing the generator holds the arm.

        Raises:
            ArmStoppedError: the arm is held for good; what was yielded happened.
        """
        ...


@runtime_checkable
class LabelSource(Protocol):
    """Whoever may say that an episode succeeded: a person, or the simulator's privileged check."""

    def label(self, trajectory: Trajectory) -> Label:
        """Raises DiscardedError when a person says that the episode does not count."""
        ...


@runtime_checkable
class Policy(Protocol):
    """Samples action chunks. Row i depends on observation i and seed i alone."""

    version: int

    def act(
        self, observations: Sequence[Observation], seeds: Sequence[int]
    ) -> list[ActionChunk]: ...


@runtime_checkable
class WorldModel(Protocol):
    """Predicts frames from poses. All memory of a trajectory lives in its slot, none in the model,
    so any worker can continue any slot and a batch never changes a trajectory."""

    version: int

    def begin(self, start: StartState, seed: int) -> Any:
        """Encode the first frame into a new slot (opaque to callers)."""
        ...

    def imagine(
        self, slots: Sequence[Any], poses: Float32[np.ndarray, "slot 5 7"]
    ) -> UInt8[np.ndarray, "slot 4 3 height width 3"]:
        """Advance each slot by one chunk and return its 4 new frames.

        ``poses[:, 0]`` is the current pose and gripper, rows 1-4 the next four frames at 5 Hz.
        """
        ...


@runtime_checkable
class PoseAdapter(Protocol):
    """Turns commanded joint velocities into the joint angles that the arm will really reach."""

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        joint_motion: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
        frames: UInt8[np.ndarray, "slot 3 height width 3"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles and gripper position after each tick. ``joint_motion`` is the way [rad] of
        the tick before; zero for an arm at rest. ``frames`` are the three views now."""
        ...


@runtime_checkable
class RewardModel(Protocol):
    """P('yes') that a clip shows its instruction completed. Pure; order kept."""

    version: int

    def score(self, clips: Sequence[Clip]) -> list[Score]: ...


@runtime_checkable
class TrajectoryWriter(Protocol):
    def add(self, trajectory: Trajectory, label: Label | None) -> bool:
        """Store durably before returning. False when the id was stored before: nothing changes."""
        ...


@runtime_checkable
class TrajectoryReader(Protocol):
    def trajectory(self, trajectory_id: str) -> Trajectory: ...

    def clip(self, trajectory_id: str, num_frames: int) -> Clip: ...


@runtime_checkable
class WorkQueue(Protocol):
    """Hands out work under leases; what a dead worker held goes to another."""

    def take(self, worker: str, count: int) -> list[WorkItem]: ...

    def heartbeat(self, worker: str, held: Collection[str]) -> None:
        """``worker`` lives and works on the trajectories ``held``."""
        ...

    def done(self, worker: str, trajectory_id: str) -> None: ...


@runtime_checkable
class Progress(Protocol):
    """Told how far a long stage is; a bar on a terminal, a line elsewhere."""

    def advance(self, count: int = 1, **numbers: float) -> None: ...


class Closeable(Protocol):
    def close(self) -> None: ...


Trajectories = Iterable[Trajectory]
