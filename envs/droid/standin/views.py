"""The stand-in's cameras: a process of its own that draws the scene at 15 Hz.

So drawing disturbs neither the physics nor the loop beside the arm. It ends with its parent.
"""

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path

import mujoco
import numpy as np

from configs.robot import TASKS, RobotConfig
from contracts.constants import CONTROL_HZ
from envs.droid.cameras.newest import Newest
from envs.droid.cameras.shared import layout
from envs.droid.standin.physics import WORLD
from envs.mujoco.robot import MujocoRobot


class Views:
    """Draws what the physics process says, as cameras would see it."""

    def __init__(self, world: Newest, frames: Newest, config: RobotConfig) -> None:
        self._world, self._frames = world, frames
        self._robot = MujocoRobot(config)
        self._scene = 0
        self._captured = np.zeros(3)
        self._images = np.zeros((3, config.height, config.width, 3), np.uint8)

    def draw(self) -> None:
        """One set of pictures of this moment; views that are dropped stay as they are."""
        world = self._world.get()
        if world is not None and self._scene != world["scene"]:
            self._robot.reset(list(TASKS)[int(world["task"])], int(world["seed"]))
            self._scene = int(world["scene"])
            world = self._world.get()  # compiling a scene takes a while
        if world is None or self._scene != world["scene"]:
            return
        now = time.monotonic()
        self._enter(world)
        seen, images = ~world["dropped"], self._robot.observe().images
        self._captured[seen], self._images[seen] = now, images[seen]
        self._frames.put(scene=self._scene, captured_s=self._captured, images=self._images)

    def run(self, goes_on: Callable[[], bool]) -> None:
        """Draw on absolute deadlines while ``goes_on()``; what cannot be drawn in time is lost."""
        due = time.monotonic()
        while goes_on():
            self.draw()
            due = max(due + 1 / CONTROL_HZ, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        self._robot.close()

    def _enter(self, world: np.ndarray) -> None:
        """Bring the drawn scene to where the physics process has it."""
        sim = self._robot.simulation
        for field in ("qpos", "mocap_pos", "mocap_quat"):
            place = getattr(sim.data, field)
            place[:] = world[field][: len(place)]
        if sim.canvas is not None:
            sim.canvas[:] = world["canvas"]
        mujoco.mj_forward(sim.model, sim.data)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m envs.droid.standin.views")
    for name in ("world", "frames"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name in ("height", "width", "parent"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--renderer", default="auto")
    given = parser.parse_args()
    size = (given.height, given.width)
    frames = Newest.create(given.frames, layout(size))
    config = RobotConfig(height=given.height, width=given.width, renderer=given.renderer)
    try:
        Views(Newest.attach(given.world, WORLD), frames, config).run(
            lambda: os.getppid() == given.parent
        )
    finally:  # also after a parent that was killed
        given.frames.unlink(missing_ok=True)
        given.world.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
