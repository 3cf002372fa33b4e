"""A Panda under DROID's impedance law with friction: seven joints and a few fitted parameters.

DROID turns a joint velocity v into the target q + 0.2 v, anchored anew at the measured q in every
15 Hz tick, and soft springs pull the arm there (``contracts/panda.py``). Friction makes it
lag far behind: on real episodes an arm makes a quarter of what it is asked for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64

from contracts.constants import CONTROL_HZ, NUM_JOINTS, RAD_PER_TICK
from contracts.kinematics import link_transforms
from contracts.panda import (
    CARTESIAN_DAMPING,
    CARTESIAN_STIFFNESS,
    FLANGE_OFFSET,
    INERTIALS,
    JOINT_DAMPING,
    JOINT_STIFFNESS,
    Inertial,
)
from models.motion import MotionWindows

SUBSTEPS = 3  # implicit Euler steps per tick
STICTION_SPEED = 0.02  # rad/s below which Coulomb friction fades out
# Robotiq 2F-85, wrist camera and mount, in the frame of link 7
_TOOL = Inertial(1.1, (0.0, 0.0, FLANGE_OFFSET + 0.05), (1.2e-3, 1e-3, 8e-4, 0.0, 0.0, 0.0))
_FIT_WINDOWS = 120  # more are thinned evenly
_FIT_TICKS = np.array([0, 3, 7, 11, 14])
_JOINT_WEIGHT = np.sqrt(np.array([1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.3]))  # of the flange's error
_PRIOR_WEIGHT = 0.02  # rad of error that one unit of a parameter's deviation counts as
_ITERATIONS = 5

# The fitted parameters, in one vector: ln of reflected motor inertia [kg m^2], of dry [Nm] and of
# viscous friction [Nm s/rad], the load that gravity compensation leaves over [Nm], and the speed at
# the first tick over that of the tick before. The defaults are round numbers, fitted to no arm.
_ROTOR, _DRY, _VISCOUS, _LOAD = (slice(start, start + NUM_JOINTS) for start in (0, 7, 14, 21))
_CARRY = 28
DEFAULTS = np.concatenate(
    [
        np.log(np.full(NUM_JOINTS, 0.3)),
        np.log([1.0, 1.0, 1.0, 1.0, 0.7, 0.7, 0.4]),
        np.log([1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5]),
        np.zeros(NUM_JOINTS),
        [1.0],
    ]
)


class ArmModel:
    """Predicts joint angles from a start, the motion there, and velocities to come."""

    def __init__(self, parameters: Float64[np.ndarray, " parameters"] = DEFAULTS) -> None:
        self.parameters = parameters

    @classmethod
    def fit(cls, windows: MotionWindows) -> "ArmModel":
        """Least squares over joint angles at five ticks, held near the defaults by a weak prior.

        Levenberg-Marquardt from the defaults; deterministic.
        """
        windows = windows.thinned(_FIT_WINDOWS)
        law = _Law.at(windows.joint_position)
        ticks = np.minimum(_FIT_TICKS, windows.actions.shape[1] - 1)

        def residual(parameters: np.ndarray) -> np.ndarray:
            path = _simulate(parameters, law, windows.joint_motion, windows.actions)
            off = (path - windows.future_joints)[:, ticks] * _JOINT_WEIGHT
            return np.concatenate([off.ravel(), _PRIOR_WEIGHT * (parameters - DEFAULTS)])

        return cls(_least_squares(residual, DEFAULTS))

    def joints(
        self,
        start: Float[np.ndarray, "slot 7"],
        motion: Float[np.ndarray, "slot 7"],
        actions: Float[np.ndarray, "slot ticks columns"],
    ) -> Float64[np.ndarray, "slot ticks 7"]:
        """Joint angles [rad] after each tick. ``motion`` is the way [rad] of the tick before."""
        return _simulate(self.parameters, _Law.at(start), motion, actions)


@dataclass(frozen=True, slots=True)
class _Law:
    """The arm's equation at one posture, which is kept for the second that a chunk lasts."""

    start: Float64[np.ndarray, "slot 7"]
    inertia: Float64[np.ndarray, "slot 7 7"]  # of links and tool
    stiffness: Float64[np.ndarray, "slot 7 7"]
    damping: Float64[np.ndarray, "slot 7 7"]

    @classmethod
    def at(cls, joints: np.ndarray) -> "_Law":
        joints = joints.astype(np.float64)
        frames = link_transforms(joints)
        jacobian = np.concatenate(_jacobian(frames, NUM_JOINTS - 1, frames[-1][..., :3, 3]), axis=1)
        across = jacobian.swapaxes(1, 2)
        return cls(
            joints,
            _inertia(frames),
            (across * CARTESIAN_STIFFNESS) @ jacobian + np.diag(JOINT_STIFFNESS),
            (across * CARTESIAN_DAMPING) @ jacobian + np.diag(JOINT_DAMPING),
        )


