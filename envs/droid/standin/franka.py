"""The methods that DROID's control machine serves over zerorpc, in front of a simulation.

Names, arguments, units and what comes back are those of ``FrankaRobot`` in the public DROID
repository's ``droid/franka/robot.py``. Cartesian commands are left out.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from contracts.constants import CONTROL_HZ, NUM_JOINTS, RAD_PER_TICK, VIEWS
from contracts.panda import JOINT_SPEED
from envs.droid.standin.physics import Physics

GRIPPER_STEP = 0.25  # what a gripper velocity of 1.0 asks for in one tick (DROID)
LAUNCH_S = 0.5  # DROID's own takes 5 s
LOAD_S = 0.5  # of the impedance controller, at the first command
FAULTS = ("freeze", "refuse", "hang", "cold", "drop", *(f"camera:{view}" for view in VIEWS))

Sleep = Callable[[float], None]
Action = dict[str, Any]


class Franka:
    """What the network sees of a control machine. ``sleep`` lets physics go on meanwhile."""

    def __init__(self, physics: Physics, sleep: Sleep) -> None:
        self._physics, self._sleep = physics, sleep
        self._refusing = self._hanging = self._cold = self._loaded = False

    def launch_controller(self) -> None:
        self.kill_controller()
        self._sleep(LAUNCH_S)
        self._physics.frozen = False

    def launch_robot(self) -> None:
        self._cold = False

    def kill_controller(self) -> None:
        """The state's clock stands still from now on."""
        self._physics.frozen, self._loaded = True, False

    def update_command(
        self,
        command: list[float],
        action_space: str = "cartesian_velocity",
        gripper_action_space: str | None = None,
        blocking: bool = False,
    ) -> Action:
        if action_space not in {"joint_velocity", "joint_position"}:
            raise ValueError(f"the stand-in takes no {action_space}, only joint spaces")
        state, _ = self.get_robot_state()
        velocity = action_space == "joint_velocity"
        steady = (gripper_action_space or ("velocity" if velocity else "position")) == "position"
        joints, present = np.asarray(command[:NUM_JOINTS], np.float64), state["joint_positions"]
        target = present + _displacement(joints) if velocity else joints
        gripper = command[NUM_JOINTS]
        if not steady:
            gripper = state["gripper_position"] + GRIPPER_STEP * gripper
        gripper = float(np.clip(gripper, 0.0, 1.0))
        self.update_joints(target.tolist(), False, blocking)
        self.update_gripper(gripper, False, blocking)
        answer = {"robot_state": state, "gripper_position": gripper}
        return answer | {"joint_position": target.tolist(), "joint_velocity": command[:NUM_JOINTS]}

    def update_joints(
        self,
        command: list[float],
        velocity: bool = False,
        blocking: bool = False,
        cartesian_noise: list[float] | None = None,
    ) -> None:
        self._answer()
        if cartesian_noise is not None:
            raise ValueError("the stand-in takes no cartesian_noise")
        if not self._loaded:
            self._sleep(LOAD_S)
            self._loaded = True
        sim = self._physics.sim
        present = sim.data.qpos[:NUM_JOINTS].copy()
        joints = np.asarray(command, np.float64)
        target = present + _displacement(joints) if velocity else joints
        ticks = self._ticks_to(target - present) if blocking else 1
        for share in np.arange(1, ticks + 1) / ticks:
            sim.aim(present + share * (target - present), sim.grip)
            if blocking:
                self._sleep(1 / CONTROL_HZ)

    def update_gripper(
        self, command: float | int, velocity: bool = True, blocking: bool = False
    ) -> None:
        self._answer()
        del blocking  # waits for the order, not for the fingers
        here = self.get_gripper_position() if velocity else 0.0
        self._physics.grip(here + GRIPPER_STEP * command if velocity else command)

    def get_joint_positions(self) -> list[float]:
        self._answer()
        return self._physics.sim.data.qpos[:NUM_JOINTS].tolist()

    def get_joint_velocities(self) -> list[float]:
        self._answer()
        return self._physics.sim.data.qvel[:NUM_JOINTS].tolist()

    def get_gripper_position(self) -> float:
        self._answer()
        return self._physics.sim.gripper_position()

    def get_ee_pose(self) -> list[float]:
        self._answer()
        return self._physics.sim.pose().tolist()

    def get_robot_state(self) -> tuple[Action, Action]:
        self._answer()
        torques = self._physics.sim.data.ctrl[:NUM_JOINTS].tolist()
        state = {
            "cartesian_position": self.get_ee_pose(),
            "gripper_position": self.get_gripper_position(),
            "joint_positions": self.get_joint_positions(),
            "joint_velocities": self.get_joint_velocities(),
            "joint_torques_computed": torques,
            "prev_joint_torques_computed": torques,
            "prev_joint_torques_computed_safened": torques,
            "motor_torques_measured": torques,
            "prev_controller_latency_ms": 0.3,
            "prev_command_successful": not self._refusing,
        }
        seconds, rest = divmod(self._physics.time_s, 1.0)
        stamp = {"robot_timestamp_seconds": int(seconds), "robot_timestamp_nanos": int(rest * 1e9)}
        return state, stamp

    def _answer(self) -> None:
        """As the faults that were asked for have it."""
        while self._hanging:
            self._sleep(0.1)
        if self._cold:
            raise AttributeError("'FrankaRobot' object has no attribute '_robot'")

    def _ticks_to(self, away: np.ndarray) -> int:
        """15 Hz ticks that a blocking motion takes: 1 to 4 s."""
        return round(CONTROL_HZ * float(np.clip(8 * np.abs(away / JOINT_SPEED).max(), 1, 4)))


class StandIn(Franka):
    """And what no control machine has: a table that can be laid and judged, faults on purpose."""

    def __init__(self, physics: Physics, sleep: Sleep, drawn: Callable[[], int]) -> None:
        """``drawn`` is the number of the scene that the newest pictures show."""
        super().__init__(physics, sleep)
        self._drawn = drawn

    def lay(self, task: str, seed: int) -> str:
        """Start anew, and wait until the cameras see it; returns the instruction."""
        instruction = self._physics.lay(task, seed)
        while self._drawn() != self._physics.scene:
            self._sleep(0.01)
        return instruction

    def success(self) -> bool:
        return self._physics.success()

    def fail(self, fault: str, on: bool = True) -> None:
        """Begin or end one of ``FAULTS``: the state's clock stands still; commands are not taken;
        nothing is answered; ``launch_robot`` has never run; the controller is dropped, so that the
        next command starts it; a camera is gone.

        Raises:
            ValueError: there is no such fault.
        """
        if fault not in FAULTS:
            raise ValueError(f"fault {fault!r} is unknown; there are: {', '.join(FAULTS)}")
        kind, _, view = fault.partition(":")
        if kind == "freeze":
            self._physics.frozen = on
        elif kind == "refuse":
            self._refusing = on
        elif kind == "hang":
            self._hanging = on
        elif kind == "cold":
            self._cold = on
        elif kind == "drop":
            self._loaded = not on
        else:
            self._physics.dropped[VIEWS.index(view)] = on


def _displacement(velocity: np.ndarray) -> np.ndarray:
    """Joint angles [rad] that DROID's normalised velocity asks for in one tick."""
    return RAD_PER_TICK * velocity / max(1.0, float(np.abs(velocity).max()))
