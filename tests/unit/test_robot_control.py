"""The loop beside the arm: what it sends, when it holds, and that a fault lets nothing pass."""

import numpy as np
import pytest

from contracts.panda import RESET_JOINTS
from envs.droid.control import Control, Rig
from tests.unit.rig import HOLD, Bench

FAULTS = {
    "operator_stop": lambda bench: setattr(bench.person, "stop", True),
    "frozen_state": lambda bench: setattr(bench.arm, "frozen_at", bench.clock.now),
    "clock_jump": lambda bench: setattr(bench.arm, "frozen_at", bench.clock.now + 9),
    "command_failed": lambda bench: setattr(bench.arm, "command_ok", False),
    "stale_frame": lambda bench: bench.cameras.ages.__setitem__(2, 0.3),
    "workspace": lambda bench: bench.arm.changed.update(
        cartesian_position=np.array([0.5, 0.6, 0.4, 0, 0, 0], np.float32)
    ),
    "joint_speed": lambda bench: bench.arm.changed.update(
        joint_velocity=np.full(7, 2.6, np.float32)
    ),
    "no_state": lambda bench: bench.arm.changed.update(
        joint_position=np.full(7, np.nan, np.float32)
    ),
    "rig": lambda bench: setattr(bench.arm, "lost", True),
    "rig, a camera": lambda bench: setattr(bench.cameras, "lost", True),
}
TICKS_TO_FAULT = {"frozen_state": 2, "command_failed": 6}


def running(**limits):
    bench = Bench(**limits)
    bench.begin()
    bench.arm.sent.clear()
    return bench


def test_a_plan_is_played_tick_by_tick_and_its_answers_are_the_states_around_it():
    bench = running()
    answers = bench.play(ticks=3, velocity=0.1)
    bench.tick(5)
    assert [answer["done"] for answer in answers] == [False, False, False, True]
    numbers = [answer["tick"].number for answer in answers]
    assert numbers == list(range(numbers[0], numbers[0] + 4))
    first = [answer["tick"].arm.state.joint_position[0] for answer in answers]
    np.testing.assert_allclose(first, RESET_JOINTS[0] + np.arange(4) * 0.02, atol=1e-5)
    sent = [command for command in bench.arm.sent if command is not HOLD]
    assert len(sent) == 3
    np.testing.assert_allclose(sent[0], 0.1, atol=1e-6)


def test_without_a_command_for_200_ms_the_arm_is_told_to_hold_once():
    bench = running()
    bench.play(ticks=2)
    bench.tick(2)
    assert [command is HOLD for command in bench.arm.sent] == [False, False]
    bench.tick(2)  # 133 ms after the last command
    assert len(bench.arm.sent) == 2
    bench.tick(20)
    assert [command is HOLD for command in bench.arm.sent] == [False, False, True]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_holds_the_arm_within_a_tick_and_nothing_passes_any_more(fault):
    bench = running()
    answers = bench.play(ticks=40, velocity=0.01)
    bench.tick(3)
    FAULTS[fault](bench)
    reason = fault.partition(",")[0]
    bench.tick(TICKS_TO_FAULT.get(reason, 1))
    assert bench.arm.sent[-1] is HOLD, "held in the very tick that sees it"
    assert bench.control.health()["fault"].startswith(reason)
    commands = len([command for command in bench.arm.sent if command is not HOLD])
    bench.play(ticks=4)
    bench.tick(50)
    assert len([command for command in bench.arm.sent if command is not HOLD]) == commands
    assert bench.arm.sent[-1] is HOLD
    assert bench.ended() == [f"aborted:{reason}"]
    assert answers[-1]["stopped"].startswith(reason)
    assert [what for what, _ in bench.person.told] == ["began", "ended", "fault"]


def test_an_arm_that_was_out_of_reach_is_held_as_soon_as_it_is_back():
    bench = running()
    bench.play(ticks=40, velocity=0.01)
    bench.tick(3)
    bench.arm.lost = True
    bench.tick(3)
    asked = bench.play(ticks=4)
    bench.tick()
    assert asked[0]["stopped"].startswith("rig")  # answered, though the arm is not
    bench.arm.sent.clear()
    bench.arm.lost = False
    bench.tick(5)
    assert bench.arm.sent == [HOLD]


