"""Forward kinematics of the Franka Panda: joint angles to the flange pose that DROID records."""

import numpy as np
from jaxtyping import Float, Float32

from contracts.panda import DH_ROWS, FLANGE_OFFSET

_ROWS = (*DH_ROWS, (0.0, FLANGE_OFFSET, 0.0))  # of joints 1-7 and the flange


def flange_transform(
    joint_position: Float[np.ndarray, "*batch 7"],
) -> Float[np.ndarray, "*batch 4 4"]:
    """Homogeneous transform base -> flange (link 8) of joint angles in rad, float64.

    The hand's own -pi/4 is not part of it: that is what DROID's ``cartesian_position`` means.
    Source: Ctrl-World ``scripts/rollout_interact_pi.py`` (get_fk_solution), Franka's data sheet.
    """
    return link_transforms(joint_position)[-1]


def link_transforms(
    joint_position: Float[np.ndarray, "*batch 7"],
) -> list[Float[np.ndarray, "*batch 4 4"]]:
    """Homogeneous transforms base -> frames of links 1-7 and the flange; joint i turns about z of
    link i."""
    joints = np.asarray(joint_position, np.float64)
    angles = np.concatenate([joints, np.zeros((*joints.shape[:-1], 1))], axis=-1)
    total = np.broadcast_to(np.eye(4), (*joints.shape[:-1], 4, 4))
    found = []
    for index, row in enumerate(_ROWS):
        total = total @ _link(row, angles[..., index])
        found.append(total)
    return found


def flange_jacobian(
    joint_position: Float[np.ndarray, "*batch 7"],
) -> Float[np.ndarray, "*batch 6 7"]:
    """Linear [m/rad] and angular velocity of the flange per joint velocity, base frame, float64."""
    *joints, flange = link_transforms(joint_position)
    axes = np.stack([link[..., :3, 2] for link in joints], axis=-1)
    arms = np.stack([flange[..., :3, 3] - link[..., :3, 3] for link in joints], axis=-1)
    return np.concatenate([np.cross(axes, arms, axis=-2), axes], axis=-2)


def flange_frame(
    joint_position: Float[np.ndarray, "*batch 7"],
) -> Float[np.ndarray, "*batch 7 7"]:
    """Matrix from joint velocities to those of the flange and of the elbow, float64.

    Rows 0-5 are the Jacobian; the last is the unit vector of the motion that leaves the flange
    where it is. That follows the joints without a jump, as the minors of the Jacobian do, so the
    matrix can be inverted anywhere but at a singular posture.
    """
    jacobian = flange_jacobian(joint_position)
    minors = [
        (-1) ** joint * np.linalg.det(np.delete(jacobian, joint, axis=-1))
        for joint in range(jacobian.shape[-1])
    ]
    elbow = np.stack(minors, axis=-1)
    elbow = elbow / np.maximum(np.linalg.norm(elbow, axis=-1, keepdims=True), 1e-9)
    return np.concatenate([jacobian, elbow[..., None, :]], axis=-2)


def _link(row: tuple[float, float, float], theta: np.ndarray) -> np.ndarray:
    """Craig's convention: Rx(alpha) Tx(a) Rz(theta) Tz(d)."""
    a, d, alpha = row
    cos, sin, ca, sa = np.cos(theta), np.sin(theta), np.cos(alpha), np.sin(alpha)
    link = np.zeros((*theta.shape, 4, 4))
    link[..., 0, 0], link[..., 0, 1], link[..., 0, 3] = cos, -sin, a
    link[..., 1, 0], link[..., 1, 1] = sin * ca, cos * ca
    link[..., 2, 0], link[..., 2, 1] = sin * sa, cos * sa
    link[..., 1, 2], link[..., 2, 2] = -sa, ca
    link[..., 1, 3], link[..., 2, 3] = -sa * d, ca * d
    link[..., 3, 3] = 1.0
    return link


def euler_from_rotation(
    rotation: Float[np.ndarray, "*batch 3 3"],
) -> Float[np.ndarray, "*batch 3"]:
    """Extrinsic xyz angles [rad] of rotation matrices, as scipy's ``as_euler('xyz')``."""
    x = np.arctan2(rotation[..., 2, 1], rotation[..., 2, 2])
    y = np.arctan2(-rotation[..., 2, 0], np.hypot(rotation[..., 0, 0], rotation[..., 1, 0]))
    z = np.arctan2(rotation[..., 1, 0], rotation[..., 0, 0])
    return np.stack([x, y, z], axis=-1)


def rotation_from_euler(
    angles: Float[np.ndarray, "*batch 3"],
) -> Float[np.ndarray, "*batch 3 3"]:
    """Rotation matrices Rz Ry Rx of extrinsic xyz angles [rad], float64."""
    x, y, z = np.moveaxis(np.asarray(angles, np.float64), -1, 0)
    cx, sx, cy, sy, cz, sz = np.cos(x), np.sin(x), np.cos(y), np.sin(y), np.cos(z), np.sin(z)
    rows = [
        [cz * cy, cz * sy * sx - sz * cx, cz * sy * cx + sz * sx],
        [sz * cy, sz * sy * sx + cz * cx, sz * sy * cx - cz * sx],
        [-sy, cy * sx, cy * cx],
    ]
    return np.stack([np.stack(row, axis=-1) for row in rows], axis=-2)


def flange_pose(joint_position: Float[np.ndarray, "*batch 7"]) -> Float[np.ndarray, "*batch 6"]:
    """Flange x, y, z [m] and extrinsic xyz Euler angles [rad] of joint angles [rad], float64.

    Equals DROID's recorded ``cartesian_position`` within 0.01 mm.
    """
    transform = flange_transform(joint_position)
    return np.concatenate(
        [transform[..., :3, 3], euler_from_rotation(transform[..., :3, :3])], axis=-1
    )


def world_model_pose(
    joint_position: Float[np.ndarray, "*batch 7"], gripper_position: Float[np.ndarray, "*batch"]
) -> Float32[np.ndarray, "*batch 7"]:
    """Flange pose and gripper: the row that a world model is conditioned on."""
    gripper = np.asarray(gripper_position, np.float64)[..., None]
    return np.concatenate([flange_pose(joint_position), gripper], axis=-1).astype(np.float32)


def pose_features(pose: Float[np.ndarray, "*batch 7"]) -> Float32[np.ndarray, "*batch 10"]:
    """Position [m], the first two columns of the rotation, and the gripper.

    Unlike Euler angles these never jump: a Panda that points down has a roll near +-pi.
    """
    rotation = rotation_from_euler(pose[..., 3:6])
    columns = [pose[..., :3], rotation[..., :, 0], rotation[..., :, 1], pose[..., 6:7]]
    return np.concatenate(columns, axis=-1).astype(np.float32)
