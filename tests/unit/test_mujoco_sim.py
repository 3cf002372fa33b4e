"""The simulated arm against Franka's kinematics, DROID's action semantics and real episodes."""

import json
import os
from pathlib import Path

import mujoco
import numpy as np
import pytest

from envs.mujoco.book import Book
from envs.mujoco.rotations import (
    euler_from_matrix,
    matrix_from_euler,
    quaternion_from_matrix,
    rotation_vector,
)
from envs.mujoco.sim import ANGULAR, LINEAR, Simulation

SAMPLE = os.environ.get(
    "DROID_SAMPLE_DIR", str(Path(__file__).parents[3] / "shared/data/droid_sample")
)
QUARTER = np.pi / 2
# Franka's published table: a, d, alpha before each joint, and the flange
FRANKA = [
    (0, 0.333, 0),
    (0, 0, -QUARTER),
    (0, 0.316, QUARTER),
    (0.0825, 0, QUARTER),
    (-0.0825, 0.384, -QUARTER),
    (0, 0, QUARTER),
    (0.088, 0, QUARTER),
]


def dh_pose(joints: np.ndarray) -> np.ndarray:
    """Flange transform by multiplying Craig's modified DH matrices, written out."""
    pose = np.eye(4)
    rows = [*zip(FRANKA, joints, strict=True), ((0, 0.107, 0), 0.0)]
    for (a, d, alpha), theta in rows:
        (ct, st), (ca, sa) = (np.cos(theta), np.sin(theta)), (np.cos(alpha), np.sin(alpha))
        pose = pose @ np.array(
            [
                [ct, -st, 0, a],
                [st * ca, ct * ca, -sa, -d * sa],
                [st * sa, ct * sa, ca, d * ca],
                [0, 0, 0, 1],
            ]
        )
    return pose


@pytest.fixture(scope="module")
def sim() -> Simulation:
    return Simulation(Book())


def restart(sim: Simulation, seed: int = 0) -> np.ndarray:
    sim.reset(np.random.default_rng(seed))
    return sim.data.qpos[:7].copy()


def set_joints(sim: Simulation, joints: np.ndarray) -> None:
    sim.data.qpos[:7] = joints
    mujoco.mj_kinematics(sim.model, sim.data)


def test_flange_equals_the_product_of_franka_dh_matrices(sim: Simulation) -> None:
    rng = np.random.default_rng(3)
    for joints in rng.uniform(-2.5, 2.5, (30, 7)):
        set_joints(sim, joints)
        wanted = dh_pose(joints)
        np.testing.assert_allclose(sim.pose()[:3], wanted[:3, 3], atol=1e-12)
        np.testing.assert_allclose(sim.flange_matrix(), wanted[:3, :3], atol=1e-12)


def test_reset_posture_is_droids(sim: Simulation) -> None:
    set_joints(sim, np.array([0, -np.pi / 5, 0, -4 * np.pi / 5, 0, 3 * np.pi / 5, 0]))
    pose = sim.pose()
    np.testing.assert_allclose(pose[:3], [0.3597, 0, 0.4899], atol=5e-5)
    assert abs(pose[3]) == pytest.approx(np.pi)
    np.testing.assert_allclose(pose[4:], 0, atol=1e-9)


@pytest.mark.shared
def test_flange_equals_the_recorded_poses_of_real_episodes(sim: Simulation) -> None:
    files = sorted(Path(SAMPLE).glob("annotation/*/*.json"))
    assert len(files) == 9, f"{SAMPLE} should hold the 9 sample episodes"
    for file in files:
        episode = json.loads(file.read_text())
        joints = np.array(episode["observation.state.joint_position"])[::20]
        poses = np.array(episode["observation.state.cartesian_position"])[::20]
        for row, pose in zip(joints, poses, strict=True):
            set_joints(sim, row)
            assert np.linalg.norm(sim.pose()[:3] - pose[:3]) < 1e-5
            turn = matrix_from_euler(pose[3:]) @ sim.flange_matrix().T
            assert np.linalg.norm(rotation_vector(turn)) < 1e-4


def test_zero_action_does_not_drift(sim: Simulation) -> None:
    start = restart(sim)
    for _ in range(15):
        sim.step(np.zeros(8))
    assert np.abs(sim.data.qpos[:7] - start).max() < 1e-4


@pytest.mark.parametrize("joint", range(7))
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_constant_velocity_lags_as_droids_law_does(
    sim: Simulation, joint: int, sign: float
) -> None:
    """34-46 % of the commanded step at steady state, 10-35 % in the first (reference/droid.md)."""
    previous = restart(sim)[joint]
    action = np.zeros(8)
    action[joint] = 0.3 * sign
    shares = []
    for _ in range(12):
        now = float(sim.step(action).joint_position[joint])
        shares.append((now - previous) / (0.2 * action[joint]))
        previous = now
    assert 0.095 < shares[0] < 0.35
    assert 0.335 < np.mean(shares[-6:]) < 0.465