def test_three_late_ticks_are_a_fault():
    bench = running()
    bench.play(ticks=40, velocity=0.01)
    bench.tick(2, late=0.15)
    assert not bench.control.health()["fault"]
    bench.tick(1, late=0.15)
    assert bench.arm.sent[-1] is HOLD
    assert bench.ended() == ["aborted:late"]


def test_a_plan_that_is_not_finite_is_a_fault_and_not_sent():
    bench = running()
    answers = bench.play(ticks=4, velocity=np.nan)
    bench.tick()
    assert bench.arm.sent == [HOLD]
    assert answers == [{"stopped": answers[0]["stopped"]}]
    assert bench.ended() == ["aborted:not_finite"]


def test_a_plan_made_from_an_old_observation_is_a_fault():
    bench = running(plan_age_s=5.0)
    seen = bench.seen
    bench.tick(80)
    bench.control.play(np.zeros((4, 8), np.float32), seen, bench.answers.append)
    bench.tick()
    assert [command for command in bench.arm.sent if command is not HOLD] == []
    assert bench.answers[-1]["stopped"].startswith("stale_plan")


def test_after_a_fault_nothing_moves_until_a_person_clears_it():
    bench = running()
    FAULTS["stale_frame"](bench)
    bench.tick()
    bench.cameras.ages[2] = 0.01  # the cause is gone: that alone changes nothing
    bench.control.reset("stack", 4, {"trajectory_id": "next"}, bench.answers.append)
    bench.tick(30)
    assert bench.arm.sent[-1] is HOLD
    assert not bench.answers
    bench.control._clear()
    bench.tick(2)
    assert bench.answers == [{"instruction": "do stack 4"}]


