"""Which trajectories of a run leave it, with what success, and into which layout."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from contracts.kinematics import flange_pose
from contracts.types import Trajectory, Verdict
from replay.exported import Exported, joint_target
from replay.store import ReplayStore


@runtime_checkable
class ExportWriter(Protocol):
    """A layout on disk: ``replay.lerobot.LeRobotWriter``, ``replay.ctrl_world.CtrlWorldWriter``."""

    def add(self, episode: Exported) -> None: ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Source:
    """One store of a run. ``alpha`` by task decides about imagined trajectories (Eq. 3).

    ``only_successes``: labelled successes and accepted imagined ones, as the policy trains on.
    """

    folder: Path
    alpha: Mapping[str, float]
    only_successes: bool = False


class Buffer:
    """The trajectories of one store, in the order of their commits."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._store = ReplayStore.open(source.folder)
        self._verdicts = self._store.verdicts()
        self.ids = [name for name in self._store.ids() if self._wanted(name)]

    def __len__(self) -> int:
        return len(self.ids)

    def episodes(self) -> Iterator[Exported]:
        """One trajectory in memory at a time."""
        for name in self.ids:
            yield self._exported(self._store.trajectory(name))

    def close(self) -> None:
        self._store.close()

    def _wanted(self, name: str) -> bool:
        return not self._source.only_successes or self._success(name)

    def _success(self, name: str) -> bool:
        """The label; without one, whether the reward model accepts. Nobody's word: no success."""
        label = self._store.label(name)
        if label is not None:
            return label.success
        verdict = self._verdicts.get(name)
        alpha = self._source.alpha[self._store.provenance(name).task]
        return verdict is not None and verdict.accepted(alpha)

    def _exported(self, trajectory: Trajectory) -> Exported:
        verdict: Verdict | None = self._verdicts.get(trajectory.id)
        return Exported(
            trajectory=trajectory,
            success=self._success(trajectory.id),
            labelled=self._store.label(trajectory.id) is not None,
            verdict=verdict,
            pose_target=flange_pose(joint_target(trajectory)).astype(np.float32),
        )
