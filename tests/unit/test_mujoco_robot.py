"""The simulated robot as the rest of the system sees it: episodes, demonstrations and labels."""

from dataclasses import replace

import mujoco
import numpy as np
import pytest

from configs.robot import TASKS, RobotConfig
from contracts.protocols import LabelSource, RobotEnv
from envs.mujoco.experts import demonstrate
from envs.mujoco.robot import TASK_CLASSES, MujocoRobot, SimulatorLabels

CONFIG = RobotConfig(height=16, width=24, renderer="ray")


@pytest.fixture(scope="module")
def robot() -> MujocoRobot:
    return MujocoRobot(CONFIG)


@pytest.mark.parametrize("task", ["stack", "book"])
@pytest.mark.parametrize("seed", [11, 12, 13])
def test_expert_turns_failure_into_success(robot: MujocoRobot, task: str, seed: int) -> None:
    robot.reset(task, seed)
    assert not robot.privileged_success()
    trajectory, success = demonstrate(robot, task, seed)
    assert success
    assert trajectory.ending == "done"
    assert trajectory.num_ticks < TASKS[task]


def test_stack_obeys_the_colours_of_the_instruction(robot: MujocoRobot) -> None:
    seen = set()
    for seed in range(6):
        trajectory, success = demonstrate(robot, "stack", seed)
        words = trajectory.instruction.split()
        upper, lower = words[2], words[6]
        seen.add((upper, lower))
        offset = robot.simulation.body_position(upper) - robot.simulation.body_position(lower)
        np.testing.assert_allclose(offset, [0, 0, 0.05], atol=0.012)
        assert success
    assert len(seen) > 3


def test_equal_seeds_give_equal_episodes_whatever_ran_before(robot: MujocoRobot) -> None:
    first, _ = demonstrate(robot, "book", 4, noise=0.05)
    demonstrate(robot, "stack", 1)
    demonstrate(robot, "book", 5)
    again, _ = demonstrate(robot, "book", 4, noise=0.05)
    fresh, _ = demonstrate(MujocoRobot(CONFIG), "book", 4, noise=0.05)
    for other in (again, fresh):
        for column in ("actions", "joint_position", "cartesian_position", "frames"):
            np.testing.assert_array_equal(getattr(other, column), getattr(first, column))
    different, _ = demonstrate(robot, "book", 6, noise=0.05)
    assert np.abs(different.joint_position[0] - first.joint_position[0]).max() > 1e-3


