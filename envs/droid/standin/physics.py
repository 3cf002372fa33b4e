"""The simulated rig in real time: it goes on whether or not anybody commands it, as polymetis."""

import time
from collections.abc import Callable

import numpy as np

from configs.robot import TASKS, RobotConfig
from contracts.constants import VIEWS
from envs.droid.cameras.newest import Newest
from envs.mujoco.canvas import COLUMNS, ROWS
from envs.mujoco.robot import MujocoRobot
from envs.mujoco.sim import HOOK_EVERY, Simulation

STEPS = HOOK_EVERY  # physics steps at a time: 16 ms, and the task's hook comes as often as ever
LAG_S = 0.1  # a process that was stopped for longer does not run after the time it lost
LOCKED = 0.01  # a gripper sent to within this of where it is keeps its grip: its gear locks itself

# What the renderer needs to draw the scene; ``dropped`` views stay as they are.
WORLD = np.dtype(
    [
        ("scene", np.int64),  # counts the scenes that were laid
        ("task", np.int64),
        ("seed", np.int64),
        ("qpos", np.float64, 512),
        ("mocap_pos", np.float64, (16, 3)),
        ("mocap_quat", np.float64, (16, 4)),
        ("canvas", np.uint8, (ROWS, COLUMNS, 3)),
        ("dropped", np.bool_, len(VIEWS)),
    ]
)


class Physics:
    """One simulation under its own clock. Single-threaded: greenlets take turns."""

    def __init__(self, world: Newest) -> None:
        self._world = world
        # The smallest pictures by the renderer that is nothing to set up: nobody looks at them here
        self._robot = MujocoRobot(RobotConfig(height=16, width=16, renderer="ray"))
        self._scene, self._task, self._seed = 0, "", 0
        self.dropped = np.zeros(len(VIEWS), np.bool_)
        self.frozen = False
        self.time_s = time.time()  # of the newest state, on the control machine's own clock

    @property
    def sim(self) -> Simulation:
        return self._robot.simulation

    @property
    def scene(self) -> int:
        """How many scenes have been laid."""
        return self._scene

    def lay(self, task: str, seed: int) -> str:
        """Start anew; returns the instruction. Raises ValueError for an unknown task."""
        instruction = self._robot.reset(task, seed)
        self._scene, self._task, self._seed = self._scene + 1, task, seed
        self._show()
        return instruction

    def success(self) -> bool:
        return self._robot.privileged_success()

    def grip(self, position: float | int) -> None:
        """Send the gripper to 0 (open) to 1 (closed), or leave it in the grip that it has."""
        sim = self.sim
        stays = abs(position - sim.gripper_position()) < LOCKED
        sim.aim(sim.target, sim.grip if stays else position)

    def run(self, sleep: Callable[[float], None]) -> None:
        """For ever, on absolute deadlines."""
        due = time.monotonic()
        while True:
            self.sim.run(STEPS)
            if not self.frozen:
                self.time_s = time.time()
            self._show()
            due = max(due + STEPS * self.sim.model.opt.timestep, time.monotonic() - LAG_S)
            sleep(max(0.0, due - time.monotonic()))

    def _show(self) -> None:
        data, canvas = self.sim.data, self.sim.canvas
        drawn = {} if canvas is None else {"canvas": canvas}
        self._world.put(
            scene=self._scene,
            task=list(TASKS).index(self._task),
            seed=self._seed,
            qpos=data.qpos,
            mocap_pos=data.mocap_pos,
            mocap_quat=data.mocap_quat,
            dropped=self.dropped,
            **drawn,
        )
