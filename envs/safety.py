"""What may reach the arm, and when it has to stop. Pure: numbers in, a command or a fault out.

Facts: ../shared/reference/droid.md sections 1.5, 1.7, 1.9. None of this is an emergency stop: that
is Franka's external activation device, in a person's hand.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float

from contracts.constants import ACTION_DIM, NUM_JOINTS, RAD_PER_TICK
from contracts.kinematics import flange_transform
from contracts.panda import JOINT_HIGH, JOINT_LOW, JOINT_SPEED
from contracts.types import RobotState

_SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)  # of a motion that would leave the box, largest first
_EDGE = 1e-6  # m: a flange that stays where it is never counts as going further out

_ROWS = dict.fromkeys(("box_low", "box_high"), 3) | dict.fromkeys(
    ("joint_low", "joint_high", "joint_speed"), NUM_JOINTS
)
_COUNTS = ("late_ticks", "failed_commands")

Row = tuple[float, ...]


class FaultError(RuntimeError):
    """The arm must be held now, and stay so until a person clears it. ``reason`` is one word."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True, slots=True)
class Limits:
    """Lengths in m, angles in rad, times in s. Raises ValueError naming the limit that is wrong.

    A command that would pass the box, a joint's range, ``speed`` or ``slew`` is made gentler. An
    arm that is measured outside by more than a margin, or any other limit, is a fault.
    """

    box_low: Row = (0.2, -0.45, 0.02)  # of the flange in the base frame; the table is below
    box_high: Row = (0.8, 0.45, 1.0)
    box_margin: float = 0.02
    joint_low: Row = tuple(JOINT_LOW.tolist())
    joint_high: Row = tuple(JOINT_HIGH.tolist())
    joint_margin: float = 0.05
    joint_speed: Row = tuple(JOINT_SPEED.tolist())  # rad/s, measured
    speed: float = 1.0  # every commanded velocity is scaled by this; 0.25 for a first contact
    slew: float = 1.0  # largest change of a joint's command from one tick to the next
    command_age_s: float = 0.2  # without a command for so long the arm is told to hold
    plan_age_s: float = 10.0  # a plan made from an older observation is refused
    state_age_s: float = 0.1  # the arm's clock may stand still for so long
    clock_jump_s: float = 0.5  # and may not jump by more than this against ours
    frame_age_s: float = 0.25
    late_s: float = 0.1  # lateness of a tick ...
    late_ticks: int = 3  # ... in so many ticks in a row
    failed_commands: int = 5  # in a row that the arm may report before it is a fault
    home_error: float = 0.05  # of any joint after a reset
    home_timeout_s: float = 20.0

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if name in _ROWS and len(value) != _ROWS[name]:
                raise ValueError(f"limit {name}={list(value)} must be {_ROWS[name]} numbers")
            if name not in _ROWS and not value > 0:
                raise ValueError(f"limit {name}={value} must be above 0")
        for low in ("box_low", "joint_low"):
            high = low.replace("low", "high")
            if not np.less(getattr(self, low), getattr(self, high)).all():
                raise ValueError(f"limit {low}={list(getattr(self, low))} must be below {high}")
        if self.speed > 1:
            raise ValueError(f"limit speed={self.speed} must be at most 1")

    @classmethod
    def read(cls, table: Mapping[str, object]) -> "Limits":
        """From a table of a TOML file. Raises ValueError for a name that is no limit."""
        unknown = sorted(set(table) - set(cls.__dataclass_fields__))
        if unknown:
            known = ", ".join(cls.__dataclass_fields__)
            raise ValueError(f"limit {unknown[0]!r} is unknown; there are: {known}")
        return cls(**{name: _typed(name, value) for name, value in table.items()})


def _typed(name: str, value: object) -> Any:
    """A table's value as the limit of that name wants it."""
    values = value if isinstance(value, list) else [value]
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != len(values) or isinstance(value, list) != (name in _ROWS):
        wanted = f"{_ROWS[name]} numbers" if name in _ROWS else "a number"
        raise ValueError(f"limit {name}={value!r} must be {wanted}")
    if name in _COUNTS:
        return round(numbers[0])
    return tuple(map(float, numbers)) if name in _ROWS else float(numbers[0])


@dataclass(frozen=True, slots=True)
class Reading:
    """What the rig says at one tick. Ages in s; ``state.time_s`` is the arm's own clock."""

    state: RobotState
    command_ok: bool  # whether the arm took its last command
    frame_age_s: Mapping[str, float]
    lateness_s: float


@dataclass(frozen=True, slots=True)
class Command:
    """What may be sent, and which limits made it gentler than what was asked."""

    action: Float[np.ndarray, " 8"]
    limited_by: tuple[str, ...]