def _jacobian(
    frames: list[np.ndarray], link: int, point: np.ndarray
) -> tuple[Float64[np.ndarray, "slot 3 7"], Float64[np.ndarray, "slot 3 7"]]:
    """How a point of ``link`` (0-6) moves and turns in the base's axes, per joint speed."""
    linear, angular = np.zeros((2, len(point), 3, NUM_JOINTS))
    for joint, frame in enumerate(frames[: link + 1]):
        axis = frame[:, :3, 2]
        linear[:, :, joint] = np.cross(axis, point - frame[:, :3, 3])
        angular[:, :, joint] = axis
    return linear, angular


def _inertia(frames: list[np.ndarray]) -> Float64[np.ndarray, "slot 7 7"]:
    """Joint-space inertia [kg m^2] of seven links and the tool: sum of m Jv'Jv + Jw' I Jw."""
    total = np.zeros((len(frames[0]), NUM_JOINTS, NUM_JOINTS))
    for link, body in [*enumerate(INERTIALS), (NUM_JOINTS - 1, _TOOL)]:
        turn = frames[link][:, :3, :3]
        linear, angular = _jacobian(frames, link, frames[link][:, :3, 3] + turn @ body.centre)
        xx, yy, zz, xy, xz, yz = body.inertia
        own = turn @ np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]) @ turn.swapaxes(1, 2)
        total += body.mass * linear.swapaxes(1, 2) @ linear
        total += angular.swapaxes(1, 2) @ own @ angular
    return total


def _simulate(
    parameters: np.ndarray, law: _Law, motion: np.ndarray, actions: np.ndarray
) -> Float64[np.ndarray, "slot ticks 7"]:
    """Implicit Euler in the speeds; dry friction counts as damping at the current speed."""
    step = 1.0 / (CONTROL_HZ * SUBSTEPS)
    dry, unit = np.exp(parameters[_DRY]), np.eye(NUM_JOINTS)
    inertia = law.inertia + np.diag(np.exp(parameters[_ROTOR]))
    damping = law.damping + np.diag(np.exp(parameters[_VISCOUS]))
    smooth = inertia + step * damping + step**2 * law.stiffness
    joints, speed = law.start, parameters[_CARRY] * motion.astype(np.float64) * CONTROL_HZ
    ask = RAD_PER_TICK * actions[..., :NUM_JOINTS].astype(np.float64)
    path = np.empty_like(ask)
    for tick in range(ask.shape[1]):
        target = joints + ask[:, tick]
        for _ in range(SUBSTEPS):
            friction = dry / np.sqrt(speed**2 + STICTION_SPEED**2)
            force = _times(law.stiffness, target - joints) + parameters[_LOAD]
            right = _times(inertia, speed) + step * force
            left = smooth + step * friction[:, :, None] * unit
            speed = np.linalg.solve(left, right[..., None])[..., 0]
            joints = joints + step * speed
        path[:, tick] = joints
    return path


def _times(matrix: np.ndarray, vector: np.ndarray) -> np.ndarray:
    """Row by row, so that a row's result does not depend on its neighbours."""
    return (matrix @ vector[..., None])[..., 0]


def _least_squares(
    residual: Callable[[np.ndarray], np.ndarray], start: np.ndarray
) -> Float64[np.ndarray, " parameters"]:
    """Levenberg-Marquardt with forward differences."""
    point, off, trust = start, residual(start), 1e-2
    for _ in range(_ITERATIONS):
        slope = np.stack([(residual(point + d) - off) / 1e-4 for d in 1e-4 * np.eye(len(point))], 1)
        gram, gradient = slope.T @ slope, slope.T @ off
        for _ in range(4):
            damped = gram + trust * np.diag(np.diag(gram) + 1e-9)
            moved = point - np.linalg.solve(damped, gradient)
            new = residual(moved)
            if new @ new < off @ off:
                break
            trust *= 5
        else:
            break
        settled = new @ new > (1 - 1e-4) * (off @ off)
        point, off, trust = moved, new, trust / 3
        if settled:
            break
    return point
