"""Task: scoop snacks out of a tray and pour them into a bowl."""

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Float64

from envs.mujoco.experts import DOWN, Motion, go, hold, tool_position
from envs.mujoco.rotations import matrix_from_euler
from envs.mujoco.sim import Simulation
from envs.mujoco.task import Cartesian, Task

SCOOP, TRAY, BOWL = "scoop", "tray", "bowl"
SNACKS = 12
ENOUGH = 4  # snacks in the bowl
SNACK_RADIUS = 0.012  # m
SNACK_COLOURS = ((0.95, 0.55, 0.10, 1.0), (0.85, 0.12, 0.10, 1.0), (0.98, 0.85, 0.20, 1.0))
ROLLING = 1e-5  # Nm s/rad; stops a rolling snack within 0.1 s
TRAY_PLACE, BOWL_PLACE = (0.47, 0.10), (0.47, -0.09)  # m, middle of where they stand
SPREAD = 0.015  # m
TRAY_HALF = (0.085, 0.044)  # m, inside
TRAY_WALL = 0.030  # m, its height
FLOOR = 0.004  # m, thickness of the bottoms of tray and bowl
BOWL_RADIUS, BOWL_HEIGHT, BOWL_SIDES = 0.062, 0.045, 10  # m
BUCKET_HALF = (0.027, 0.034)  # m, inside of the scoop
BUCKET_SIDE, BUCKET_BACK = 0.030, 0.045  # m, height of its walls
SHEET = 0.0015  # m, half the thickness of its walls
HANDLE_HALF = (0.012, 0.010, 0.040)  # m; flat sides, so that it cannot turn in the grip
HANDLE_CENTRE = (BUCKET_HALF[0] + 0.008, 0.0, 0.072)
GRIP_ABOVE = 0.088  # m, of the tool point above the scoop's floor
STEEL = (0.20, 0.35, 0.70, 1.0)
WOOD = (0.80, 0.70, 0.50, 1.0)
PORCELAIN = (0.92, 0.93, 0.97, 1.0)

Point = Float64[np.ndarray, " 3"]


@dataclass(frozen=True, slots=True)
class Pose:
    """Where the middle of the scoop's floor should be (m) and its pitch (rad, + lifts the lip)."""

    point: Point
    pitch: float = 0.0


class Scoop(Task):
    """At least four snacks lie in the bowl, below its rim. The scoop opens towards the robot."""

    name = "scoop"
    instructions = (
        "scoop the snacks into the bowl",
        "use the scoop to put some snacks in the bowl",
        "pour a scoop of snacks into the white bowl",
    )

    def build(self, spec: mujoco.MjSpec) -> None:
        _add_tray(spec)
        _add_bowl(spec)
        _add_scoop(spec)
        for index in range(SNACKS):
            _add_snack(spec, index)

    def reset(self, sim: Simulation, rng: np.random.Generator) -> None:
        tray = np.append(np.array(TRAY_PLACE) + rng.uniform(-SPREAD, SPREAD, 2), 0.0)
        bowl = np.append(np.array(BOWL_PLACE) + rng.uniform(-SPREAD, SPREAD, 2), 0.0)
        sim.place(TRAY, tray)
        sim.place(BOWL, bowl)
        back = TRAY_HALF[0] - BUCKET_HALF[0] - 0.008
        sim.place(SCOOP, tray + [back, rng.uniform(-0.003, 0.003), FLOOR + 0.001])
        for index, place in enumerate(rng.permutation(SNACKS)):
            column, row = divmod(int(place), 3)
            x = -TRAY_HALF[0] + 0.013 + 0.025 * column
            y = 0.026 * (row - 1)
            shake = rng.uniform(-0.0008, 0.0008, 3)
            height = FLOOR + SNACK_RADIUS + 0.002
            sim.place(f"snack{index}", tray + [x, y, height] + shake)

    def in_bowl(self, sim: Simulation) -> int:
        """How many snacks lie inside the bowl's radius with their centres below its rim."""
        bowl = sim.body_position(BOWL)
        places = np.array([sim.body_position(f"snack{index}") for index in range(SNACKS)]) - bowl
        inside = np.hypot(places[:, 0], places[:, 1]) < BOWL_RADIUS
        return int((inside & (places[:, 2] < BOWL_HEIGHT)).sum())

    def success(self, sim: Simulation) -> bool:
        return self.in_bowl(sim) >= ENOUGH

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        """Grasp the handle from above, drag the scoop through the tray, tip it back, carry, pour."""
        start = sim.body_position(SCOOP)
        tray, bowl = sim.body_position(TRAY), sim.body_position(BOWL)
        grip = start + [HANDLE_CENTRE[0], 0.0, GRIP_ABOVE]
        yield from go(sim, grip + [0, 0, 0.06], 0.4, Motion(0.012, gain=1.6))
        yield from go(sim, grip, 0.4, Motion(0.005, gain=1.6))
        yield from hold(1.0, 10)
        held = tool_position(sim) - sim.body_position(SCOOP)
        near = tray[0] - TRAY_HALF[0] + BUCKET_HALF[0]
        for pose, motion in (
            (Pose(np.array([near + 0.012, start[1], FLOOR])), Motion(0.006, 25, gain=1.6)),
            (Pose(np.array([near + 0.004, start[1], 0.020]), 0.35), Motion(0.012, 12, gain=1.6)),
            (Pose(np.array([near + 0.02, start[1], 0.085]), 0.40), Motion(0.015, 20, gain=1.6)),
            (Pose(bowl + [0.02, 0, 0.095], 0.40), Motion(0.015, 30, gain=1.6)),
            (Pose(bowl + [0.03, 0, 0.085], -0.85), Motion(0.0, 25, gain=1.6)),
        ):
            yield from _carry(sim, held, pose, motion)