@dataclass
class Guard:
    """Between a plan and the arm, for one motion: ``begin``, then per tick ``watch``, ``command``.

    Times are those of one monotonic clock of the caller.
    """

    limits: Limits
    _velocity: np.ndarray = field(default_factory=lambda: np.zeros(NUM_JOINTS))
    _clock: tuple[float, float] | None = None  # the arm's last new time, and ours when it came
    _late: int = 0
    _failed: int = 0

    def begin(self) -> None:
        """The arm is at rest and nothing is known about it."""
        self._clock, self._late, self._failed = None, 0, 0
        self.rest()

    def rest(self) -> None:
        """The arm was told to hold: the next command starts from standing still."""
        self._velocity = np.zeros(NUM_JOINTS)

    def watch(self, reading: Reading, now: float) -> None:
        """Raises FaultError when the arm must not go on."""
        self._watch_state(reading.state)
        self._watch_clock(reading.state.time_s, now)
        self._watch_frames(reading.frame_age_s)
        self._late = self._late + 1 if reading.lateness_s > self.limits.late_s else 0
        if self._late >= self.limits.late_ticks:
            late = f"{1000 * reading.lateness_s:.0f} ms late for {self._late} ticks"
            raise FaultError("late", f"the control loop was {late}: free this machine's CPUs")
        self._failed = 0 if reading.command_ok else self._failed + 1
        if self._failed > self.limits.failed_commands:
            raise FaultError("command_failed", f"the arm refused {self._failed} commands in a row")

    def command(self, action: Float[np.ndarray, " 8"], state: RobotState) -> Command:
        """The action [DROID units] as it may be sent from ``state``.

        Raises:
            FaultError: it is not finite.
        """
        wanted = np.asarray(action, np.float64)
        if wanted.shape != (ACTION_DIM,) or not np.isfinite(wanted).all():
            raise FaultError("not_finite", f"the plan holds {np.round(wanted, 3).tolist()}")
        changed: list[str] = []
        joints = state.joint_position.astype(np.float64)
        velocity = self._gentle(wanted[:NUM_JOINTS], changed)
        velocity = self._inside_joints(velocity, joints, changed)
        velocity = self._inside_box(velocity, joints, changed)
        self._velocity = velocity
        gripper = np.clip(wanted[NUM_JOINTS], 0.0, 1.0)
        return Command(np.append(velocity, gripper).astype(np.float32), tuple(changed))

    def _gentle(self, wanted: np.ndarray, changed: list[str]) -> np.ndarray:
        limits = self.limits
        fastest = float(np.abs(wanted).max())
        if fastest > 1:
            changed.append("speed")
        velocity = limits.speed * wanted / max(1.0, fastest)
        change = np.clip(velocity - self._velocity, -limits.slew, limits.slew)
        if not np.array_equal(change, velocity - self._velocity):
            changed.append("slew")
            velocity = self._velocity + change
        return velocity

    def _inside_joints(
        self, velocity: np.ndarray, joints: np.ndarray, changed: list[str]
    ) -> np.ndarray:
        target = joints + RAD_PER_TICK * velocity
        allowed = np.clip(target, self.limits.joint_low, self.limits.joint_high)
        if np.array_equal(allowed, target):
            return velocity
        changed.append("joint_limit")
        return (allowed - joints) / RAD_PER_TICK

    def _inside_box(
        self, velocity: np.ndarray, joints: np.ndarray, changed: list[str]
    ) -> np.ndarray:
        """The largest share of the motion that does not take the flange (further) out."""
        allowed = self._outside(_flange(joints)) + _EDGE

        def stays(share: float) -> bool:
            return self._outside(_flange(joints + RAD_PER_TICK * share * velocity)) <= allowed

        share = next(filter(stays, _SHARES), 0.0)
        if share < 1:
            changed.append("workspace")
        return share * velocity

    def _outside(self, flange: np.ndarray) -> float:
        """How far [m] the flange is outside the box; 0 inside."""
        low, high = np.asarray(self.limits.box_low), np.asarray(self.limits.box_high)
        return float(np.linalg.norm(np.maximum(0.0, np.maximum(low - flange, flange - high))))

    def _watch_state(self, state: RobotState) -> None:
        joints, speed = state.joint_position, state.joint_velocity
        flange = state.cartesian_position[:3]
        if not all(np.isfinite(part).all() for part in (joints, speed, flange)):
            raise FaultError("no_state", "the arm's state is not finite")
        if (out := self._outside(flange)) > self.limits.box_margin:
            place = ", ".join(f"{value:.3f}" for value in flange)
            raise FaultError("workspace", f"flange at ({place}) m, {out:.3f} m outside the box")
        limits, margin = self.limits, self.limits.joint_margin
        low, high = np.asarray(limits.joint_low) - margin, np.asarray(limits.joint_high) + margin
        _inside("joint_limit", "rad", joints, low, high)
        fastest = np.asarray(limits.joint_speed)
        _inside("joint_speed", "rad/s", speed, -fastest, fastest)

    def _watch_clock(self, robot_s: float, now: float) -> None:
        if self._clock is None or robot_s == self._clock[0]:
            self._clock = self._clock or (robot_s, now)
            if now - self._clock[1] > self.limits.state_age_s:
                age = 1000 * (now - self._clock[1])
                raise FaultError(
                    "frozen_state", f"the arm's clock has stood still for {age:.0f} ms"
                )
            return
        jump = (robot_s - self._clock[0]) - (now - self._clock[1])
        self._clock = (robot_s, now)
        if abs(jump) > self.limits.clock_jump_s:
            raise FaultError("clock_jump", f"the arm's clock jumped by {jump:.2f} s against ours")

    def _watch_frames(self, ages: Mapping[str, float]) -> None:
        for view, age in ages.items():
            if not age <= self.limits.frame_age_s:
                raise FaultError("stale_frame", f"the newest frame of {view} is {age:.2f} s old")


def _inside(reason: str, unit: str, value: np.ndarray, low: np.ndarray, high: np.ndarray) -> None:
    beyond = np.flatnonzero((value < low) | (value > high))
    if beyond.size:
        joint = int(beyond[0])
        raise FaultError(reason, f"joint {joint + 1} is at {value[joint]:.3f} {unit}")


def gentler(limits: Limits, speed: float) -> Limits:
    """The same limits at a share of the speed, for motions that nobody planned."""
    return replace(limits, speed=min(limits.speed, speed))


def _flange(joints: np.ndarray) -> np.ndarray:
    return flange_transform(joints)[:3, 3]
