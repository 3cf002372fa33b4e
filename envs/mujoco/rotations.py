"""The few rotations that the arm needs: DROID's Euler angles, matrices and rotation vectors."""

import math

import numpy as np
from jaxtyping import Float


def matrix_from_euler(angles: Float[np.ndarray, " 3"]) -> Float[np.ndarray, "3 3"]:
    """Rotation matrix of extrinsic x-y-z Euler angles in rad, as DROID writes poses."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(angles), np.cos(angles)
    return np.array(
        [
            [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
            [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
            [-sy, cy * sx, cy * cx],
        ]
    )


def euler_from_matrix(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 3"]:
    """Extrinsic x-y-z Euler angles in rad; the inverse of ``matrix_from_euler``.

    At a pitch of +-90 degrees roll and yaw are not unique and this returns yaw 0.
    """
    (a, _, _), (d, e, f), (g, h, i) = matrix.tolist()
    cos_pitch = math.hypot(a, d)
    if cos_pitch < 1e-9:
        return np.array([math.atan2(-f, e), math.atan2(-g, cos_pitch), 0.0])
    return np.array([math.atan2(h, i), math.atan2(-g, cos_pitch), math.atan2(d, a)])


def rotation_vector(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 3"]:
    """Axis times angle in rad, angle in [0, pi)."""
    skew = np.array(
        [matrix[2, 1] - matrix[1, 2], matrix[0, 2] - matrix[2, 0], matrix[1, 0] - matrix[0, 1]]
    )
    sine = 0.5 * math.sqrt(float(skew @ skew))
    angle = math.atan2(sine, 0.5 * (float(np.trace(matrix)) - 1.0))
    return 0.5 * skew if sine < 1e-9 else skew * (0.5 * angle / sine)


def quaternion_from_matrix(matrix: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, " 4"]:
    """Unit quaternion w, x, y, z with w >= 0, valid away from angles of exactly pi."""
    w = 0.5 * math.sqrt(max(1.0 + float(np.trace(matrix)), 0.0))
    if w > 1e-3:
        x, y, z = (
            (matrix[2, 1] - matrix[1, 2]) / (4 * w),
            (matrix[0, 2] - matrix[2, 0]) / (4 * w),
            (matrix[1, 0] - matrix[0, 1]) / (4 * w),
        )
        return np.array([w, x, y, z])
    values, vectors = np.linalg.eigh(0.5 * (matrix + matrix.T))
    return np.array([0.0, *vectors[:, int(np.argmax(values))]])


def yaw_quaternion(angle: float) -> Float[np.ndarray, " 4"]:
    """Quaternion w, x, y, z of a turn by ``angle`` rad about the vertical."""
    return np.array([math.cos(angle / 2), 0.0, 0.0, math.sin(angle / 2)])
