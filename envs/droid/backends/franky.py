"""The arm through franky, which runs DROID's hybrid impedance law at 1 kHz in its own thread.

Source: franky-control 2.0 (PyPI), ``JointImpedanceTracker``: J' Kx J is added to the joint gains in
every cycle, as polymetis does. PyPI's wheels speak to FR3 arms from system 5.9 on; wheels for
others are in that project's own index. Set Desk's end effector to identity: franky's Jacobian is of
the end effector, polymetis' of the flange. **Never run with an arm.**
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from contracts.panda import (
    CARTESIAN_DAMPING,
    CARTESIAN_STIFFNESS,
    JOINT_DAMPING,
    JOINT_HIGH,
    JOINT_LOW,
    JOINT_STIFFNESS,
)
from envs.droid.franka import FrankaReading, library, open_franka, reached
from envs.droid.rig import Arm, Cameras, Scene

# Both arms' ranges, less 0.1 rad of an FR3's: whichever is tighter.
FR3_LOW = np.array([-2.64, -1.68, -2.80, -2.94, -2.70, 0.65, -2.91])
FR3_HIGH = np.array([2.64, 1.68, 2.80, -0.26, 2.70, 4.41, 2.91])
GAINS = {
    "stiffness": JOINT_STIFFNESS,
    "damping": JOINT_DAMPING,
    "cartesian_stiffness": CARTESIAN_STIFFNESS,
    "cartesian_damping": CARTESIAN_DAMPING,
    "compensate_coriolis": True,
}


class FrankyDriver:
    """``envs.droid.franka.Driver``."""

    name = "franky"
    joint_low = np.maximum(JOINT_LOW, FR3_LOW)
    joint_high = np.minimum(JOINT_HIGH, FR3_HIGH)

    def __init__(self, address: str) -> None:
        """Raises ValueError saying how to install franky."""
        self._franky: Any = library("franky", "franky", "franky-control")
        self._address = address
        self._robot: Any = None
        self._tracker: Any = None

    def connect(self) -> None:
        """Raises OSError naming what to do in Franka's Desk."""
        self._robot = reached(self._franky.Robot, self._address)

    def control(self) -> None:
        if self._robot.has_errors and not self._robot.recover_from_errors():
            raise OSError("the arm does not recover: look at Desk")
        self._tracker = self._franky.JointImpedanceTracker(self._robot, **GAINS)

    def read(self) -> FrankaReading:
        state = self._robot.state
        stopped = "" if self._robot.is_in_control else _why(state)
        return FrankaReading(
            np.asarray(state.q), np.asarray(state.dq), state.time.to_sec(), stopped
        )

    def aim(self, joints: Float[np.ndarray, " 7"]) -> None:
        self._tracker.set_target(joints)

    def close(self) -> None:
        if self._tracker is not None:
            self._tracker.stop()


def _why(state: Any) -> str:
    return f"{state.robot_mode.name}, {state.last_motion_errors}"


def open_rig(table: dict[str, Any], size: tuple[int, int]) -> tuple[Arm, Cameras, Scene | None]:
    """Raises ValueError naming what to change in the rig's file or to install."""
    return open_franka(table, size, FrankyDriver)
