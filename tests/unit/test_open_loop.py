"""Imagined actions executed in physics: the verdict of a real episode, from the very same start."""

import numpy as np
import pytest

from actors.open_loop import OpenLoop, succeeds
from configs.robot import RobotConfig
from envs.mujoco.experts import demonstrate
from envs.mujoco.robot import MujocoRobot

SEED = 3


@pytest.fixture(scope="module")
def robot():
    return MujocoRobot(RobotConfig(height=16, width=24, renderer="ray"))


@pytest.fixture(scope="module")
def demo(robot):
    trajectory, success = demonstrate(robot, "book", SEED)
    assert success
    return trajectory


def plan(demo, first=0, last=None, **changes):
    given = {
        "trajectory_id": "imagined-1-book-00000",
        "task": "book",
        "seed": SEED,
        "before": demo.actions[:first],
        "start": demo.joint_position[first],
        "actions": demo.actions[first:last],
    }
    return OpenLoop(**(given | changes))


@pytest.mark.parametrize("first", [0, 30])
def test_what_succeeded_once_succeeds_again_also_from_its_middle(robot, demo, first):
    assert succeeds(robot, robot.privileged_success, plan(demo, first))


def test_half_of_it_and_the_same_actions_in_another_scene_do_not(robot, demo):
    assert not succeeds(robot, robot.privileged_success, plan(demo, 0, 45))
    robot.reset("book", 99)
    start = robot.observe().state.joint_position
    assert not succeeds(robot, robot.privileged_success, plan(demo, seed=99, start=start))


def test_a_success_that_is_undone_afterwards_counts_as_a_real_episode_would(robot, demo):
    """The person would have ended the episode there."""
    back = demo.actions[::-1] * np.array([-1.0] * 7 + [1.0], np.float32)
    again = plan(demo, actions=np.concatenate([demo.actions, back]))
    ended = robot.privileged_success
    assert succeeds(robot, ended, again)


def test_a_moment_that_only_looks_like_success_is_none(robot, demo):
    looks = iter([True, True, False] * 1000)
    assert not succeeds(robot, lambda: next(looks), plan(demo, 0, 45, settle_ticks=3))
    last = iter([False] * 44 + [True])
    assert succeeds(robot, lambda: next(last), plan(demo, 0, 45, settle_ticks=3))


def test_another_simulators_start_is_refused(robot, demo):
    with pytest.raises(ValueError, match=r"joints differ by .* evaluation\.truth=none"):
        succeeds(robot, robot.privileged_success, plan(demo, seed=SEED + 1))
