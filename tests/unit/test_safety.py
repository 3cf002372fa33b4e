"""What may reach the arm, and when it must stop."""

import numpy as np
import pytest

from contracts.kinematics import flange_pose
from contracts.panda import JOINT_HIGH, RESET_JOINTS
from contracts.types import RobotState
from envs.safety import FaultError, Guard, Limits, Reading, gentler

FINE = dict.fromkeys(("exterior_1", "exterior_2", "wrist"), 0.05)


def state(joints=RESET_JOINTS, time_s=0.0, **changes):
    fields = {
        "joint_position": np.asarray(joints, np.float32),
        "joint_velocity": np.zeros(7, np.float32),
        "cartesian_position": flange_pose(np.asarray(joints)).astype(np.float32),
        "gripper_position": 0.0,
        "time_s": float(time_s),
    }
    return RobotState(**fields | changes)


def reading(time_s=0.0, command_ok=True, lateness_s=0.0, ages=FINE, **changes):
    return Reading(state(time_s=time_s, **changes), command_ok, ages, lateness_s)


def fault(do):
    with pytest.raises(FaultError) as caught:
        do()
    return caught.value.reason


def action(velocity, gripper=0.0):
    return np.append(np.broadcast_to(velocity, 7), gripper).astype(np.float32)


def test_a_gentle_command_passes_unchanged():
    asked = action(0.3, 0.7)
    command = Guard(Limits()).command(asked, state())
    np.testing.assert_allclose(command.action, asked, atol=1e-7)
    assert command.limited_by == ()


def test_a_fast_command_is_scaled_as_a_whole():
    asked = action([2.0, 1.0, 0, 0, 0, 0, 0])
    command = Guard(Limits()).command(asked, state())
    np.testing.assert_allclose(command.action[:2], [1.0, 0.5], atol=1e-6)
    assert command.limited_by == ("speed",)


def test_the_speed_limit_scales_every_command():
    command = Guard(Limits(speed=0.25)).command(action(0.4), state())
    np.testing.assert_allclose(command.action[:7], 0.1, atol=1e-7)
    assert gentler(Limits(speed=0.25), 0.5).speed == 0.25
    assert gentler(Limits(), 0.5).speed == 0.5


def test_a_jump_between_two_commands_is_cut():
    guard = Guard(Limits(slew=0.3))
    assert guard.command(action(0.25), state()).limited_by == ()
    command = guard.command(action(-0.25), state())
    np.testing.assert_allclose(command.action[:7], -0.05, atol=1e-6)
    assert command.limited_by == ("slew",)
    guard.rest()  # held: the next command starts from standing still
    np.testing.assert_allclose(guard.command(action(0.9), state()).action[:7], 0.3, atol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_a_fault(value):
    asked = action(0.1)
    asked[3] = value
    assert fault(lambda: Guard(Limits()).command(asked, state())) == "not_finite"


def test_the_gripper_stays_in_its_range():
    assert Guard(Limits()).command(action(0.0, 1.7), state()).action[7] == 1.0
    assert Guard(Limits()).command(action(0.0, -0.2), state()).action[7] == 0.0


def test_no_joint_is_sent_beyond_its_range():
    joints = RESET_JOINTS.copy()
    joints[6] = JOINT_HIGH[6] - 0.05
    command = Guard(Limits()).command(action([0, 0, 0, 0, 0, 0, 1.0]), state(joints))
    assert joints[6] + 0.2 * command.action[6] == pytest.approx(JOINT_HIGH[6], abs=1e-5)
    assert command.limited_by == ("joint_limit",)


def test_a_motion_out_of_the_box_is_cut_and_one_back_is_not():
    here = flange_pose(RESET_JOINTS)[:3]
    lower = action([0, 0.5, 0, 0, 0, 0, 0])  # the shoulder forward: the flange goes down
    low = (0.2, -0.45, float(here[2]) - 0.01)
    guard = Guard(Limits(box_low=low))
    command = guard.command(lower, state())
    assert command.limited_by == ("workspace",)
    after = flange_pose(RESET_JOINTS + 0.2 * command.action[:7].astype(float))
    assert after[2] >= low[2]
    outside = Guard(Limits(box_low=(0.2, -0.45, float(here[2]) + 0.01)))
    assert outside.command(-lower, state()).limited_by == ()
    assert outside.command(lower, state()).action[1] == 0.0


def test_the_watchdog_is_quiet_while_all_is_well():
    guard = Guard(Limits())
    for tick in range(100):
        guard.watch(reading(time_s=5 + tick / 15), now=tick / 15)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("workspace", {"cartesian_position": np.array([0.5, 0.6, 0.4, 0, 0, 0], np.float32)}),
        ("workspace", {"cartesian_position": np.array([0.5, 0.0, -0.1, 0, 0, 0], np.float32)}),
        ("joint_limit", {"joint_position": np.full(7, 2.9, np.float32)}),
        ("joint_speed", {"joint_velocity": np.array([0, 0, 2.2, 0, 0, 0, 0], np.float32)}),
        ("joint_speed", {"joint_velocity": np.array([0, 0, -2.2, 0, 0, 0, 0], np.float32)}),
        ("no_state", {"joint_position": np.full(7, np.nan, np.float32)}),
        ("no_state", {"joint_velocity": np.full(7, np.nan, np.float32)}),
    ],
)
def test_a_state_beyond_the_limits_is_a_fault(reason, changes):
    assert fault(lambda: Guard(Limits()).watch(reading(**changes), now=0.0)) == reason


