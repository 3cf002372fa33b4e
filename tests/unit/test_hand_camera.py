"""The wrist camera's own motion: pixels of a table drawn from where it saw them before."""

import numpy as np
import pytest
import torch

from configs.robot import RobotConfig
from contracts.kinematics import pose_features
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
