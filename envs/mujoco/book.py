"""Open a book: lift the cover by its lip and swing it about the spine."""

from collections.abc import Iterator
from typing import ClassVar

import mujoco
import numpy as np

from envs.mujoco.experts import Motion, go, hold
from envs.mujoco.sim import Simulation
from envs.mujoco.task import Cartesian, Task

PAGES = (0.075, 0.100, 0.012)  # m, half sizes of the page block
COVER = (0.082, 0.107, 0.0018)  # m: the cover overhangs the pages by a lip of 14 mm
OPEN_ANGLE = 1.9  # rad
OPEN_TICKS = 15  # how long it has to stay open
HINGE_HEIGHT = 0.0255  # m above the table
CENTRE = (0.48, 0.0)
SPREAD = 0.03  # m
BOX = mujoco.mjtGeom.mjGEOM_BOX


class Book(Task):
    """A page block on the table and a cover on a stiff hinge along the spine.

    Success: the cover stands beyond 1.9 rad for a second, and no finger touches it.
    """

    name: ClassVar[str] = "book"
    instructions: ClassVar[tuple[str, ...]] = ("open the book",)

    def __init__(self) -> None:
        self.open_since = -1  # tick at which the cover passed the angle; -1: it has not

    def build(self, spec: mujoco.MjSpec) -> None:
        book = spec.worldbody.add_body(name="book", pos=[*CENTRE, PAGES[2]], mocap=True)
        book.add_geom(name="pages", type=BOX, size=PAGES, rgba=[0.95, 0.93, 0.86, 1])
        cover = book.add_body(name="cover", pos=[0, PAGES[1], PAGES[2] + 0.0015])
        cover.add_joint(
            name="cover",
            type=mujoco.mjtJoint.mjJNT_HINGE,
            axis=[-1, 0, 0],
            limited=mujoco.mjtLimited.mjLIMITED_TRUE,
            range=[0, 3.0],
            damping=[0.004, 0, 0],
            frictionloss=0.004,
            armature=1e-4,
        )
        cover.add_geom(
            name="cover",
            type=BOX,
            pos=[0, -COVER[1], 0.0015],
            size=COVER,
            rgba=[0.13, 0.27, 0.62, 1],
            mass=0.03,
            friction=[1.2, 0.01, 0.001],
        )

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        centre = np.array(CENTRE) + rng.uniform(-SPREAD, SPREAD, 2)
        sim.place("book", np.append(centre, PAGES[2]))
        self.open_since = -1

    def angle(self, sim: Simulation) -> float:
        """Opening of the cover in rad, 0 shut."""
        return float(sim.data.joint("cover").qpos[0])

    def substep(self, sim: Simulation) -> None:
        if self.angle(sim) <= OPEN_ANGLE:
            self.open_since = -1
        elif self.open_since < 0:
            self.open_since = sim.ticks

    def success(self, sim: Simulation) -> bool:
        held = self.open_since >= 0 and sim.ticks - self.open_since >= OPEN_TICKS
        return held and not sim.gripper_touches("cover")

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        x, y, _ = sim.body_position("book")
        lip = y - 2 * COVER[1] + PAGES[1]
        spine = y + PAGES[1]
        reach = 2 * COVER[1] - 0.009

        def at(across: float, height: float) -> np.ndarray:
            return np.array([x, across, height])

        yield from go(sim, at(lip - 0.045, 0.06), 1.0, Motion(tolerance=0.02))
        yield from go(sim, at(lip - 0.030, 0.012), 1.0, Motion(tolerance=0.006))
        yield from go(sim, at(lip + 0.006, 0.014), 1.0, Motion(tolerance=0.004, ticks=30))
        for angle in np.linspace(0.05, 2.3, 18):
            point = at(
                spine - reach * float(np.cos(angle)),
                HINGE_HEIGHT + 0.95 * reach * float(np.sin(angle)) - 0.004,
            )
            yield from go(sim, point, 1.0, Motion(tolerance=0.02, ticks=3, gain=1.5))
        yield from go(sim, at(spine + 0.12, 0.25), 1.0, Motion(tolerance=0.02, ticks=8))
        yield from hold(1.0, OPEN_TICKS - 6)
