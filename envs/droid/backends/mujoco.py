"""The simulated rig behind the host, in real time: physics advances one tick per tick."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from configs.robot import RobotConfig
from contracts.constants import NUM_JOINTS, RAD_PER_TICK, VIEWS
from contracts.panda import JOINT_HIGH, JOINT_LOW
from envs.droid.rig import Arm, ArmReading, Cameras, Frame, Scene
from envs.mujoco.robot import MujocoRobot


class MujocoRig:
    """``Arm``, ``Cameras`` and ``Scene`` in one: they share one simulation. Single-threaded."""

    name = "mujoco"
    names: tuple[str, str, str] = VIEWS

    def __init__(self, config: RobotConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._robot = MujocoRobot(config)
        self._clock = clock
        self._moved = True

    def open(self) -> None:
        """Raises ValueError where the renderer is not to be had. OpenGL works in one thread."""
        self._robot.reset("stack", 0)

    def read(self) -> ArmReading:
        if not self._moved:
            self._robot.simulation.idle()
        self._moved = False
        return ArmReading(self._robot.simulation.state())

    def move(self, action: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 7"]:
        joints = self._robot.simulation.state().joint_position
        self._robot.step(action)
        self._moved = True
        return np.clip(joints + RAD_PER_TICK * action[:NUM_JOINTS], JOINT_LOW, JOINT_HIGH)

    def hold(self) -> None:
        self._robot.hold()

    def ready(self) -> None:
        """There is nothing to recover from."""

    def frames(self) -> Sequence[Frame]:
        now = self._clock()
        return [Frame(image, now) for image in self._robot.observe().images]

    def lay(self, task: str, seed: int) -> str:
        self._moved = True
        return self._robot.reset(task, seed)

    def success(self) -> bool:
        return self._robot.privileged_success()

    def close(self) -> None:
        self._robot.close()


def open_rig(table: dict[str, Any], size: tuple[int, int]) -> tuple[Arm, Cameras, Scene]:
    """``[cameras]`` may give ``renderer``."""
    rig = MujocoRig(RobotConfig(height=size[0], width=size[1], **table.get("cameras", {})))
    return rig, rig, rig
