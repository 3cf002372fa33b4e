"""Scripted experts: motions of the tool as generators, and episodes recorded from them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float64

from contracts.constants import TICKS_PER_FRAME
from contracts.protocols import RobotEnv
from contracts.types import Provenance, RobotState, Trajectory
from envs.mujoco.panda import TOOL_POINT
from envs.mujoco.rotations import matrix_from_euler, rotation_vector
from envs.mujoco.sim import ANGULAR, LINEAR, Simulation

NOISE_MEMORY = 0.8  # share of the noise that lasts to the next tick
HOLD_TICKS = 6  # standing still after the expert is done

Point = Float64[np.ndarray, " 3"]
Cartesian = Float64[np.ndarray, " 7"]
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
    motion: Motion = Motion(),
) -> Iterator[Cartesian]:
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


def hold(gripper: float, ticks: int) -> Iterator[Cartesian]:
    """Stand still for ``ticks`` while the gripper moves."""
    for _ in range(ticks):
        yield np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, gripper])


@runtime_checkable
class Script(Protocol):
    """The part of a task that a demonstration needs."""

    @property
    def max_ticks(self) -> int: ...

    def expert(self, sim: Simulation) -> Iterator[Cartesian]: ...


@runtime_checkable
class ScriptedRobot(RobotEnv, Protocol):
    """A robot whose running task and simulation a scripted expert may look into."""

    def script(self) -> tuple[Script, Simulation]: ...

    def privileged_success(self) -> bool: ...


def demonstrate(
    robot: ScriptedRobot, task: str, seed: int, noise: float = 0.0, intended: bool = False
) -> tuple[Trajectory, bool]:
    """Run the scripted expert for one episode; returns what was executed and whether it succeeded.

    ``noise`` is the standard deviation per tick of autoregressive noise (memory 0.8) on the
    cartesian velocity. The noisy action is the one recorded, or with ``intended`` what the expert
    wanted in its place: what a policy should do in states that it would not have come to by itself
    (DART, Laskey et al. 2017). Ends as "done" a few ticks after the expert, or as "timeout" at the
    task's longest episode. Equal arguments give equal episodes.
    """
    instruction = robot.reset(task, seed)
    script, sim = robot.script()
    rng = np.random.default_rng([seed, 1])
    frames = [robot.observe().images]
    states = [sim.state()]
    actions: list[np.ndarray] = []
    disturbance = np.zeros(6)
    for wanted in _with_rest(script.expert(sim)):
        if len(actions) == script.max_ticks:
            ending = "timeout"
            break
        disturbance = NOISE_MEMORY * disturbance + rng.normal(0.0, noise, 6)
        twist = np.clip(wanted[:6] + disturbance, -1.0, 1.0)
        command = sim.cartesian_to_joint_velocity(np.append(twist, wanted[6])).astype(np.float32)
        wish = sim.cartesian_to_joint_velocity(wanted).astype(np.float32)
        actions.append(wish if intended else command)
        states.append(robot.step(command))
        if len(actions) % TICKS_PER_FRAME == 0:
            frames.append(robot.observe().images)
    else:
        ending = "done"
    provenance = Provenance(f"demo-{task}-{seed}", "demo", task, 0, seed)
    trajectory = Trajectory(
        provenance, instruction, np.stack(actions), *_columns(states), np.stack(frames), ending
    )
    return trajectory, robot.privileged_success()


def _with_rest(expert: Iterator[Cartesian]) -> Iterator[Cartesian]:
    """The expert's actions, then a few ticks of standing still with the same grip."""
    gripper = 0.0
    for action in expert:
        gripper = float(action[6])
        yield action
    yield from hold(gripper, HOLD_TICKS)


def _columns(states: list[RobotState]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return (
        np.stack([state.joint_position for state in states]),
        np.array([state.gripper_position for state in states], np.float32),
        np.stack([state.cartesian_position for state in states]),
    )
