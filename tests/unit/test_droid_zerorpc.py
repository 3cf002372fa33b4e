"""The arm behind a DROID control machine, over real zerorpc: a stand-in serves what DROID does."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import pytest

from contracts.panda import JOINT_HIGH, JOINT_LOW
from envs.droid.backends.droid_zerorpc import ArmSettings, open_rig
from envs.droid.control import Control, Rig
from envs.droid.host import Settings, arguments
from envs.droid.link import Link, import_zerorpc
from envs.safety import Limits
from tests.unit.rig import FakePerson

ROOT = Path(__file__).parents[2]
SIZE = (48, 80)
CALM = Limits(state_age_s=0.4, frame_age_s=0.8, late_s=0.5)  # the tests share two busy cores
FORWARD = np.array([0.1, 0, 0, 0, 0, 0, 0, 0])
FAULTS = {
    "freeze": "frozen_state",
    "refuse": "command_failed",
    "hang": "rig",
    "drop": "rig",
    "camera:wrist": "stale_frame",
}


class StandIn:
    """A control machine and its cameras, in processes of their own."""

    def __init__(self, folder):
        self.frames = folder / "frames"
        said = folder / "said"
        command = [sys.executable, "-m", "envs.droid.standin", "--port=0", "--size=48x80"]
        command += [f"--frames={self.frames}", "--renderer=ray", "--task=stack", "--seed=3"]
        with said.open("w") as out:
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out)
        wait(lambda: "address=" in said.read_text(), 30)
        self.address = said.read_text().strip().removeprefix("address=")
        self.link = Link(self.address, 5)

    @property
    def table(self):
        arm = {"address": self.address, "standin": True, "timeout_s": 0.3}
        return {"arm": arm, "cameras": {"kind": "shared", "frames": str(self.frames)}}

    def joints(self):
        return np.array(self.link.call("get_joint_positions"))

    def end(self):
        self.link.close()
        self.process.kill()
        self.process.wait(10)


def wait(what, seconds=8.0):
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.01)


@pytest.fixture(scope="module")
def standin(tmp_path_factory):
    made = StandIn(tmp_path_factory.mktemp("standin"))
    yield made
    made.end()
    wait(lambda: not made.frames.exists())  # its cameras have seen that it is gone


@pytest.fixture
def free_address():
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    return f"tcp://127.0.0.1:{port}"


@pytest.fixture
def rig(standin):
    standin.link.call("lay", "stack", 3)
    arm, cameras, scene = open_rig(standin.table, SIZE)
    arm.open()
    cameras.open()
    yield arm, cameras, scene
    arm.close()


def drive(arm, action, ticks):
    """Play one action at 15 Hz; returns the states after each tick."""
    states, due = [], time.monotonic()
    for _ in range(ticks):
        arm.move(action)
        due += 1 / 15
        time.sleep(max(0.0, due - time.monotonic()))
        states.append(arm.read().state)
    return states


@pytest.mark.zerorpc
def test_a_state_is_in_rad_and_m_and_carries_the_machines_own_clock(rig, standin):
    arm, _, _ = rig
    reading = arm.read()
    state = reading.state
    np.testing.assert_allclose(state.joint_position, standin.joints(), atol=1e-4)
    pose = standin.link.call("get_ee_pose")
    np.testing.assert_allclose(state.cartesian_position, pose, atol=1e-4)
    assert (state.joint_position > JOINT_LOW).all()
    assert (state.joint_position < JOINT_HIGH).all()
    assert abs(state.time_s - time.time()) < 1.0
    assert 0 <= state.gripper_position < 0.05
    assert reading.command_ok
    time.sleep(0.2)
    assert 0.1 < arm.read().state.time_s - state.time_s < 2.0


@pytest.mark.zerorpc
def test_a_joint_moves_as_told_and_lags_as_droids_does(rig):
    arm, _, _ = rig
    before = arm.read().state.joint_position
    target = arm.move(FORWARD)
    np.testing.assert_allclose(target - before, FORWARD[:7] * 0.2, atol=1e-3)
    states = drive(arm, FORWARD, 30)
    steady = states[-1].joint_position - states[9].joint_position
    share = steady[0] / (20 * 0.02)
    assert 0.34 < share < 0.46
    assert np.abs(steady[1:]).max() < 0.2 * steady[0]
    back = drive(arm, -FORWARD, 20)
    assert back[-1].joint_position[0] < states[-1].joint_position[0] - 0.05


@pytest.mark.zerorpc
def test_a_hold_holds(rig):
    arm, _, _ = rig
    drive(arm, 3 * FORWARD, 12)
    arm.hold()
    time.sleep(1.0)
    held = arm.read().state.joint_position
    time.sleep(0.5)
    assert np.abs(arm.read().state.joint_position - held).max() < 1e-3


@pytest.mark.zerorpc
def test_the_gripper_closes_and_a_hold_stops_it_half_way(rig):
    arm, _, _ = rig
    closing = np.append(np.zeros(7), 1.0)
    drive(arm, closing, 8)
    arm.hold()
    time.sleep(0.3)
    half = arm.read().state.gripper_position
    assert 0.15 < half < 0.85
    time.sleep(0.4)
    assert arm.read().state.gripper_position == pytest.approx(half, abs=0.02)
    drive(arm, closing, 25)
    assert arm.read().state.gripper_position > 0.97


@pytest.mark.zerorpc
def test_a_scene_is_laid_and_seen_and_judged(rig, standin):
    _, cameras, scene = rig
    before = [frame.image for frame in cameras.frames()]
    again = scene.lay("stack", 3)
    assert again == scene.lay("stack", 3)
    np.testing.assert_array_equal(cameras.frames()[0].image, before[0])
    assert "book" in scene.lay("book", 4)
    frames = cameras.frames()
    assert frames[0].image.shape == (*SIZE, 3)
    assert not np.array_equal(frames[0].image, before[0])
    assert not scene.success()
    with pytest.raises(ValueError, match="task"):
        scene.lay("juggle", 0)
    wait(lambda: cameras.frames()[0].captured_s > frames[0].captured_s)


class Driven:
    """A running control loop in an episode."""

    def __init__(self, control, person, sent, held):
        self.control, self.person, self.sent, self.held = control, person, sent, held
        self.answers = []

    def begin(self):
        answers = []
        episode = {"trajectory_id": "episode-1", "policy_version": 1, "max_ticks": 100}
        self.control.reset("stack", 3, episode, answers.append)
        wait(lambda: answers)
        assert "instruction" in answers[0], answers
        seen = self.control.latest.number
        plan = np.full((600, 8), 0.01, np.float32)
        self.control.play(plan, seen, self.answers.append)
        wait(lambda: len(self.answers) > 3)

    def fault(self):
        return self.control.health()["fault"]


def noting(arm):
    """Keep when each command was tried, and when each hold had arrived."""
    sent, held, move, hold = [], [], arm.move, arm.hold

    def noted_move(action):
        sent.append(time.monotonic())
        return move(action)

    def noted_hold():
        hold()
        held.append(time.monotonic())

    arm.move, arm.hold = noted_move, noted_hold
    return sent, held


@contextmanager
def driving(standin, **arm):
    table = standin.table
    table["arm"] |= arm
    arm, cameras, scene = open_rig(table, SIZE)
    sent, held = noting(arm)
    person = FakePerson()
    control = Control(Rig(arm, cameras, person, scene), CALM)
    thread = threading.Thread(target=control.run)
    with ExitStack() as stack:
        thread.start()
        stack.callback(thread.join, 10)
        stack.callback(control.close)
        control.wait_until_open()
        driven = Driven(control, person, sent, held)
        driven.begin()
        yield driven


def assert_nothing_passes(driven, reason):
    commands = len(driven.sent)
    assert driven.fault().startswith(reason), driven.fault()
    driven.control.play(np.full((4, 8), 0.01, np.float32), 10**6, driven.answers.append)
    time.sleep(0.5)
    assert len(driven.sent) == commands
    endings = [said["ending"] for what, said in driven.person.told if what == "ended"]
    assert endings == [f"aborted:{reason}"]


def assert_stands(standin):
    joints = standin.joints()
    time.sleep(0.3)
    assert np.abs(standin.joints() - joints).max() < 1e-3


@pytest.mark.zerorpc
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_over_there_ends_the_episode_and_leaves_a_held_arm(standin, fault):
    with driving(standin) as driven:
        standin.link.call("fail", fault)
        wait(driven.fault)
        assert_nothing_passes(driven, FAULTS[fault])
        standin.link.call("fail", fault, False)
        wait(lambda: driven.held[-1:] > driven.sent[-1:])
        time.sleep(0.3)
        assert_stands(standin)
        assert driven.fault(), "only a person clears it"


@pytest.mark.zerorpc
def test_a_controller_that_starts_slowly_is_waited_for_before_anything_moves(standin):
    """At the host's start and when a fault is cleared; with timeout_s it would be a fault."""
    standin.link.call("fail", "drop")
    with driving(standin) as driven:
        assert driven.fault() == ""
        driven.control.stop()
        wait(driven.fault)
        standin.link.call("fail", "drop")
        driven.control.clear()
        assert driven.fault() == ""
        driven.begin()
        time.sleep(0.5)
        assert driven.fault() == ""


