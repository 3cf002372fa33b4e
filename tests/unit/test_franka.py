"""Arms that the host drives by itself: against the published libraries' own classes where these
need no arm, and a gripper that speaks Modbus over a real pseudo-terminal."""

import importlib
import inspect
import os
import threading
import time
import tty
from types import SimpleNamespace

import numpy as np
import pytest

from contracts.constants import RAD_PER_TICK
from contracts.kinematics import flange_transform
from contracts.panda import RESET_JOINTS
from envs.droid.backends import franky as franky_backend
from envs.droid.backends import open_rig, panda_py
from envs.droid.franka import FrankaArm, FrankaReading
from envs.droid.robotiq import CLOSED, FORCE, OPEN, SPEED, Robotiq, crc
from tests.unit.rig import Bench

HOME = RESET_JOINTS


class FakeDriver:
    """A library's controller: goes at once where it is sent."""

    name = "franky"
    joint_low, joint_high = np.full(7, -2.9), np.full(7, 3.7)

    def __init__(self, clock=time.monotonic):
        self.joints, self.stopped, self.beyond_repair = HOME.copy(), "not started", False
        self.begun, self.aims, self.clock = 0, [], clock

    def connect(self): ...

    def control(self):
        if self.beyond_repair:
            raise OSError("the arm does not recover: look at Desk")
        self.stopped, self.begun = "", self.begun + 1

    def read(self):
        return FrankaReading(self.joints, np.zeros(7), self.clock(), self.stopped)

    def aim(self, joints):
        self.aims.append(joints)
        self.joints = joints

    def close(self): ...


class FakeGripper:
    def __init__(self):
        self.goal = 0.0

    def open(self): ...

    def go(self, position):
        self.goal = position

    def position(self):
        return self.goal

    def close(self): ...


@pytest.fixture
def driven():
    bench = Bench()
    driver = FakeDriver(bench.clock)
    arm = FrankaArm(driver, FakeGripper())
    arm.open()
    object.__setattr__(bench.rig, "arm", arm)
    return bench, driver, arm


def test_a_tick_is_droids_law_from_the_measured_posture(driven):
    _, driver, arm = driven
    action = np.array([1, 0, 0, -0.5, 0, 0, 0, 0.75])
    target = arm.move(action)
    np.testing.assert_allclose(target, HOME + RAD_PER_TICK * action[:7], atol=1e-9)
    assert arm.read().state.gripper_position == 0.75
    driver.joints = np.full(7, 3.65)
    np.testing.assert_allclose(arm.move(np.array([1.0] * 7 + [0]))[0], 3.7)  # its range ends
    np.testing.assert_allclose(
        arm.read().state.cartesian_position[:3], flange_transform(driver.joints)[:3, 3], atol=1e-6
    )


def test_a_reflex_is_a_fault_and_only_a_person_starts_the_controller_again(driven):
    bench, driver, _ = driven
    bench.begin()
    bench.play(ticks=40, velocity=0.01)
    bench.tick(3)
    driver.stopped = "Reflex, joint_reflex"
    before = len(driver.aims)
    bench.tick(5)
    assert "Reflex, joint_reflex" in bench.control.health()["fault"]
    assert len(driver.aims) == before
    assert driver.begun == 1
    driver.beyond_repair = True
    with pytest.raises(OSError, match="look at Desk"):
        bench.control._clear()
    assert bench.control.health()["fault"]
    driver.beyond_repair = False
    bench.control._clear()
    assert driver.begun == 2
    bench.tick(3)
    assert bench.control.health()["fault"] == ""
    assert len(driver.aims) == before  # to be able to move is not to move


def test_the_gripper_is_let_go_whatever_the_driver_says_at_its_end(driven, monkeypatch):
    _, driver, arm = driven
    closed = []

    def fails():
        raise RuntimeError("joint_reflex")

    monkeypatch.setattr(driver, "close", fails)
    monkeypatch.setattr(arm._gripper, "close", lambda: closed.append(True))
    with pytest.raises(RuntimeError, match="joint_reflex"):
        arm.close()
    assert closed