def test_a_fault_while_a_reset_waits_is_answered_and_the_arm_stays():
    bench = Bench()
    bench.person.ready = False
    bench.control.reset("stack", 3, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick(3)
    bench.control.stop()
    bench.tick()
    assert bench.answers[0]["stopped"].startswith("operator_stop")
    bench.person.ready = True
    bench.tick(5)
    assert [command for command in bench.arm.sent if command is not HOLD] == []


def test_the_arm_stays_where_it_is_until_the_person_starts():
    bench = Bench()
    bench.arm.joints = RESET_JOINTS + 0.3
    bench.person.ready = False
    bench.control.reset("stack", 3, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick(30)
    assert not bench.arm.sent
    assert bench.control.health()["doing"] == "wait"
    bench.person.ready = True
    bench.tick(60)
    assert bench.answers == [{"instruction": "do stack 3"}]
    assert np.abs(bench.arm.joints - RESET_JOINTS).max() < 0.05


def test_the_arm_drives_home_slowly_and_with_an_open_gripper_first():
    bench = Bench()
    bench.arm.joints, bench.arm.gripper = RESET_JOINTS + 0.4, 1.0
    bench.control.reset("stack", 3, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick(60)
    sent = [command for command in bench.arm.sent if command is not HOLD]
    assert bench.answers
    assert max(float(np.abs(command[:7]).max()) for command in sent) <= 0.5
    assert not np.abs(sent[0][:7]).any()
    assert all(command[7] == 0.0 for command in sent)


def test_after_a_label_the_arm_drives_home_before_the_scene_is_laid():
    bench = running()
    bench.arm.joints = RESET_JOINTS + 0.3
    bench.control.end("timeout", bench.answers.append)
    bench.tick()
    bench.answers.clear()
    bench.person.labels["episode-1"] = {"success": True, "discarded": False}
    bench.person.ready = False
    bench.control.reset("stack", 4, {"trajectory_id": "b"}, bench.answers.append)
    bench.tick(60)
    assert np.abs(bench.arm.joints - RESET_JOINTS).max() < 0.05
    assert bench.control.health()["doing"] == "wait"
    assert not bench.answers
    bench.person.ready = True
    bench.tick(3)
    assert bench.answers == [{"instruction": "do stack 4"}]


def test_after_a_fault_the_arm_waits_for_the_start_even_if_the_episode_was_labelled():
    bench = running()
    bench.control.stop()
    bench.tick()
    bench.arm.joints = RESET_JOINTS + 0.3
    bench.person.labels["episode-1"] = {"success": False, "discarded": False}
    bench.control._clear()
    bench.person.ready = False
    bench.arm.sent.clear()
    bench.control.reset("stack", 4, {"trajectory_id": "b"}, bench.answers.append)
    bench.tick(30)
    assert not bench.arm.sent


def test_an_arm_that_does_not_come_home_is_a_fault():
    bench = Bench(home_timeout_s=2.0)
    bench.arm.joints, bench.arm.stuck = RESET_JOINTS + 0.3, True
    bench.control.reset("stack", 3, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick(40)
    assert bench.answers[0]["stopped"].startswith("reset_failed")
    assert bench.arm.sent[-1] is HOLD
    assert bench.ended() == []


def test_whoever_drove_and_is_gone_leaves_a_held_arm_and_an_aborted_episode():
    bench = running()
    bench.play(ticks=40, velocity=0.01)
    bench.tick(3)
    bench.control.lost("the link")
    bench.tick(10)
    assert bench.arm.sent[-1] is HOLD
    assert bench.ended() == ["aborted:client_lost, the link"]
    assert not bench.control.health()["fault"]
    assert len(bench.arm.sent) == 4


def test_a_hold_drops_the_plan_and_the_episode_goes_on():
    bench = running()
    bench.play(ticks=40, velocity=0.01)
    bench.tick(3)
    bench.control.hold(bench.answers.append)
    bench.tick(5)
    assert [command is HOLD for command in bench.arm.sent] == [False, False, False, True]
    again = bench.play(ticks=1)
    bench.tick(2)
    assert again[-1]["done"]
    assert bench.ended() == []


def test_one_plan_and_one_episode_at_a_time():
    bench = running()
    bench.play(ticks=10, velocity=0.01)
    bench.tick(2)
    second = bench.play(ticks=1)
    bench.control.reset("stack", 4, {"trajectory_id": "b"}, bench.answers.append)
    bench.tick()
    assert "being played" in second[0]["error"]
    assert "under way" in bench.answers[0]["error"]


def test_no_plan_without_an_episode_and_no_episode_without_the_persons_word():
    bench = Bench()
    bench.tick()
    refused = bench.play()
    bench.control.reset("unknown", 0, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick()
    assert refused == [{"error": "no episode runs"}]
    assert "no prompts" in bench.answers.pop()["error"]
    bench.person.refuses = "was run before"
    bench.control.reset("stack", 0, {"trajectory_id": "a"}, bench.answers.append)
    bench.tick(3)
    assert bench.answers == [{"error": "was run before"}]
    assert bench.control.health()["doing"] != "episode"


def test_what_a_person_says_reaches_the_next_answer():
    bench = running()
    answers = bench.play(ticks=4)
    bench.tick()
    bench.person.done = True
    bench.tick()
    assert [answer["finished"] for answer in answers] == [False, True]


def test_deadlines_are_absolute_and_what_has_passed_is_lost():
    bench = Bench()
    slept, began = [], bench.clock.now
    work = [0.01] * 5 + [0.3] + [0.01] * 5  # seconds that a tick takes
    inner = bench.cameras.frames

    def frames():
        bench.clock.now += work[len(slept)]
        return inner()

    def sleep(seconds):
        bench.clock.now += seconds
        slept.append(seconds)
        if len(slept) == len(work):
            bench.control.close()

    bench.cameras.frames = frames
    bench.control.run(sleep)
    elapsed = bench.clock.now - began
    assert elapsed * 15 == pytest.approx(round(elapsed * 15), abs=1e-6)
    assert bench.control.health()["lost_ticks"] == 3  # of the 4 within 0.3 s, one is late
    assert bench.arm.closed


def test_a_rig_that_does_not_open_says_why():
    bench = Bench()

    def fail():
        raise OSError("no camera at /dev/video0")

    bench.cameras.open = fail
    control = Control(Rig(bench.arm, bench.cameras, bench.person))
    control.run()
    with pytest.raises(ValueError, match="cannot be opened: no camera at /dev/video0"):
        control.wait_until_open()
