"""A rig without physics, for tests of what drives one: its clock moves when a test says so."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contracts.constants import CONTROL_HZ, RAD_PER_TICK, VIEWS
from contracts.kinematics import flange_pose
from contracts.panda import RESET_JOINTS
from contracts.types import RobotState
from envs.droid.control import Control, Rig
from envs.droid.rig import ArmReading, Frame
from envs.safety import Limits

PERIOD = 1 / CONTROL_HZ
HOLD = "hold"


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeArm:
    """Goes where it is told by the next tick. ``sent`` is every command, ``HOLD`` for a hold."""

    clock: Callable[[], float]
    joints: np.ndarray = field(default_factory=RESET_JOINTS.copy)
    gripper: float = 0.0
    name: str = "fake"
    sent: list[Any] = field(default_factory=list)
    changed: dict[str, Any] = field(default_factory=dict)  # fields of the next states
    frozen_at: float | None = None
    command_ok: bool = True
    lost: bool = False
    stuck: bool = False
    closed: bool = False
    broken: str = ""

    def open(self) -> None: ...

    def read(self) -> ArmReading:
        if self.lost:
            raise ConnectionError("the cable")
        state = {
            "joint_position": self.joints.astype(np.float32),
            "joint_velocity": np.zeros(7, np.float32),
            "cartesian_position": flange_pose(self.joints).astype(np.float32),
            "gripper_position": self.gripper,
            "time_s": self.clock() if self.frozen_at is None else self.frozen_at,
        }
        return ArmReading(RobotState(**state | self.changed), self.command_ok)

    def move(self, action: np.ndarray) -> np.ndarray:
        self.sent.append(action)
        if not self.stuck:
            self.joints = self.joints + RAD_PER_TICK * action[:7].astype(np.float64)
            self.gripper = float(action[7])
        return self.joints

    def ready(self) -> None:
        if self.broken:
            raise OSError(self.broken)

    def hold(self) -> None:
        self.sent.append(HOLD)
        if self.lost:
            raise ConnectionError("the cable")

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeCameras:
    clock: Callable[[], float]
    names: tuple[str, str, str] = ("a", "b", "c")
    ages: list[float] = field(default_factory=lambda: [0.01, 0.01, 0.01])
    lost: bool = False

    def open(self) -> None: ...

    def frames(self) -> Sequence[Frame]:
        if self.lost:
            raise OSError("camera b is gone")
        images = [np.full((16, 16, 3), index, np.uint8) for index in range(len(VIEWS))]
        return [
            Frame(image, self.clock() - age) for image, age in zip(images, self.ages, strict=True)
        ]

    def close(self) -> None: ...


@dataclass
class FakePerson:
    """Does what a test sets."""

    ready: bool = True
    stop: bool = False
    done: bool = False
    told: list[tuple[str, Any]] = field(default_factory=list)
    labels: dict[str, dict[str, Any]] = field(default_factory=dict)
    refuses: str = ""

    def stop_asked(self) -> bool:
        return self.stop

    def finished(self) -> bool:
        return self.done

    def expect(self, task: str, seed: int, instruction: str = "") -> str:
        if task == "unknown":
            raise ValueError("no prompts for the task 'unknown'")
        return instruction or f"do {task} {seed}"

    def may_start(self) -> bool:
        return self.ready and not self.stop

    def began(self, episode: dict[str, Any]) -> None:
        if self.refuses:
            raise ValueError(self.refuses)
        self.told.append(("began", episode))

    def ended(self, episode: dict[str, Any]) -> None:
        self.told.append(("ended", episode))

    def label(self, trajectory_id: str) -> dict[str, Any] | None:
        return self.labels.get(trajectory_id)

    def fault(self, reason: str) -> None:
        self.told.append(("fault", reason))


class Bench:
    """A control loop on the fakes, ticked by hand."""

    def __init__(self, **limits: Any) -> None:
        self.clock = Clock()
        self.arm, self.cameras = FakeArm(self.clock), FakeCameras(self.clock)
        self.person = FakePerson()
        self.rig = Rig(self.arm, self.cameras, self.person)
        self.control = Control(self.rig, Limits(**limits), self.clock)
        self.answers: list[dict[str, Any]] = []

    def tick(self, count: int = 1, late: float = 0.0) -> None:
        for _ in range(count):
            self.clock.now += PERIOD
            self.control.tick(self.clock.now - late)

    def begin(self, name: str = "episode-1") -> None:
        """Start an episode; the arm is at home."""
        episode = {"trajectory_id": name, "policy_version": 1, "max_ticks": 100}
        self.control.reset("stack", 3, episode, self.answers.append)
        for _ in range(60):
            if self.answers:
                break
            self.tick()
        assert self.answers.pop() == {"instruction": "do stack 3"}

    def play(self, ticks: int = 8, velocity: float = 0.05) -> list[dict[str, Any]]:
        """Hand over a plan; its answers come into the list that is returned."""
        answers: list[dict[str, Any]] = []
        plan = np.full((ticks, 8), velocity, np.float32)
        self.control.play(plan, self.seen, answers.append)
        return answers

    @property
    def seen(self) -> int:
        latest = self.control.latest
        return latest.number if latest else 0

    def ended(self) -> list[str]:
        return [said["ending"] for what, said in self.person.told if what == "ended"]