def test_frankys_own_classes_take_what_they_are_given(monkeypatch):
    franky = pytest.importorskip("franky")
    accepted = set(inspect.signature(franky.JointImpedanceTracker.__init__).parameters)
    assert set(franky_backend.GAINS) <= accepted
    motion = franky.JointImpedanceTrackingMotion(**franky_backend.GAINS)
    np.testing.assert_array_equal(motion.params.stiffness, [40, 30, 50, 25, 35, 25, 10])
    for owner, names in (
        (franky.Robot, ("state", "is_in_control", "has_errors", "recover_from_errors")),
        (franky.RobotState, ("q", "dq", "time", "robot_mode", "last_motion_errors")),
        (franky.JointImpedanceTracker, ("set_target", "stop")),
        (franky.Duration, ("to_sec",)),
        (franky.RobotMode.Reflex, ("name",)),
    ):
        assert all(hasattr(owner, name) for name in names)
    with pytest.raises(OSError, match="activate FCI"):
        franky_backend.FrankyDriver("127.0.0.1").connect()

    state = SimpleNamespace(
        q=HOME, dq=np.zeros(7), time=SimpleNamespace(to_sec=lambda: 12.5),
        robot_mode=franky.RobotMode.Reflex, last_motion_errors=franky.Errors(),
    )  # fmt: skip
    robot = SimpleNamespace(state=state, is_in_control=False, has_errors=True)
    robot.recover_from_errors = lambda: not setattr(robot, "has_errors", False)
    aims = []

    def tracker(found, **gains):
        assert found is robot
        assert not found.has_errors
        assert gains == franky_backend.GAINS
        found.is_in_control = True
        return SimpleNamespace(set_target=aims.append, stop=lambda: aims.append("stop"))

    monkeypatch.setattr(franky, "Robot", lambda address: robot)
    monkeypatch.setattr(franky, "JointImpedanceTracker", tracker)
    driver = franky_backend.FrankyDriver("172.16.0.2")
    driver.connect()
    assert driver.read().stopped.startswith("Reflex")
    driver.control()
    assert (driver.read().stopped, driver.read().time_s) == ("", 12.5)
    driver.aim(HOME)
    driver.close()
    assert aims[0] is HOME
    assert aims[1:] == ["stop"]


def test_panda_pys_own_classes_take_what_they_are_given():
    library = pytest.importorskip("panda_py")
    controllers = pytest.importorskip("panda_py.controllers")
    stiffness, damping = panda_py.gains(HOME)
    controller = controllers.JointPosition(stiffness=stiffness, damping=damping)
    controller.set_stiffness(stiffness)
    controller.set_damping(damping)
    names = ("recover", "refresh_state", "get_state", "is_moving", "start_controller")
    assert all(hasattr(library.Panda, name) for name in (*names, "stop_controller", "q"))
    state = library.libfranka.RobotState
    assert all(
        hasattr(state, name) for name in ("q", "dq", "time", "robot_mode", "last_motion_errors")
    )
    with pytest.raises(OSError, match="activate FCI"):
        panda_py.PandaPyDriver("127.0.0.1").connect()


def test_the_diagonal_of_droids_law_at_home():
    """The numbers of the reference stand-in, and a Jacobian that is the derivative."""
    stiffness, damping = panda_py.gains(HOME)
    np.testing.assert_allclose(stiffness, [107, 107, 124, 140, 52, 48, 25], atol=1)
    np.testing.assert_allclose(damping, [11, 14, 12, 16, 5.2, 4.7, 3], atol=0.5)
    rng = np.random.default_rng(0)
    joints = HOME + rng.normal(0, 0.3, 7)
    jacobian = panda_py.flange_jacobian(joints)
    for index in range(7):
        step = 1e-6 * np.eye(7)[index]
        before, after = flange_transform(joints - step), flange_transform(joints + step)
        moved = (after - before) / 2e-6
        np.testing.assert_allclose(jacobian[:3, index], moved[:3, 3], atol=1e-7)
        turning = moved[:3, :3] @ flange_transform(joints)[:3, :3].T
        axis = [turning[2, 1], turning[0, 2], turning[1, 0]]
        np.testing.assert_allclose(jacobian[3:, index], axis, atol=1e-7)


