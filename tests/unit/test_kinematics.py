"""Panda forward kinematics against its geometry and against poses that DROID recorded."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from contracts.kinematics import (
    euler_from_rotation,
    flange_frame,
    flange_jacobian,
    flange_pose,
    flange_transform,
    pose_features,
    rotation_from_euler,
    world_model_pose,
)
from contracts.panda import RESET_JOINTS

ROOT = Path(__file__).parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))


def about(axis: int, angle: float) -> np.ndarray:
    """Rodrigues' formula for a coordinate axis."""
    across = np.cross(np.eye(3), np.eye(3)[axis])
    return np.eye(3) + np.sin(angle) * across + (1 - np.cos(angle)) * across @ across


def test_the_straight_arm_stands_where_its_link_lengths_say():
    transform = flange_transform(np.zeros(7))
    height = 0.333 + 0.316 + 0.384 - 0.107
    np.testing.assert_allclose(transform[:3, 3], [0.088, 0.0, height], atol=1e-12)
    np.testing.assert_allclose(transform[:3, :3], np.diag([1.0, -1.0, -1.0]), atol=1e-12)


def test_the_first_joint_turns_everything_about_the_vertical():
    rng = np.random.default_rng(0)
    joints = rng.uniform(-2, 2, (5, 7))
    turned = joints + np.eye(7)[0] * 0.7
    quarter = about(2, 0.7)
    before, after = flange_transform(joints), flange_transform(turned)
    np.testing.assert_allclose(after[:, :3, 3], before[:, :3, 3] @ quarter.T, atol=1e-12)
    np.testing.assert_allclose(after[:, :3, :3], quarter @ before[:, :3, :3], atol=1e-12)


def test_euler_angles_turn_about_fixed_x_then_y_then_z():
    rng = np.random.default_rng(1)
    angles = rng.uniform([-3.1, -1.5, -3.1], [3.1, 1.5, 3.1], (50, 3))
    turned = np.stack([about(2, z) @ about(1, y) @ about(0, x) for x, y, z in angles])
    np.testing.assert_allclose(rotation_from_euler(angles), turned, atol=1e-12)
    np.testing.assert_allclose(euler_from_rotation(turned), angles, atol=1e-9)


def test_pose_features_do_not_jump_where_the_roll_wraps():
    pose = np.array([[0.5, 0.1, 0.3, np.pi - 1e-4, 0.0, 0.0, 1.0]])
    wrapped = pose.copy()
    wrapped[0, 3] = -np.pi + 1e-4
    expected = [0.5, 0.1, 0.3, 1, 0, 0, 0, -1, 0, 1]
    np.testing.assert_allclose(pose_features(pose)[0], expected, atol=2e-4)
    np.testing.assert_allclose(pose_features(pose), pose_features(wrapped), atol=3e-4)


def test_world_model_pose_appends_the_gripper():
    joints = np.zeros((2, 7))
    pose = world_model_pose(joints, np.array([0.0, 0.6]))
    np.testing.assert_allclose(pose[:, :6], flange_pose(joints), atol=1e-6)
    np.testing.assert_allclose(pose[:, 6], [0.0, 0.6], atol=1e-6)


def turned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Angle [rad] between rotations that are given by extrinsic xyz angles."""
    off = rotation_from_euler(one) - rotation_from_euler(other)
    return 2 * np.arcsin(np.linalg.norm(off, axis=(-2, -1)) / np.sqrt(8))


@pytest.mark.shared
def test_droid_recorded_the_flange_within_a_hundredth_of_a_millimetre():
    files = sorted(SAMPLE.glob("annotation/*/*.json"))
    assert files, f"{SAMPLE} holds no DROID episodes"
    for file in files:
        episode = json.loads(file.read_text())
        recorded = np.array(episode["observation.state.cartesian_position"])
        pose = flange_pose(np.array(episode["observation.state.joint_position"]))
        away = np.linalg.norm(pose[:, :3] - recorded[:, :3], axis=1)
        assert away.max() < 1e-5, file
        assert turned(pose[:, 3:], recorded[:, 3:]).max() < 1e-4, file


@pytest.mark.shared
def test_another_rig_recorded_it_so_too():
    """Its files hold 5 Hz rows: states are pose and gripper, joints end in the gripper."""
    files = sorted((SAMPLE.parent / "droid_new_setup").glob("annotation/*/*.json"))
    for file in files:
        episode = json.loads(file.read_text())
        recorded = np.array(episode["states"])
        pose = flange_pose(np.array(episode["joints"])[:, :7])
        assert np.linalg.norm(pose[:, :3] - recorded[:, :3], axis=1).max() < 1e-5, file
        assert turned(pose[:, 3:], recorded[:, 3:6]).max() < 1e-4, file


def test_the_jacobian_is_the_derivative_of_the_flange():
    joints = RESET_JOINTS + np.random.default_rng(1).normal(0, 0.3, (6, 7))
    jacobian, step = flange_jacobian(joints), 1e-6
    for joint in range(7):
        moved = step * np.eye(7)[joint]
        after, before = flange_transform(joints + moved), flange_transform(joints - moved)
        linear = (after[:, :3, 3] - before[:, :3, 3]) / (2 * step)
        np.testing.assert_allclose(jacobian[:, :3, joint], linear, atol=1e-7)
        turn = (after[:, :3, :3] @ before[:, :3, :3].swapaxes(1, 2)) / (2 * step)
        spin = np.stack([turn[:, 2, 1], turn[:, 0, 2], turn[:, 1, 0]], axis=1)
        other = np.stack([turn[:, 1, 2], turn[:, 2, 0], turn[:, 0, 1]], axis=1)
        np.testing.assert_allclose(jacobian[:, 3:, joint], (spin - other) / 2, atol=1e-6)


def test_the_last_row_of_the_flange_frame_moves_the_elbow_alone_and_never_jumps():
    rng = np.random.default_rng(2)
    joints = RESET_JOINTS + rng.normal(0, 0.3, (6, 7))
    frame = flange_frame(joints)
    np.testing.assert_allclose(frame[:, :6] @ frame[:, 6, :, None], 0, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(frame[:, 6], axis=-1), 1, atol=1e-12)
    nearby = flange_frame(joints + rng.normal(0, 1e-3, (6, 7)))
    assert np.abs(nearby - frame).max() < 0.02
    assert np.linalg.cond(frame).max() < 100
