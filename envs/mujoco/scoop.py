"""Task: scoop snacks out of a tray and pour them into a bowl."""

from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from envs.mujoco.experts import Motion, go
from envs.mujoco.rotations import matrix_from_euler, rotation_vector
from envs.mujoco.sim import ANGULAR, LINEAR, Simulation
from envs.mujoco.task import Cartesian, Task

SCOOP, HANDLE, TRAY, BOWL = "scoop", "handle", "tray", "bowl"
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
BUCKET_SIDE, BUCKET_BACK = 0.036, 0.045  # m, height of its walls
SHEET = 0.0015  # m, half the thickness of its walls
HANDLE_HALF = (0.012, 0.010, 0.040)  # m; flat sides, so that it cannot turn in the grip
HANDLE_CENTRE = (BUCKET_HALF[0] + 0.008, 0.0, 0.072)
GRIP_ABOVE = 0.076  # m, of the tool point above the scoop's floor
STEEL = (0.20, 0.35, 0.70, 1.0)
WOOD = (0.80, 0.70, 0.50, 1.0)
PORCELAIN = (0.92, 0.93, 0.97, 1.0)

LOADED, POURED = 0.25, -0.60  # rad, pitch of the scoop while it carries and when it is empty
GAIN = 1.6  # of the expert's servo on the distance


@dataclass(frozen=True, slots=True)
class Waypoint:
    """Where the middle of the scoop's floor should go (m) and with which pitch (rad, + lifts the
    lip). Reached within ``tolerance`` m or given up after ``ticks``."""

    point: tuple[float, float, float]
    pitch: float
    tolerance: float
    ticks: int


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
        sim.place(SCOOP, tray + np.array([back, rng.uniform(-0.003, 0.003), FLOOR + 0.001]))
        for index, place in enumerate(rng.permutation(SNACKS)):
            column, row = divmod(int(place), 3)
            x = -TRAY_HALF[0] + 0.013 + 0.025 * column
            y = 0.026 * (row - 1)
            shake = rng.uniform(-0.0008, 0.0008, 3)
            height = FLOOR + SNACK_RADIUS + 0.002
            sim.place(f"snack{index}", tray + shake + np.array([x, y, height]))

    def in_bowl(self, sim: Simulation) -> int:
        """How many snacks lie inside the bowl's radius with their centres below its rim; what is
        still in the scoop does not count."""
        places = np.array([sim.body_position(f"snack{index}") for index in range(SNACKS)])
        x, y, z = (places - sim.body_position(BOWL)).T
        inside = (np.hypot(x, y) < BOWL_RADIUS) & (z < BOWL_HEIGHT)
        in_scoop = (places - sim.body_position(SCOOP)) @ sim.body_matrix(SCOOP)
        loaded = (np.abs(in_scoop[:, :2]) < BUCKET_HALF).all(1) & (
            np.abs(in_scoop[:, 2] - BUCKET_BACK / 2) < BUCKET_BACK / 2
        )
        return int((inside & ~loaded).sum())

    def success(self, sim: Simulation) -> bool:
        return self.in_bowl(sim) >= ENOUGH

    def expert(self, sim: Simulation) -> Iterator[Cartesian]:
        """Take the handle from above, drag the scoop through the tray, tip it back, carry, pour."""
        start = sim.body_position(SCOOP)
        tray, bowl = sim.body_position(TRAY), sim.body_position(BOWL)
        grip = start + np.array([HANDLE_CENTRE[0], 0.0, GRIP_ABOVE])
        yield from go(sim, grip + np.array([0.0, 0.0, 0.06]), 0.4, Motion(0.012, gain=1.6))
        yield from go(sim, grip, 0.4, Motion(0.006))
        yield from go(sim, grip, 1.0, Motion(0.0, 9))
        near = tray[0] - TRAY_HALF[0] + BUCKET_HALF[0]
        side = float(start[1])
        for waypoint in (
            Waypoint((near + 0.020, side, FLOOR), 0.0, 0.008, 25),
            Waypoint((near + 0.020, side, 0.030), LOADED, 0.012, 12),
            Waypoint((near + 0.030, side, 0.100), LOADED, 0.020, 20),
            Waypoint((bowl[0] + 0.03, bowl[1], 0.105), LOADED, 0.020, 30),
            Waypoint((bowl[0] + 0.03, bowl[1], 0.095), POURED, 0.0, 20),
        ):
            if not sim.gripper_touches(HANDLE):
                return  # without the scoop there is nothing to steer by
            yield from _carry(sim, waypoint)


def _carry(sim: Simulation, to: Waypoint) -> Iterator[Cartesian]:
    """Servo the grasped scoop itself to a pose, so that a slip in the grip is made good."""
    wanted = matrix_from_euler(np.array([0.0, to.pitch, 0.0]))
    for tick in range(to.ticks):
        place = sim.body_position(SCOOP)
        error = np.array(to.point) - place
        if tick > 0 and float(np.linalg.norm(error)) < to.tolerance:
            return
        spin = rotation_vector(wanted @ sim.body_matrix(SCOOP).T)
        spin = np.clip(spin, -ANGULAR, ANGULAR)
        # the hand must swing about the scoop by as much as it turns in this tick
        motion = GAIN * error + np.cross(spin, sim.pose()[:3] - place)
        yield np.concatenate([np.clip(motion / LINEAR, -1.0, 1.0), spin / ANGULAR, [1.0]])


def _add_wall(body: mujoco.MjsBody, centre: list[float], half: list[float]) -> mujoco.MjsGeom:
    return body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, pos=centre, size=half, friction=[0.3, 0.005, 0.0001]
    )


def _add_tray(spec: mujoco.MjSpec) -> None:
    body = spec.worldbody.add_body(name=TRAY, mocap=True)
    x, y, thick, high = *TRAY_HALF, 0.004, TRAY_WALL / 2
    _add_wall(body, [0.0, 0.0, FLOOR / 2], [x, y, FLOOR / 2])
    for side in (-1, 1):
        _add_wall(body, [side * (x + thick), 0.0, high], [thick, y + 2 * thick, high])
        _add_wall(body, [0.0, side * (y + thick), high], [x, thick, high])
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
    walls = [_add_wall(body, [0.0, 0.0, SHEET], [x, y, SHEET])]
    for side in (-1, 1):
        place = [0.0, side * (y + SHEET), BUCKET_SIDE / 2]
        walls.append(_add_wall(body, place, [x, SHEET, BUCKET_SIDE / 2]))
    walls.append(
        _add_wall(body, [x + SHEET, 0.0, BUCKET_BACK / 2], [SHEET, y + 2 * SHEET, BUCKET_BACK / 2])
    )
    for wall, mass in zip(walls, (0.03, 0.004, 0.004, 0.006), strict=True):
        wall.mass, wall.rgba = mass, STEEL
    body.add_geom(
        name=HANDLE,
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
