"""What a task adds to the bare rig: objects, a random layout, a success check and an expert."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import ClassVar

import mujoco
import numpy as np
from jaxtyping import Float64, UInt8

from configs.robot import TASKS
from envs.mujoco.sim import Simulation

Cartesian = Float64[np.ndarray, " 7"]  # twist in units of LINEAR and ANGULAR per tick; gripper


class Task(ABC):
    """One manipulation task. It keeps what an episode needs (goal colours, ink); ``reset`` clears
    all of it, so equal generators give equal episodes."""

    name: ClassVar[str]
    instructions: ClassVar[tuple[str, ...]]
    canvas: UInt8[np.ndarray, "rows columns 3"] | None = None  # drawn on the geom "board_top"

    @property
    def max_ticks(self) -> int:
        """Longest episode in 15 Hz ticks."""
        return TASKS[self.name]

    def instruction(self, rng: np.random.Generator) -> str:
        """Choose this episode's instruction. Called before ``reset`` with the same generator."""
        return self.instructions[int(rng.integers(len(self.instructions)))]

    @abstractmethod
    def build(self, spec: mujoco.MjSpec) -> None:
        """Add the task's bodies to the rig. Called once, before compiling."""

    @abstractmethod
    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        """Place the objects at random. The arm is at its start; physics settles afterwards."""

    def substep(self, sim: Simulation) -> None:  # noqa: B027 (most tasks need none)
        """Called every ``sim.HOOK_EVERY`` physics steps: ink, erasing, timers."""

    @abstractmethod
    def success(self, sim: Simulation) -> bool:
        """The paper's criterion, from privileged state."""

    @abstractmethod
    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        """Yield one cartesian velocity per tick; the simulation advances between yields.

        Columns 0-2 are in units of 0.075 m, 3-5 of 0.15 rad per tick and lie in [-1, 1]; column 6
        is the absolute gripper position (DROID ``cartesian_velocity`` with ``position`` gripper).
        """
