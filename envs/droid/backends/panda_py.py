"""The arm through panda-py, whose joint impedance controller runs at 1 kHz in its own thread.

Source: panda-python 1.1 (PyPI), ``controllers.JointPosition``: gains of joints alone. DROID's
hybrid law is imitated by its diagonal, diag(J' Kx J + Kq) of the posture at each tick; what couples
the joints is lost, so motions differ more from DROID's than under franky. PyPI's wheels speak to
Panda arms from system 4.2.1 on. **Never run with an arm.**
"""

from typing import Any

import numpy as np
from jaxtyping import Float

from contracts.kinematics import link_transforms
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


class PandaPyDriver:
    """``envs.droid.franka.Driver``."""

    name = "panda_py"
    joint_low, joint_high = JOINT_LOW, JOINT_HIGH

    def __init__(self, address: str) -> None:
        """Raises ValueError saying how to install panda-py."""
        self._library: Any = library("panda_py", "panda_py", "panda-python")
        self._controllers: Any = library("panda_py.controllers", "panda_py", "panda-python")
        self._address = address
        self._panda: Any = None
        self._controller: Any = None

    def connect(self) -> None:
        """Raises OSError naming what to do in Franka's Desk."""
        self._panda = reached(self._library.Panda, self._address)

    def control(self) -> None:
        self._panda.recover()
        self._panda.refresh_state()
        stiffness, damping = gains(np.asarray(self._panda.q))
        self._controller = self._controllers.JointPosition(stiffness=stiffness, damping=damping)
        self._panda.start_controller(self._controller)

    def read(self) -> FrankaReading:
        self._panda.refresh_state()
        state = self._panda.get_state()
        stopped = (
            "" if self._panda.is_moving() else f"{state.robot_mode}, {state.last_motion_errors}"
        )
        return FrankaReading(np.array(state.q), np.array(state.dq), state.time.to_sec(), stopped)

    def aim(self, joints: Float[np.ndarray, " 7"]) -> None:
        stiffness, damping = gains(np.asarray(self._panda.q))
        self._controller.set_stiffness(stiffness)
        self._controller.set_damping(damping)
        self._controller.set_control(joints)

    def close(self) -> None:
        if self._panda is not None and self._controller is not None:
            self._panda.stop_controller()


def gains(
    joints: Float[np.ndarray, " 7"],
) -> tuple[Float[np.ndarray, " 7"], Float[np.ndarray, " 7"]]:
    """Stiffness and damping of each joint alone, at a posture [rad]."""
    jacobian = flange_jacobian(joints)
    stiffness = np.einsum("ij,i,ij->j", jacobian, CARTESIAN_STIFFNESS, jacobian) + JOINT_STIFFNESS
    damping = np.einsum("ij,i,ij->j", jacobian, CARTESIAN_DAMPING, jacobian) + JOINT_DAMPING
    return stiffness, damping


def flange_jacobian(joints: Float[np.ndarray, " 7"]) -> Float[np.ndarray, "6 7"]:
    """Velocity of the flange's origin [m], then its rotation [rad], in the base frame, by joint."""
    *links, flange = link_transforms(joints)
    axes = np.stack([link[:3, 2] for link in links], axis=1)
    arms = np.stack([flange[:3, 3] - link[:3, 3] for link in links], axis=1)
    return np.concatenate([np.cross(axes, arms, axis=0), axes])


def open_rig(table: dict[str, Any], size: tuple[int, int]) -> tuple[Arm, Cameras, Scene | None]:
    """Raises ValueError naming what to change in the rig's file or to install."""
    return open_franka(table, size, PandaPyDriver)
