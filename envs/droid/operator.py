"""Who stands beside the robot: a person at a console, or in simulation nobody."""

from typing import Any, Protocol, runtime_checkable

from configs.robot import SETTLE_TICKS
from envs.droid.rig import Scene

Episode = dict[str, Any]  # trajectory_id, task, instruction, policy_version, max_ticks; ending


@runtime_checkable
class Operator(Protocol):
    """What the host asks and tells the person. ``envs.droid.desk.Desk`` is the real one."""

    def stop_asked(self) -> bool:
        """Whether nothing may move. Asked every tick: never waits."""
        ...

    def finished(self) -> bool:
        """Whether the person has ended the running episode."""
        ...

    def expect(self, task: str, seed: int, instruction: str = "") -> str:
        """The next episode; returns its instruction, which is ``instruction`` where a simulator has
        laid the scene. Raises ValueError for an unknown task."""
        ...

    def may_start(self) -> bool:
        """Whether the scene is laid, hands are off the table and somebody pressed start."""
        ...

    def began(self, episode: Episode) -> None:
        """The arm may move once this has returned. Raises ValueError where nobody agreed."""
        ...

    def ended(self, episode: Episode) -> None:
        """The arm is held."""
        ...

    def label(self, trajectory_id: str) -> dict[str, Any] | None:
        """success (None where discarded), discarded, who, when, progress; None: not said yet."""
        ...

    def fault(self, reason: str) -> None:
        """Nothing may move until it is cleared."""
        ...


class Unattended:
    """Stands in for the person where everything is simulated: starts at once, ends an episode at
    its privileged success, labels by it, and clears every fault. Never for hardware."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._successes = 0
        self._labels: dict[str, dict[str, Any]] = {}

    def stop_asked(self) -> bool:
        return False

    def finished(self) -> bool:
        self._successes = self._successes + 1 if self._scene.success() else 0
        return self._successes >= SETTLE_TICKS

    def expect(self, task: str, seed: int, instruction: str = "") -> str:
        del task, seed
        return instruction

    def may_start(self) -> bool:
        return True

    def began(self, episode: Episode) -> None:
        del episode
        self._successes = 0

    def ended(self, episode: Episode) -> None:
        said = {"success": self._scene.success(), "discarded": False, "progress": None}
        self._labels[episode["trajectory_id"]] = said | {"who": "simulator", "when": ""}

    def label(self, trajectory_id: str) -> dict[str, Any] | None:
        return self._labels.get(trajectory_id)

    def fault(self, reason: str) -> None:
        del reason
