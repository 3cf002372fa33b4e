"""The simulated robot behind the same interface as the real one, and its privileged labels."""

import numpy as np
from jaxtyping import Float32

from configs.checks import one_of
from configs.robot import RobotConfig
from contracts.types import Label, Observation, RobotState, Trajectory
from envs.mujoco.book import Book
from envs.mujoco.draw import Draw
from envs.mujoco.erase import Erase
from envs.mujoco.render import Renderer, open_renderer
from envs.mujoco.scoop import Scoop
from envs.mujoco.sim import Simulation
from envs.mujoco.stack import Stack
from envs.mujoco.task import Task

TASK_CLASSES: dict[str, type[Task]] = {
    task.name: task for task in (Stack, Book, Erase, Scoop, Draw)
}


class MujocoRobot:
    """``RobotEnv`` on MuJoCo physics. A task's scene is compiled at its first reset and kept.

    Nothing waits for the wall clock: a step is done when it is computed.
    """

    def __init__(self, config: RobotConfig) -> None:
        self._config = config
        self._scenes: dict[str, tuple[Task, Simulation, Renderer]] = {}
        self._now: tuple[Task, Simulation, Renderer] | None = None

    def reset(self, task: str, seed: int) -> str:
        """See ``RobotEnv.reset``. Arm start, layout and instruction follow from (task, seed).

        Raises:
            ValueError: unknown task, or the configured renderer is not available.
        """
        one_of("task", task, TASK_CLASSES)
        if task not in self._scenes:
            self._scenes[task] = self._compile(task)
        self._now = self._scenes[task]
        return self.simulation.reset(np.random.default_rng([seed, *task.encode()]))

    def observe(self) -> Observation:
        _, sim, renderer = self._current()
        return Observation(renderer.render(sim), sim.state(), sim.instruction)

    def step(self, action: Float32[np.ndarray, " 8"]) -> RobotState:
        """See ``RobotEnv.step``. Raises ValueError for an action that is not finite."""
        return self.simulation.step(action)

    def hold(self) -> None:
        if self._now is not None:
            self.simulation.hold()

    def close(self) -> None:
        for _, _, renderer in self._scenes.values():
            renderer.close()
        self._scenes.clear()
        self._now = None

    @property
    def simulation(self) -> Simulation:
        """The running scene; see ``script``."""
        return self._current()[1]

    def script(self) -> tuple[Task, Simulation]:
        """The running task and scene, for experts and tests: policy and reward code never look."""
        task, sim, _ = self._current()
        return task, sim

    def privileged_success(self) -> bool:
        """Whether the task's criterion holds now, from the simulator's hidden state."""
        task, sim, _ = self._current()
        return task.success(sim)

    def _current(self) -> tuple[Task, Simulation, Renderer]:
        if self._now is None:
            raise ValueError("no episode is running: call reset(task, seed) first")
        return self._now

    def _compile(self, name: str) -> tuple[Task, Simulation, Renderer]:
        task = TASK_CLASSES[name]()
        sim = Simulation(task)
        size = (self._config.height, self._config.width)
        return task, sim, open_renderer(self._config.renderer, sim.model, *size)


class SimulatorLabels:
    """``LabelSource`` that stands in for the person at the robot: asks the simulator.

    Ask before the next reset: the verdict is about the scene as the trajectory left it.
    """

    def __init__(self, robot: MujocoRobot) -> None:
        self._robot = robot

    def label(self, trajectory: Trajectory) -> Label:
        """The simulator's verdict. Raises ValueError when the scene is not the trajectory's end."""
        state = self._robot.simulation.state()
        if not np.array_equal(state.joint_position, trajectory.joint_position[-1]):
            raise ValueError(
                f"trajectory {trajectory.id} is not the one on the table: label it before reset"
            )
        return Label(trajectory.id, self._robot.privileged_success(), "simulator")
