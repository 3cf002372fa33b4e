"""The parts of a rig that the host drives: an arm, cameras, and in simulation a scene."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, UInt8

from contracts.types import RobotState


@dataclass(frozen=True, slots=True)
class Frame:
    """The newest picture of one camera, RGB, and when it was taken on this machine's monotonic
    clock [s]."""

    image: UInt8[np.ndarray, "height width 3"]
    captured_s: float


@dataclass(frozen=True, slots=True)
class ArmReading:
    """``command_ok`` is whether the arm took its last command."""

    state: RobotState
    command_ok: bool = True


@runtime_checkable
class Arm(Protocol):
    """One arm and its gripper, driven by one thread. Whatever it raises is a fault."""

    name: str

    def open(self) -> None:
        """Connect, in the thread that drives. Raises ValueError or OSError naming what to do."""
        ...

    def read(self) -> ArmReading:
        """The newest measured state; does not wait for a newer one."""
        ...

    def move(self, action: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 7"]:
        """Send one tick of DROID ``joint_velocity`` with absolute gripper position. Returns at once
        with the joint angles that it aims at [rad]."""
        ...

    def hold(self) -> None:
        """Make the present posture the target; the grip stays."""
        ...

    def ready(self) -> None:
        """A person has cleared a fault: be able to move again, at the present posture. Moves
        nothing. Raises OSError while something still stops the arm."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Cameras(Protocol):
    """The three views in the order of ``contracts.constants.VIEWS``, of one size."""

    names: tuple[str, str, str]  # serial numbers or devices, for the record

    def open(self) -> None:
        """Likewise, and wait for a first picture of each view."""
        ...

    def frames(self) -> Sequence[Frame]:
        """The newest picture of each view; does not wait for a newer one. Raises OSError when a
        camera is gone."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class Scene(Protocol):
    """A table that a simulator lays and judges, where no person does."""

    def lay(self, task: str, seed: int) -> str:
        """Start anew from (task, seed); returns the instruction. Raises ValueError for an unknown
        task."""
        ...

    def success(self) -> bool:
        """Whether the task is done now, from the simulator's hidden state."""
        ...