def test_just_outside_the_box_is_not_a_fault_yet():
    edge = np.array([0.5, 0.465, 0.4, 0, 0, 0], np.float32)
    Guard(Limits()).watch(reading(cartesian_position=edge), now=0.0)


def test_an_arm_whose_clock_stands_still_is_a_fault():
    guard = Guard(Limits())
    guard.watch(reading(time_s=7.0), now=0.0)
    guard.watch(reading(time_s=7.0), now=0.066)  # one sample twice: the arm's clock is not ours
    assert fault(lambda: guard.watch(reading(time_s=7.0), now=0.133)) == "frozen_state"


@pytest.mark.parametrize("to", [8.0, 6.0])
def test_an_arm_whose_clock_jumps_is_a_fault(to):
    guard = Guard(Limits())
    guard.watch(reading(time_s=7.0), now=0.0)
    assert fault(lambda: guard.watch(reading(time_s=to), now=0.066)) == "clock_jump"


@pytest.mark.parametrize("age", [0.26, np.nan])
def test_an_old_frame_is_a_fault(age):
    ages = FINE | {"wrist": age}
    assert fault(lambda: Guard(Limits()).watch(reading(ages=ages), now=0.0)) == "stale_frame"


def test_three_late_ticks_in_a_row_are_a_fault():
    guard = Guard(Limits())

    def late(tick, lateness_s):
        guard.watch(reading(time_s=tick / 15, lateness_s=lateness_s), now=tick / 15)

    for tick, lateness in enumerate((0.2, 0.2, 0.0, 0.2, 0.2)):
        late(tick, lateness)
    assert fault(lambda: late(5, 0.2)) == "late"


def test_refused_commands_in_a_row_are_a_fault():
    guard = Guard(Limits())
    for tick in range(5):
        guard.watch(reading(time_s=tick / 15, command_ok=False), now=tick / 15)
    guard.watch(reading(time_s=5 / 15), now=5 / 15)
    for tick in range(6, 11):
        guard.watch(reading(time_s=tick / 15, command_ok=False), now=tick / 15)
    last = reading(time_s=11 / 15, command_ok=False)
    assert fault(lambda: guard.watch(last, now=11 / 15)) == "command_failed"


def test_a_new_motion_forgets_the_last_one():
    guard = Guard(Limits())
    guard.watch(reading(time_s=7.0, lateness_s=0.2, command_ok=False), now=0.0)
    guard.begin()
    guard.watch(reading(time_s=700.0), now=0.01)


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"sped": 0.5}, "limit 'sped' is unknown.*speed"),
        ({"speed": 0.0}, "speed=0.0"),
        ({"speed": 1.5}, "speed=1.5"),
        ({"slew": -1}, "slew=-1"),
        ({"box_low": [0.2, -0.4, 2.0]}, "box_low"),
        ({"joint_speed": [1.0]}, "joint_speed"),
        ({"frame_age_s": "fast"}, "frame_age_s='fast'"),
        ({"box_high": "far"}, "box_high='far'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused_by_name(table, words):
    with pytest.raises(ValueError, match=words):
        Limits.read(table)


def test_limits_are_read_from_a_table():
    limits = Limits.read({"speed": 0.25, "box_low": [0.3, -0.3, 0.1]})
    assert (limits.speed, limits.box_low) == (0.25, (0.3, -0.3, 0.1))
