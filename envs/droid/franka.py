"""A Franka arm that this process drives by itself, through a Python library that runs the 1 kHz
loop: ``backends/franky.py`` and ``backends/panda_py.py`` are the libraries.

The law of the 15 Hz tick is DROID's: the target is the measured posture plus 0.2 rad x velocity.
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from configs.checks import one_of
from contracts.constants import NUM_JOINTS, RAD_PER_TICK
from contracts.kinematics import flange_pose
from contracts.types import RobotState
from envs.droid.cameras import open_cameras
from envs.droid.rig import Arm, ArmReading, Cameras, Scene
from envs.droid.robotiq import Robotiq


@dataclass(frozen=True, slots=True)
class FrankaReading:
    """Joint angles [rad] and speeds [rad/s], the arm's clock [s]; ``stopped`` says why nothing
    controls it any more, "" while something does."""

    joints: Float[np.ndarray, " 7"]
    speeds: Float[np.ndarray, " 7"]
    time_s: float
    stopped: str = ""


@runtime_checkable
class Driver(Protocol):
    """A library's 1 kHz impedance controller. Whatever it raises is a fault."""

    name: str
    joint_low: Float[np.ndarray, " 7"]
    joint_high: Float[np.ndarray, " 7"]

    def connect(self) -> None:
        """Raises OSError naming what to do."""
        ...

    def control(self) -> None:
        """Recover from what stopped the arm and hold its present posture."""
        ...

    def read(self) -> FrankaReading: ...

    def aim(self, joints: Float[np.ndarray, " 7"]) -> None:
        """The posture that the springs pull to."""
        ...

    def close(self) -> None:
        """Stop gently."""
        ...


@runtime_checkable
class Gripper(Protocol):
    """See ``envs.droid.robotiq.Robotiq``."""

    def open(self) -> None: ...

    def go(self, position: float | int) -> None: ...

    def position(self) -> float: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class FrankaSettings:
    """``[arm]`` of the rig's file. Raises ValueError naming what to change."""

    address: str  # of the arm's control box
    gripper: str  # serial port, /dev/serial/by-id/...

    @classmethod
    def read(cls, table: dict[str, Any]) -> "FrankaSettings":
        """Raises ValueError for a name that is none, or one that is missing."""
        for name, value in table.items():
            one_of("name in [arm]", name, ("address", "gripper"))
            if not isinstance(value, str) or not value:
                raise ValueError(f"[arm] {name} = {value!r} must be a text")
        for name, example in (("address", "172.16.0.2"), ("gripper", "/dev/ttyUSB0")):
            if name not in table:
                raise ValueError(f"[arm] needs {name} = '{example}', or what it is here")
        return cls(**table)


class FrankaArm:
    """``Arm`` of a driver and a gripper.

    A reflex, the pressed activation device or a lost connection ends the library's controller. The
    tick that sees it is a fault, and only ``ready``, which a person asks for, begins another.
    """

    def __init__(self, driver: Driver, gripper: Gripper) -> None:
        self.name = driver.name
        self._driver, self._gripper = driver, gripper
        self._told = False  # that nothing controls the arm

    def open(self) -> None:
        self._gripper.open()
        self._driver.connect()
        self._driver.control()

    def read(self) -> ArmReading:
        """Raises OSError at the first tick that finds the arm stopped by itself."""
        found = self._driver.read()
        if found.stopped and not self._told:
            self._told = True
            raise OSError(f"the arm has stopped by itself: {found.stopped}")
        state = RobotState(
            joint_position=found.joints.astype(np.float32),
            joint_velocity=found.speeds.astype(np.float32),
            cartesian_position=flange_pose(found.joints).astype(np.float32),
            gripper_position=self._gripper.position(),
            time_s=found.time_s,
        )
        return ArmReading(state, not found.stopped)

    def move(self, action: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 7"]:
        """See ``Arm.move``. Raises OSError where nothing controls the arm."""
        found = self._controlled()
        wanted = found.joints + RAD_PER_TICK * action[:NUM_JOINTS]
        target = np.clip(wanted, self._driver.joint_low, self._driver.joint_high)
        self._driver.aim(target)
        self._gripper.go(float(action[NUM_JOINTS]))
        return target

    def hold(self) -> None:
        """An arm that has stopped by itself holds already: its brakes do, or its own controller."""
        found = self._driver.read()
        if not found.stopped:
            self._driver.aim(found.joints)

    def ready(self) -> None:
        """Raises OSError while something still stops the arm."""
        if self._driver.read().stopped:
            self._driver.control()
            self._controlled()
        self._told = False

    def close(self) -> None:
        try:
            self._driver.close()  # raises what stopped the arm, if that was no person
        finally:
            self._gripper.close()

    def _controlled(self) -> FrankaReading:
        found = self._driver.read()
        if found.stopped:
            raise OSError(f"nothing controls the arm: {found.stopped}")
        return found


def library(name: str, backend: str, package: str) -> Any:
    """A driver's module. Raises ValueError saying how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(
            f"--backend {backend} needs {package} ({error}): run pip install '.[{backend}]'"
        ) from error


def reached(connect: Callable[[str], Any], address: str) -> Any:
    """What a library has for a connected arm. Raises OSError naming what to do in Desk."""
    try:
        return connect(address)
    except Exception as error:  # libfranka's own kinds, which differ between its versions
        raise OSError(
            f"no Franka answers at {address} ({error}): unlock the joints, activate FCI in Desk, "
            "and check [arm] address"
        ) from error


def open_franka(
    table: dict[str, Any], size: tuple[int, int], make: Callable[[str], Driver]
) -> tuple[Arm, Cameras, Scene | None]:
    """What ``[arm]`` and ``[cameras]`` describe; ``make`` takes the arm's address.

    Raises:
        ValueError: the rig's file is wrong, or a library is missing; it names what to change.
    """
    settings = FrankaSettings.read(table.get("arm", {}))
    arm = FrankaArm(make(settings.address), Robotiq(settings.gripper))
    return arm, open_cameras(table.get("cameras", {}), size), None