@pytest.mark.zerorpc
def test_a_machine_that_was_stopped_is_held_when_it_goes_on(standin):
    with driving(standin) as driven:
        os.kill(standin.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            wait(driven.fault)
            assert time.monotonic() - began < 1.0
            assert_nothing_passes(driven, "rig")
            assert "did not answer" in driven.fault()
            assert driven.held[-1:] < driven.sent[-1:]
        finally:
            os.kill(standin.process.pid, signal.SIGCONT)
        wait(lambda: driven.held[-1:] > driven.sent[-1:])
        time.sleep(0.3)
        assert_stands(standin)
        assert driven.fault().startswith("rig")


NOTES = """
import sys, zerorpc
class Notes:
    def __init__(self): self.noted = []
    def note(self, number): self.noted.append(number); return self.noted
server = zerorpc.Server(Notes())
server.bind(sys.argv[1])
server.run()
"""


@pytest.mark.zerorpc
def test_of_what_is_sent_while_a_machine_is_stopped_only_the_first_is_ever_done(free_address):
    server = subprocess.Popen([sys.executable, "-c", NOTES, free_address], cwd=ROOT)
    link = Link(free_address, 0.05)
    try:
        assert link.call("note", 0, timeout_s=15) == [0]
        os.kill(server.pid, signal.SIGSTOP)
        for number in range(1, 6):
            with pytest.raises(ConnectionError, match=r"did not answer note within 0\.05 s"):
                link.call("note", number)
        os.kill(server.pid, signal.SIGCONT)
        assert link.call("note", 6, timeout_s=15) == [0, 1, 6]
    finally:
        link.close()
        server.kill()
        server.wait(10)


@pytest.mark.zerorpc
def test_a_machine_that_is_killed_is_a_fault_and_its_cameras_end_too(tmp_path):
    standin = StandIn(tmp_path)
    try:
        with driving(standin) as driven:
            standin.process.kill()
            wait(driven.fault)
            assert_nothing_passes(driven, "rig")
    finally:
        standin.end()
    wait(lambda: not standin.frames.exists())


def failing_to_open(table):
    arm, cameras, _ = open_rig(table, SIZE)
    with pytest.raises(OSError) as caught:  # noqa: PT011 - its words are compared by the caller
        arm.open()
    arm.close()
    cameras.close()
    return str(caught.value)


@pytest.mark.zerorpc
def test_a_robot_that_was_not_launched_says_so_and_launching_helps(standin):
    for fault, said in (("cold", "set launch = true"), ("freeze", "clock stands still")):
        standin.link.call("fail", fault)
        assert said in failing_to_open(standin.table)
        standin.link.call("fail", fault, fault == "freeze")
    table = standin.table
    table["arm"]["launch"] = True
    arm, _, _ = open_rig(table, SIZE)
    arm.open()
    assert arm.read().command_ok
    arm.close()


@pytest.mark.zerorpc
def test_no_machine_there_is_one_clear_error(standin, monkeypatch):
    monkeypatch.setattr("envs.droid.backends.droid_zerorpc.OPEN_S", 0.2)
    table = standin.table
    table["arm"]["address"] = "tcp://127.0.0.1:9"
    assert "tcp://127.0.0.1:9 did not answer" in failing_to_open(table)


@pytest.mark.zerorpc
def test_a_link_refuses_a_second_thread_instead_of_hanging(standin):
    caught = []

    def call():
        try:
            standin.link.call("get_gripper_position")
        except RuntimeError as error:
            caught.append(str(error))

    standin.link.call("get_gripper_position")
    other = threading.Thread(target=call)
    other.start()
    other.join(5)
    assert "belongs to the thread that called first" in caught[0]


@pytest.mark.zerorpc
def test_hardware_offers_no_scene(standin):
    table = standin.table
    table["arm"]["standin"] = False
    arm, _, scene = open_rig(table, SIZE)
    assert scene is None
    arm.close()


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({}, "needs address"),
        ({"address": "tcp://172.16.0.2"}, "must read like 'tcp://172.16.0.2:4242'"),
        ({"address": "tcp://a:1", "timeout_s": 30}, "timeout_s = 30 must be"),
        ({"address": "tcp://a:1", "lunch": True}, "lunch"),
        ({"address": "tcp://a:1", "launch": "no"}, "launch = 'no' is of the wrong kind"),
    ],
)
def test_a_wrong_arm_table_says_what_to_change(table, said):
    with pytest.raises(ValueError, match=said):
        ArmSettings.read(table)


def test_without_zerorpc_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "zerorpc", None)
    with pytest.raises(ValueError, match=r"pip install '\.\[robot\]'"):
        import_zerorpc()


def test_the_example_of_a_rigs_file_is_read():
    file = ROOT / "configs" / "rigs" / "droid.toml"
    settings = Settings.read(arguments(["--backend=droid_zerorpc", f"--rig={file}"]))
    assert settings.limits.speed == 0.25
    assert ArmSettings.read(settings.table["arm"]) == ArmSettings("tcp://172.16.0.2:4242")
    assert settings.table["cameras"]["kind"] == "zed"