def test_recorded_actions_executed_again_give_the_recorded_states(robot: MujocoRobot) -> None:
    """What is stored is what was executed, noise included, and row k belongs to tick k."""
    trajectory, success = demonstrate(robot, "stack", 2, noise=0.03)
    assert robot.reset("stack", 2) == trajectory.instruction
    np.testing.assert_array_equal(robot.observe().images, trajectory.frames[0])
    for tick, action in enumerate(trajectory.actions):
        before = robot.observe()
        np.testing.assert_array_equal(before.state.joint_position, trajectory.joint_position[tick])
        if tick % 3 == 0:
            np.testing.assert_array_equal(before.images, trajectory.frames[tick // 3])
        robot.step(action)
    last = robot.observe().state
    np.testing.assert_array_equal(last.cartesian_position, trajectory.cartesian_position[-1])
    assert last.gripper_position == pytest.approx(float(trajectory.gripper_position[-1]))
    assert robot.privileged_success() == success


def test_noise_moves_the_arm_off_the_expert_path(robot: MujocoRobot) -> None:
    quiet, _ = demonstrate(robot, "book", 7)
    noisy, _ = demonstrate(robot, "book", 7, noise=0.1)
    np.testing.assert_array_equal(quiet.joint_position[0], noisy.joint_position[0])
    distance = quiet.cartesian_position[:60, :3] - noisy.cartesian_position[:60, :3]
    assert np.linalg.norm(distance, axis=1).max() > 0.01


def put(robot: MujocoRobot, upper: str, at: np.ndarray) -> None:
    sim = robot.simulation
    sim.place(upper, at)
    sim.data.qvel[:] = 0
    mujoco.mj_forward(sim.model, sim.data)


def test_stack_needs_the_named_block_on_top_squarely_and_released(robot: MujocoRobot) -> None:
    words = robot.reset("stack", 0).split()
    upper, lower = words[2], words[6]
    base = robot.simulation.body_position(lower)
    put(robot, upper, base + np.array([0, 0, 0.05]))
    assert robot.privileged_success()
    put(robot, upper, base + np.array([0.03, 0, 0.05]))
    assert not robot.privileged_success()
    put(robot, upper, base + np.array([0, 0, 0.065]))
    assert not robot.privileged_success()
    put(robot, lower, base + np.array([0, 0, 0.05]))
    put(robot, upper, base)
    assert not robot.privileged_success()


def test_held_block_keeps_the_pads_apart_and_is_no_success(robot: MujocoRobot) -> None:
    words = robot.reset("stack", 3).split()
    task, sim = robot.script()
    before = 0.0
    for action in task.expert(sim):
        if before == 1.0 and action[6] == 0.0:
            break
        before = float(action[6])
        robot.step(sim.cartesian_to_joint_velocity(action).astype(np.float32))
    keep, release = np.zeros(8, np.float32), np.zeros(8, np.float32)
    keep[7] = 1.0
    for _ in range(20):
        robot.step(keep)
    # the block lies still on the other one, and only the fingers around it speak against success
    offset = sim.body_position(words[2]) - sim.body_position(words[6])
    np.testing.assert_allclose(offset, [0, 0, 0.05], atol=0.009)
    assert np.abs(sim.data.joint(words[2]).qvel).max() < 0.02
    assert not robot.privileged_success()
    # 50 of 85 mm stay open around a 50 mm block
    assert sim.gripper_position() == pytest.approx(1 - 50 / 85, abs=0.02)
    for _ in range(8):
        robot.step(release)
    assert robot.privileged_success()


def test_book_must_stay_open_for_fifteen_ticks(robot: MujocoRobot) -> None:
    robot.reset("book", 0)
    sim = robot.simulation
    verdicts = []
    sim.data.joint("cover").qpos[0] = 2.2
    for _ in range(18):
        robot.step(np.zeros(8, np.float32))
        verdicts.append(robot.privileged_success())
    assert verdicts == [False] * 15 + [True] * 3
    sim.data.joint("cover").qpos[0] = 1.0
    for _ in range(30):
        robot.step(np.zeros(8, np.float32))
    assert sim.data.joint("cover").qpos[0] < 0.1
    assert not robot.privileged_success()


def test_simulator_labels_only_the_episode_on_the_table(robot: MujocoRobot) -> None:
    labels = SimulatorLabels(robot)
    assert isinstance(labels, LabelSource)
    trajectory, success = demonstrate(robot, "book", 1)
    label = labels.label(trajectory)
    assert (label.trajectory_id, label.success, label.source) == ("demo-book-1", True, "simulator")
    assert success
    robot.reset("book", 2)
    with pytest.raises(ValueError, match="label it before reset"):
        labels.label(trajectory)
    start = robot.observe().state
    failed = replace(
        trajectory,
        joint_position=np.repeat(start.joint_position[None], 1, 0),
        actions=trajectory.actions[:0],
        frames=trajectory.frames[:1],
        gripper_position=trajectory.gripper_position[:1],
        cartesian_position=trajectory.cartesian_position[:1],
    )
    assert not labels.label(failed).success


def test_unknown_task_names_the_known_ones(robot: MujocoRobot) -> None:
    with pytest.raises(
        ValueError, match=r"task='boook' is not one of .*book.*Did you mean task=book"
    ):
        robot.reset("boook", 0)


def test_every_configured_task_exists() -> None:
    assert {name: TASK_CLASSES[name]().max_ticks for name in TASK_CLASSES} == TASKS


def test_hold_never_raises_and_stops_the_arm() -> None:
    robot = MujocoRobot(CONFIG)
    assert isinstance(robot, RobotEnv)
    robot.hold()
    with pytest.raises(ValueError, match=r"call reset\(task, seed\) first"):
        robot.observe()
    robot.reset("book", 0)
    robot.step(np.array([0.5, 0, 0, 0, 0, 0, 0, 0.4], np.float32))
    robot.hold()
    before = robot.observe().state
    robot.hold()
    after = robot.observe().state
    np.testing.assert_array_equal(before.joint_position, after.joint_position)
    assert before.time_s == after.time_s
    robot.close()
    robot.hold()
    robot.close()
