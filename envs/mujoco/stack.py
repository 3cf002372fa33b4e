"""Stack one coloured block on another, with the other colours as distractors."""

from collections.abc import Iterator
from typing import ClassVar

import mujoco
import numpy as np

from envs.mujoco.experts import Motion, go, hold, tool_position
from envs.mujoco.rotations import yaw_quaternion
from envs.mujoco.sim import Simulation
from envs.mujoco.task import Cartesian, Task

COLOURS = {
    "red": (0.85, 0.10, 0.08, 1.0),
    "green": (0.10, 0.62, 0.18, 1.0),
    "blue": (0.10, 0.22, 0.85, 1.0),
    "yellow": (0.95, 0.80, 0.10, 1.0),
}
HALF = 0.025  # m: 50 mm blocks
MASS = 0.05  # kg, hollow wood
AREA = ((0.36, -0.17), (0.56, 0.17))  # m, where block centres may lie
SPACING = 0.105  # m between centres: open fingers fit between any two blocks
HEIGHT_TOLERANCE = 0.01  # m
STILL = 0.03  # m/s
LIFT = 0.13  # m of the tool point while carrying


class Stack(Task):
    """Four blocks; the instruction names which goes on which.

    Success: the named block lies on the other (offset below half an edge, height one edge within
    10 mm), at rest, and no finger touches it.
    """

    name: ClassVar[str] = "stack"
    instructions: ClassVar[tuple[str, ...]] = tuple(
        f"stack the {upper} block on the {lower} block"
        for upper in COLOURS
        for lower in COLOURS
        if upper != lower
    )

    def __init__(self) -> None:
        self.upper, self.lower = "red", "green"

    def instruction(self, rng: np.random.Generator) -> str:
        text = super().instruction(rng)
        words = text.split()
        self.upper, self.lower = words[2], words[6]
        return text

    def build(self, spec: mujoco.MjSpec) -> None:
        for colour, rgba in COLOURS.items():
            body = spec.worldbody.add_body(name=colour)
            body.add_freejoint(name=colour)
            body.add_geom(
                name=colour,
                type=mujoco.mjtGeom.mjGEOM_BOX,
                size=[HALF] * 3,
                rgba=rgba,
                mass=MASS,
                friction=[1.0, 0.01, 0.001],
            )

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        places: list[np.ndarray] = []
        while len(places) < len(COLOURS):
            place = rng.uniform(*AREA)
            if all(np.linalg.norm(place - other) > SPACING for other in places):
                places.append(place)
        for colour, place in zip(COLOURS, places, strict=True):
            sim.place(colour, np.append(place, HALF), yaw_quaternion(rng.uniform(-0.15, 0.15)))

    def success(self, sim: Simulation) -> bool:
        offset = sim.body_position(self.upper) - sim.body_position(self.lower)
        return bool(
            np.abs(offset[:2]).max() < HALF
            and abs(offset[2] - 2 * HALF) < HEIGHT_TOLERANCE
            and sim.body_speed(self.upper) < STILL
            and not sim.gripper_touches(self.upper)
        )

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        block, yaw = sim.body_position(self.upper)[:2], _yaw(sim, self.upper)
        yield from go(sim, np.append(block, 0.12), 0.0, Motion(tolerance=0.015, yaw=yaw))
        yield from go(sim, np.append(block, HALF), 0.0, Motion(tolerance=0.005, yaw=yaw))
        yield from hold(1.0, 11)
        yield from go(sim, np.append(block, LIFT), 1.0, Motion(tolerance=0.02, yaw=yaw))
        base = sim.body_position(self.lower)[:2]
        yield from go(sim, np.append(base, LIFT), 1.0, Motion(tolerance=0.010, yaw=yaw))

        def above_base() -> np.ndarray:
            slip = sim.body_position(self.upper) - tool_position(sim)
            return np.append(base, 3 * HALF + 0.003) - slip

        yield from go(sim, above_base, 1.0, Motion(tolerance=0.004, ticks=30, yaw=yaw))
        yield from hold(0.0, 7)
        yield from go(sim, np.append(base, 0.2), 0.0, Motion(tolerance=0.03, yaw=yaw))


def _yaw(sim: Simulation, name: str) -> float:
    matrix = sim.body_matrix(name)
    return float(np.arctan2(matrix[1, 0], matrix[0, 0]))
