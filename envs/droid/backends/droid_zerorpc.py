"""The arm behind a stock DROID control machine: polymetis behind DROID's run_server.py.

Nothing is changed over there. Source:
``droid/franka/robot.py`` and ``scripts/server/run_server.py``
of DROID's public repository.

Whether a controller runs cannot be asked: ``FrankaRobot`` shows neither that nor an error code. A
command to DROID's server starts the impedance controller where none runs, and is answered seconds
later. So the first one is a hold that may take its time: when the host opens, and when a person has
cleared a fault, since polymetis drops its controller in one.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from configs.checks import one_of
from configs.robot import TASKS
from contracts.constants import NUM_JOINTS
from contracts.types import RobotState
from envs.droid.cameras import open_cameras
from envs.droid.link import Link, RemoteFailureError
from envs.droid.rig import Arm, ArmReading, Cameras, Scene

OPEN_S = 5.0  # for calls before anything moves: finding the machine may take a while
LAUNCH_S = 60.0  # per call; DROID's sleep 5 s and start processes
CLOCK_S = 1.0  # within which the arm's clock must have gone on; it does so every ms
START_S = 10.0  # for a controller to start; DROID waits for at most 5 s
LAY_S = 60.0  # stand-in: a scene is compiled at its first use
NOTHING = [0.0] * (NUM_JOINTS + 1)


@dataclass(frozen=True, slots=True)
class ArmSettings:
    """``[arm]`` of the rig's file. Raises ValueError naming what to change.

    ``launch`` kills and restarts the real-time stack when the host starts, as DROID's RobotEnv
    always does: whatever controls the arm at that moment ends, so nothing may hang on it. Without
    it the stack must be running. ``standin`` is for ``python -m envs.droid.standin`` alone.
    """

    address: str  # of run_server.py, tcp://172.16.0.2:4242
    launch: bool = False
    timeout_s: float | int = 0.1  # for any answer: 1.5 ticks. Loopback takes 1 ms
    standin: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"tcp://[^/:]+:\d+", self.address):
            raise ValueError(
                f"[arm] address = {self.address!r} must read like 'tcp://172.16.0.2:4242'"
            )
        if not 0 < self.timeout_s <= 1:
            raise ValueError(f"[arm] timeout_s = {self.timeout_s:g} must be above 0, at most 1 s")

    @classmethod
    def read(cls, table: dict[str, Any]) -> "ArmSettings":
        """Raises ValueError for a name that is none, or a value of another kind."""
        kinds = {"address": str, "launch": bool, "timeout_s": (float, int), "standin": bool}
        for name, value in table.items():
            one_of("name in [arm]", name, kinds)
            if not isinstance(value, kinds[name]):
                raise ValueError(f"[arm] {name} = {value!r} is of the wrong kind")
        if "address" not in table:
            raise ValueError("[arm] needs address = 'tcp://<control machine>:4242'")
        return cls(**table)


class ZerorpcArm:
    """``Arm``. Every call ends within about ``timeout_s``, so that a control machine that hangs or
    is gone is a fault soon.

    Measured against the stand-in on 2 busy cores, with 0.1 s: from its SIGSTOP until the fault 143
    ms (median of 10; at most 165), from its kill 125 ms, from its SIGCONT until it holds 9 ms (at
    most 24). A call takes 3 ms (1 in 100: 12).
    """

    name = "droid_zerorpc"

    def __init__(self, settings: ArmSettings, link: Link) -> None:
        self._settings, self._link = settings, link
        self._owes_hold = False

    def open(self) -> None:
        """Raises OSError naming what to do on the control machine."""
        if self._settings.launch:
            for method in ("launch_controller", "launch_robot"):
                self._link.call(method, timeout_s=LAUNCH_S)
        if self._settings.standin and "lay" not in self._ask("_zerorpc_list"):
            raise OSError(f"[arm] standin = true, but {self._settings.address} is no stand-in")
        first = _reading(self._ask("get_robot_state"))
        until = time.monotonic() + CLOCK_S
        while _reading(self._ask("get_robot_state")).state.time_s == first.state.time_s:
            if time.monotonic() > until:
                raise OSError(
                    "the arm's clock stands still: nothing drives it behind run_server.py. Unlock "
                    "the joints and activate FCI in Franka's Desk, then start this host with "
                    "launch = true in [arm]"
                )
            time.sleep(0.01)
        self.ready()

    def read(self) -> ArmReading:
        """The newest state. Raises OSError when the control machine does not answer."""
        if self._owes_hold:  # the machine was away when it was to hold, and may be back
            self.hold()
        return _reading(self._link.call("get_robot_state"))

    def move(self, action: Float[np.ndarray, " 8"]) -> Float[np.ndarray, " 7"]:
        """See ``Arm.move``. Raises OSError when the control machine does not answer."""
        answer = self._command(action.tolist(), "position")
        return np.asarray(answer["joint_position"], np.float64)

    def hold(self) -> None:
        """See ``Arm.hold``. A zero gripper velocity, too, is a target made over there, at once,
        from what the fingers measure. Where it cannot be sent it is sent before the next read."""
        self._owes_hold = True
        self._command(NOTHING, "velocity")
        self._owes_hold = False

    def ready(self) -> None:
        """Raises OSError when the control machine does not answer."""
        self._command(NOTHING, "velocity", START_S)
        self._owes_hold = False

    def close(self) -> None:
        self._link.close()

    def _command(
        self, action: list[float], gripper_space: str, timeout_s: float | None = None
    ) -> Any:
        given = (action, "joint_velocity", gripper_space, False)
        return self._link.call("update_command", *given, timeout_s=timeout_s)

    def _ask(self, method: str) -> Any:
        """Before anything moves."""
        try:
            return self._link.call(method, timeout_s=OPEN_S)
        except RemoteFailureError as error:
            raise OSError(
                f"{error}. If nobody has launched the robot since run_server.py was started, set "
                "launch = true in [arm]"
            ) from error


class StandInScene:
    """``Scene`` of a stand-in; no control machine with an arm has one."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def lay(self, task: str, seed: int) -> str:
        one_of("task", task, TASKS)
        return self._link.call("lay", task, seed, timeout_s=LAY_S)

    def success(self) -> bool:
        return self._link.call("success", timeout_s=OPEN_S)  # nothing hangs on it


def _reading(answer: Any) -> ArmReading:
    """DROID's state and time stamps as ours. Raises OSError where it is something else."""
    try:
        state, stamp = answer
        read = RobotState(
            joint_position=np.array(state["joint_positions"], np.float32),
            joint_velocity=np.array(state["joint_velocities"], np.float32),
            cartesian_position=np.array(state["cartesian_position"], np.float32),
            gripper_position=float(state["gripper_position"]),
            time_s=stamp["robot_timestamp_seconds"] + 1e-9 * stamp["robot_timestamp_nanos"],
        )
        return ArmReading(read, bool(state["prev_command_successful"]))
    except (KeyError, TypeError, ValueError) as error:
        raise OSError(f"the control machine's state is not DROID's: {error!r}") from error


def open_rig(table: dict[str, Any], size: tuple[int, int]) -> tuple[Arm, Cameras, Scene | None]:
    """Raises ValueError naming what to change in the rig's file or to install."""
    settings = ArmSettings.read(table.get("arm", {}))
    link = Link(settings.address, settings.timeout_s)
    cameras = open_cameras(table.get("cameras", {}), size)
    return ZerorpcArm(settings, link), cameras, StandInScene(link) if settings.standin else None