def _carry(sim: Simulation, held: Point, pose: Pose, motion: Motion) -> Iterator[Cartesian]:
    """Move the grasped scoop to a pose; ``held`` is the tool point less the scoop, upright."""
    target = pose.point + matrix_from_euler(np.array([0.0, pose.pitch, 0.0])) @ held
    tilted = Motion(motion.tolerance, motion.ticks, tilt=(0.0, pose.pitch), gain=motion.gain)
    yield from go(sim, target, 1.0, tilted)


def _add_wall(body: mujoco.MjsBody, centre: list[float], half: list[float]) -> mujoco.MjsGeom:
    return body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, pos=centre, size=half, friction=[0.3, 0.005, 0.0001]
    )


def _add_tray(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name=TRAY, mocap=True)
    x, y, thick, high = *TRAY_HALF, 0.004, TRAY_WALL / 2
    _add_wall(body, [0, 0, FLOOR / 2], [x, y, FLOOR / 2])
    for side in (-1, 1):
        _add_wall(body, [side * (x + thick), 0, high], [thick, y + 2 * thick, high])
        _add_wall(body, [0, side * (y + thick), high], [x, thick, high])
    for geom in body.geoms:
        geom.rgba = WOOD


def _add_bowl(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name=BOWL, mocap=True)
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=[0, 0, FLOOR / 2], size=[BOWL_RADIUS, FLOOR / 2, 0]
    )
    width = BOWL_RADIUS * np.tan(np.pi / BOWL_SIDES) + 0.001
    for angle in np.arange(BOWL_SIDES) * 2 * np.pi / BOWL_SIDES:
        middle = BOWL_RADIUS + 0.003
        place = [middle * np.cos(angle), middle * np.sin(angle), BOWL_HEIGHT / 2]
        wall = _add_wall(body, place, [0.003, width, BOWL_HEIGHT / 2])
        wall.quat = [np.cos(angle / 2), 0, 0, np.sin(angle / 2)]
    for geom in body.geoms:
        geom.rgba = PORCELAIN


def _add_scoop(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name=SCOOP)
    body.add_freejoint(name=SCOOP)
    x, y = BUCKET_HALF
    walls = [_add_wall(body, [0, 0, SHEET], [x, y, SHEET])]
    for side in (-1, 1):
        place = [0, side * (y + SHEET), BUCKET_SIDE / 2]
        walls.append(_add_wall(body, place, [x, SHEET, BUCKET_SIDE / 2]))
    walls.append(
        _add_wall(body, [x + SHEET, 0, BUCKET_BACK / 2], [SHEET, y + 2 * SHEET, BUCKET_BACK / 2])
    )
    for wall, mass in zip(walls, (0.03, 0.004, 0.004, 0.006), strict=True):
        wall.mass, wall.rgba = mass, STEEL
    body.add_geom(
        name="handle",
        type=mujoco.mjtGeom.mjGEOM_BOX,
        pos=HANDLE_CENTRE,
        size=HANDLE_HALF,
        rgba=[0.15, 0.15, 0.18, 1.0],
        mass=0.012,
        condim=6,
        friction=[1.5, 0.05, 0.002],
    )


def _add_snack(spec: mujoco.MjSpec, index: int) -> None:
    body = spec.worldbody.add_body(name=f"snack{index}")
    joint = body.add_freejoint(name=f"snack{index}")
    joint.damping = [ROLLING, 0, 0]
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_SPHERE,
        size=[SNACK_RADIUS, 0, 0],
        rgba=SNACK_COLOURS[index % len(SNACK_COLOURS)],
        mass=0.004,
        friction=[0.3, 0.005, 0.0001],
    )