def test_clock_is_exact_although_a_tick_is_no_multiple_of_the_time_step(sim: Simulation) -> None:
    restart(sim)
    times = np.array([0.0] + [sim.step(np.zeros(8)).time_s for _ in range(45)])
    np.testing.assert_allclose(times[[15, 30, 45]], [1.0, 2.0, 3.0], atol=1e-9)
    assert np.abs(times - np.arange(46) / 15).max() < 0.004


def test_gripper_travels_at_63_mm_per_second_of_85(sim: Simulation) -> None:
    restart(sim)
    close = np.append(np.zeros(7), 1.0)
    positions = [sim.step(close).gripper_position for _ in range(26)]
    assert positions[14] == pytest.approx(0.063 / 0.085, abs=0.03)
    assert positions[-1] == pytest.approx(1.0, abs=0.005)
    opening = sim.step(np.zeros(8)).gripper_position
    assert opening == pytest.approx(1.0 - 0.063 / 0.085 / 15, abs=0.03)


def test_velocity_beyond_one_is_scaled_down_as_a_whole(sim: Simulation) -> None:
    action = np.array([0.5, -0.25, 0, 1.0, 0, 0.125, 0, 0])
    restart(sim)
    wanted = sim.step(action).joint_position
    restart(sim)
    doubled = sim.step(np.append(2 * action[:7], 0.0)).joint_position
    np.testing.assert_array_equal(doubled, wanted)


def test_targets_stay_a_tenth_of_a_radian_inside_frankas_limits(sim: Simulation) -> None:
    restart(sim)
    for _ in range(60):
        sim.step(np.array([0, 0, 0, 1.0, 0, 0, 0, 0]))
    assert sim.state().joint_position[3] == pytest.approx(-0.0698 - 0.1, abs=0.01)


def test_action_that_is_not_finite_is_refused(sim: Simulation) -> None:
    restart(sim)
    with pytest.raises(ValueError, match="not finite"):
        sim.step(np.array([0, np.nan, 0, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("axis", range(6))
def test_cartesian_velocity_moves_the_flange_along_its_axis(sim: Simulation, axis: int) -> None:
    joints = restart(sim)
    wanted = np.zeros(7)
    wanted[axis], wanted[6] = 0.1, 0.7
    action = sim.cartesian_to_joint_velocity(wanted)
    before, after = dh_pose(joints), dh_pose(joints + 0.2 * action[:7])
    moved = (after - before)[:3, 3] / LINEAR
    turned = rotation_vector(after[:3, :3] @ before[:3, :3].T) / ANGULAR
    np.testing.assert_allclose(np.append(moved, turned), wanted[:6], atol=0.006)
    assert action[7] == 0.7


def test_large_cartesian_velocity_never_asks_a_joint_for_more_than_one(sim: Simulation) -> None:
    restart(sim)
    action = sim.cartesian_to_joint_velocity(np.array([9.0, -9, 9, 9, -9, 9, 0]))
    assert np.abs(action[:7]).max() == pytest.approx(1.0)


def test_rotations_by_hand() -> None:
    quarter_about_x = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])
    half_about_x = np.diag([1.0, -1, -1])
    np.testing.assert_allclose(
        matrix_from_euler(np.array([QUARTER, 0, 0])), quarter_about_x, atol=1e-15
    )
    # extrinsic: first x by 90 degrees, then z by 90 degrees takes y to z, and x to y
    both = matrix_from_euler(np.array([QUARTER, 0, QUARTER]))
    np.testing.assert_allclose(both @ [0, 1, 0], [0, 0, 1], atol=1e-15)
    np.testing.assert_allclose(both @ [1, 0, 0], [0, 1, 0], atol=1e-15)
    np.testing.assert_allclose(rotation_vector(quarter_about_x), [QUARTER, 0, 0], atol=1e-15)
    root = np.sqrt(0.5)
    np.testing.assert_allclose(quaternion_from_matrix(quarter_about_x), [root, root, 0, 0])
    np.testing.assert_allclose(np.abs(quaternion_from_matrix(half_about_x)), [0, 1, 0, 0])


@pytest.mark.parametrize("pitch", [-QUARTER, -0.4, 0.9, QUARTER])
def test_euler_angles_come_back_as_the_same_rotation(pitch: float) -> None:
    matrix = matrix_from_euler(np.array([2.9, pitch, -1.3]))
    np.testing.assert_allclose(matrix_from_euler(euler_from_matrix(matrix)), matrix, atol=1e-9)