@pytest.mark.parametrize(
    ("arm", "words"),
    [
        ({"address": "172.16.0.2"}, "needs gripper"),
        ({"gripper": "/dev/ttyUSB0"}, "needs address"),
        ({"adress": "172.16.0.2"}, "Did you mean .*address"),
        ({"address": 3, "gripper": "x"}, "must be a text"),
    ],
)
@pytest.mark.parametrize("backend", ["franky", "panda_py"])
def test_a_rig_that_makes_no_sense_is_told(backend, arm, words):
    with pytest.raises(ValueError, match=words):
        open_rig(backend, {"arm": arm}, (24, 40))


def test_without_the_library_it_says_how_to_install_it(monkeypatch):
    def missing(name):
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ValueError, match=r"pip install '\.\[franky\]'"):
        franky_backend.FrankyDriver("172.16.0.2")
    with pytest.raises(ValueError, match=r"pip install '\.\[panda_py\]'"):
        panda_py.PandaPyDriver("172.16.0.2")
    with pytest.raises(ValueError, match="pip install pyserial"):
        Robotiq("/dev/ttyUSB0")


# --- the gripper


class FakeFingers:
    """The other end of a serial line: a 2F-85 that reaches its goal at once."""

    def __init__(self):
        self.end, line = os.openpty()
        tty.setraw(self.end)
        self.port = os.ttyname(line)
        self.registers, self.silent, self.spoilt, self.activations = bytes(6), False, 0, 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        heard = b""
        while True:
            try:
                heard += os.read(self.end, 64)
            except OSError:
                return
            size = 15 if heard[1:2] == b"\x10" else 8
            if len(heard) >= size:
                request, heard = heard[:size], heard[size:]
                self.answer(request)

    def answer(self, request):
        assert crc(request[:-2]) == request[-2:]
        if self.silent:
            return
        if request[1] == 16:
            self.activations += request[7] == 1 and not self.registers[0]
            self.registers, body = request[7:13], request[:6]
        else:
            status = 0x31 if self.registers[0] & 1 else 0x00
            body = bytes([9, 3, 6, status, 0, 0, 0, self.registers[3], 0])
        mistake = b"\x01\x02" if self.spoilt else b""
        self.spoilt = max(0, self.spoilt - 1)
        os.write(self.end, body + (mistake or crc(body)))


@pytest.fixture
def fingers():
    fingers = FakeFingers()
    yield fingers
    os.close(fingers.end)


def until(true, seconds=5):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_checksum_is_that_of_the_manuals_examples():
    assert crc(bytes.fromhex("091003e80003060000000000 00")) == bytes.fromhex("7330")
    assert crc(bytes.fromhex("091003e80003060900 00ffffff")) == bytes.fromhex("4229")
    assert crc(bytes.fromhex("090307d00001")) == bytes.fromhex("85cf")


def test_a_gripper_is_activated_once_and_goes_where_it_is_sent(fingers):
    gripper = Robotiq(fingers.port)
    gripper.open()
    assert gripper.position() == 0
    for goal in (1.0, 0.5, 0.0):
        gripper.go(goal)
        until(lambda goal=goal: abs(gripper.position() - goal) < 0.01)
        register = round(OPEN + goal * (CLOSED - OPEN))
        assert tuple(fingers.registers) == (9, 0, 0, register, SPEED, FORCE)
    with pytest.raises(ValueError, match="gripper position"):
        gripper.go(1.2)
    gripper.close()
    again = Robotiq(fingers.port)  # it is powered still: its fingers stay where they are
    again.open()
    again.close()
    assert fingers.activations == 1


def test_a_spoilt_answer_is_asked_for_again_and_silence_is_told(fingers):
    gripper = Robotiq(fingers.port)
    gripper.open()
    fingers.spoilt = 3
    gripper.go(1.0)
    until(lambda: gripper.position() == 1)
    fingers.silent = True
    time.sleep(0.8)
    with pytest.raises(OSError, match="has not answered for"):
        gripper.position()
    fingers.silent = False
    gripper.go(0.0)
    until(lambda: not fingers.silent and _position(gripper) == 0)
    gripper.close()


def _position(gripper):
    try:
        return gripper.position()
    except OSError:
        return None


def test_no_gripper_says_what_to_check(tmp_path, fingers):
    with pytest.raises(OSError, match="group dialout"):
        Robotiq(str(tmp_path / "ttyUSB0")).open()
    fingers.silent = True
    with pytest.raises(OSError, match="answered nothing"):
        Robotiq(fingers.port).open()
