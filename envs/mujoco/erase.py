"""Task: erase the marks on the whiteboard with a block of tissues."""

from collections.abc import Iterator

import mujoco
import numpy as np
from jaxtyping import Float, Float64

from envs.mujoco import canvas
from envs.mujoco.canvas import Canvas, Pixels
from envs.mujoco.experts import Motion, go, hold
from envs.mujoco.sim import Simulation
from envs.mujoco.task import Cartesian, Task

TISSUE = "tissue"
TISSUE_HALF = (0.034, 0.021, 0.017)  # m
START = (0.46, 0.215)  # m, middle of the area in which the tissue starts
START_SPREAD = (0.04, 0.012)
LEFT_OVER = 0.05  # share of the ink that may remain
STROKE_RADIUS = 0.0075  # m
GRIP_HEIGHT = 0.022  # m, of the tool point above the table when it grasps
PRESS = 0.008  # m below the board that the expert aims at while it sweeps
UP = np.array([0.0, 0.0, 1.0])
COLOURS = ("red", "blue", "black")  # of the marks, one for each instruction


def random_mark(rng: np.random.Generator) -> Float64[np.ndarray, "points 2"]:
    """A slanted wave across the board: points in m, base frame, in order of falling y."""
    length, amplitude = rng.uniform(0.07, 0.11), rng.uniform(0.004, 0.011)
    slant, phase, waves = rng.uniform(-0.3, 0.3), rng.uniform(0.0, 2 * np.pi), rng.uniform(1.5, 3.0)
    along = np.linspace(0.5, -0.5, 41)
    across = amplitude * np.sin(2 * np.pi * waves * along + phase)
    middle = np.array(canvas.CENTRE) + rng.uniform([-0.045, -0.07], [0.045, 0.05])
    return middle + np.stack([across + slant * length * along, length * along], axis=1)


class Erase(Task):
    """Less than 5 % of the ink is left. Ink goes where the tissue touches the board (VLAW, 5.1)."""

    name = "erase"
    instructions = (
        "erase the red marks on the whiteboard with the tissue",
        "wipe the blue marks off the whiteboard",
        "clean the black marks off the whiteboard with the tissue",
    )

    def __init__(self) -> None:
        self.board = Canvas()
        self.canvas: Pixels | None = self.board.pixels
        self.initial = 0  # texels of ink at the start

    def build(self, spec: mujoco.MjSpec) -> None:
        canvas.add_board(spec)
        body = spec.worldbody.add_body(name=TISSUE, pos=[*START, TISSUE_HALF[2]])
        body.add_freejoint(name=TISSUE)
        body.add_geom(
            name=TISSUE,
            type=mujoco.mjtGeom.mjGEOM_BOX,
            size=TISSUE_HALF,
            rgba=[0.98, 0.80, 0.25, 1.0],
            mass=0.03,
            condim=4,
            friction=[0.4, 0.01, 0.0001],
        )

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        spread = np.array(START_SPREAD)
        start = np.array(START) + rng.uniform(-spread, spread)
        sim.place(TISSUE, np.append(start, TISSUE_HALF[2] + 0.001))
        colour = COLOURS[self.instructions.index(sim.instruction)]
        self.board.clean()
        self.board.stroke(random_mark(rng), STROKE_RADIUS, canvas.INK[colour])
        self.initial = self.board.amount()

    def substep(self, sim: Simulation) -> None:
        if sim.touching(TISSUE, canvas.BOARD_GEOM):
            axes = sim.body_matrix(TISSUE)[:2, :2].T
            self.board.wipe(sim.body_position(TISSUE)[:2], axes, np.array(TISSUE_HALF[:2]))

    def success(self, sim: Simulation) -> bool:
        return self.board.amount() < LEFT_OVER * self.initial

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        """Grasp the tissue from above and sweep it along the marks until they are gone."""
        tissue = sim.body_position(TISSUE)
        tissue[2] = GRIP_HEIGHT
        yield from go(sim, tissue + 0.05 * UP, 0.25, Motion(tolerance=0.012, gain=1.6))
        yield from go(sim, tissue, 0.25, Motion(tolerance=0.005, gain=1.6))
        yield from hold(1.0, 8)
        yield from go(sim, tissue + 0.035 * UP, 1.0, Motion(tolerance=0.015, gain=1.6))
        path = self._sweep()
        height = GRIP_HEIGHT + canvas.TOP - PRESS
        yield from go(sim, path[0] + (height + 0.02) * UP, 1.0, Motion(0.014, gain=1.6))
        for round_trip in range(4):
            for point in path if round_trip % 2 == 0 else path[::-1]:
                yield from go(sim, point + height * UP, 1.0, Motion(0.013, 10, gain=1.6))
            if self.success(sim):
                break
        yield from go(sim, path[-1] + (height + 0.06) * UP, 1.0, Motion(0.02, 10, gain=1.6))

    def _sweep(self) -> Float[np.ndarray, "points 3"]:
        """Points above the marks, from large to small y, one every 2 cm or so."""
        rows, columns = np.nonzero(self.board.ink)
        x, y = np.diagonal(canvas.texel_centres(rows.astype(float), columns.astype(float)))
        slope, offset = np.polyfit(y, x, 1)
        stations = np.linspace(y.max(), y.min(), 6)
        return np.stack([slope * stations + offset, stations, np.zeros(6)], axis=1)
