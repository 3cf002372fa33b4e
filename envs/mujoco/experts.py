"""Scripted experts: motions of the tool as generators, and episodes recorded from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from envs.mujoco.panda import TOOL_POINT
from envs.mujoco.rotations import matrix_from_euler, rotation_vector
from envs.mujoco.sim import ANGULAR, LINEAR, Simulation

Point = Float64[np.ndarray, " 3"]
DOWN = matrix_from_euler(np.array([np.pi, 0.0, 0.0]))  # the flange looks at the table


@dataclass(frozen=True, slots=True)
class Motion:
    """How a tool motion ends and how hard it is driven.

    It ends within ``tolerance`` m of the point or after ``ticks``. ``yaw`` turns the gripper about
    the vertical, ``tilt`` about the base's x and y axes (rad). ``gain`` multiplies the remaining
    distance in units of ``LINEAR``.
    """

    tolerance: float = 0.004
    ticks: int = 60
    yaw: float = 0.0
    tilt: tuple[float, float] = (0.0, 0.0)
    gain: float = 1.0


def tool_position(sim: Simulation) -> Point:
    """Middle of the pads for a gripper that points straight down."""
    return sim.pose()[:3] - np.array([0.0, 0.0, TOOL_POINT])


def go(
    sim: Simulation,
    target: Point | Callable[[], Point],
    gripper: float,
    motion: Motion = Motion(),  # noqa: B008 (frozen)
) -> Iterator[Float64[np.ndarray, " 7"]]:
    """Move the tool point to ``target`` (m, base frame; a callable is asked again every tick)."""
    turn = matrix_from_euler(np.array([*motion.tilt, motion.yaw])) @ DOWN
    for tick in range(motion.ticks):
        point = target() if callable(target) else target
        flange = point - TOOL_POINT * turn[:, 2]
        missing = flange - sim.pose()[:3]
        if tick > 0 and float(np.linalg.norm(missing)) < motion.tolerance:
            return
        rotation = rotation_vector(turn @ sim.flange_matrix().T)
        linear = np.clip(motion.gain * missing / LINEAR, -1.0, 1.0)
        yield np.concatenate([linear, np.clip(0.8 * rotation / ANGULAR, -1.0, 1.0), [gripper]])


def hold(gripper: float, ticks: int) -> Iterator[Float64[np.ndarray, " 7"]]:
    """Stand still for ``ticks`` while the gripper moves."""
    for _ in range(ticks):
        yield np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])
