"""The wrist camera's own motion: pixels of a table drawn from where it saw them before."""

import numpy as np
import pytest
import torch

from configs.robot import RobotConfig
from contracts.kinematics import pose_features, rotation_from_euler
from envs.mujoco.robot import MujocoRobot
from models.embedded.hand_camera import HandCamera

SIZE = (48, 80)
FRAMES = 5


@pytest.fixture(scope="module")
def seen() -> tuple[torch.Tensor, torch.Tensor]:
    """Wrist views and poses of an arm that moves over the table in physics, five frames each."""
    robot = MujocoRobot(RobotConfig(height=SIZE[0], width=SIZE[1]))
    views, poses = [], []
    for seed in range(6):
        rng = np.random.default_rng(seed)
        robot.reset("book", seed)
        action = np.append(rng.uniform(-0.4, 0.4, 7), 0.0).astype(np.float32)
        images, path = [], []
        for tick in range(3 * FRAMES):
            if tick % 3 == 0:
                moment = robot.observe()
                images.append(moment.images[2])
                state = moment.state
                path.append(np.append(state.cartesian_position, state.gripper_position))
            robot.step(action)
        views.append(np.stack(images))
        poses.append(pose_features(np.stack(path).astype(np.float32)))
    pixels = torch.from_numpy(np.stack(views)).permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    return pixels, torch.from_numpy(np.stack(poses))


def test_a_camera_that_stays_sees_the_same(seen):
    views, poses = seen
    still = HandCamera(SIZE)(views[:, 0], poses[:, :1].repeat(1, 3, 1))
    np.testing.assert_allclose(still, views[:, :1].repeat(1, 2, 1, 1, 1), atol=1e-3)


def pixel(pose: np.ndarray, point: np.ndarray) -> np.ndarray:
    """Where a point of the base's frame is in the view of a flange at ``pose``, -1 to 1."""
    x, y, z, *angles = (-0.075283, 0.028721, 0.023317, -0.325577, 0.006247, -1.562875)
    flange = rotation_from_euler(pose[3:6])
    eye = pose[:3] + flange @ [x, y, z]
    local = (flange @ rotation_from_euler(np.array(angles))).T @ (point - eye)
    focal = 1 / np.tan(np.deg2rad(52.5) / 2)
    return focal * local[:2] / local[2] / [SIZE[1] / SIZE[0], 1]


def test_a_point_on_the_ground_is_drawn_from_where_it_was():
    down = np.array([0.5, 0.0, 0.35, np.pi, 0.0, 0.0, 0.0])
    later = down + np.array([0.04, -0.03, -0.08, 0.05, -0.06, 0.2, 0.0])
    poses = torch.from_numpy(pose_features(np.stack([down, later]).astype(np.float32)))[None]
    place = HandCamera(SIZE)._place(poses)[0, 0].numpy()
    rows, columns = np.mgrid[: SIZE[0], : SIZE[1]]
    found = 0
    for x in np.linspace(0.4, 0.7, 7):
        for y in np.linspace(-0.1, 0.1, 5):
            was, now = (pixel(pose, np.array([x, y, 0.02])) for pose in (down, later))
            column, row = (now + 1) / 2 * [SIZE[1], SIZE[0]] - 0.5
            if 1 < column < SIZE[1] - 2 and 1 < row < SIZE[0] - 2:
                near = [(place[:, :, k], was[k]) for k in (0, 1)]
                weight = np.maximum(0, 1 - abs(rows - row)) * np.maximum(
                    0, 1 - abs(columns - column)
                )
                for grid, wanted in near:
                    assert (weight * grid).sum() == pytest.approx(wanted, abs=2e-3)
                found += 1
    assert found > 5


def test_droids_calibration_explains_where_the_table_goes(seen):
    views, poses = seen
    top = slice(0, SIZE[0] // 2)  # without fingers
    moved = HandCamera(SIZE)(views[:, 0], poses)[..., top, :]
    wanted = views[:, 1:, :, top]
    copied = (views[:, :1, :, top] - wanted).square().mean()
    assert (moved - wanted).square().mean() < 0.5 * copied
    wrong = HandCamera(SIZE)(views[:, 0], poses.roll(1, dims=0))[..., top, :]
    assert (wrong - wanted).square().mean() > (moved - wanted).square().mean()


def test_a_fit_finds_a_camera_that_is_mounted_otherwise(seen):
    views, poses = seen
    camera = HandCamera(SIZE)
    camera.mount += torch.tensor([0.01, -0.01, 0.02, 0.05, 0.0, -0.05])
    before = (camera(views[:, 0], poses) - views[:, 1:]).square().mean()
    camera.fit(views, poses)
    after = (camera(views[:, 0], poses) - views[:, 1:]).square().mean()
    assert after < 0.7 * before
    assert camera.trusted == 1
    assert camera.riding[-4:, 40:60].mean() > 0.5 > camera.riding[:16].mean(), "fingers ride along"


def test_a_view_that_explains_nothing_stands_still(seen):
    views, poses = seen
    noise = torch.rand(views[:, :1].shape, generator=torch.Generator().manual_seed(0))
    fixed = noise.expand_as(views)  # a camera on a stand
    camera = HandCamera(SIZE)
    camera.fit(fixed.contiguous(), poses)
    np.testing.assert_array_equal(camera(fixed[:, 0], poses), fixed[:, 1:])
