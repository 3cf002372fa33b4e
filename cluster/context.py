"""What every stage of a run works with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.checkpoints import CheckpointFolder
from cluster.handles import RemoteStore, Stall
from configs.run import RunConfig
from replay.store import ReplayStore
from services.progress import Bar, Reporter
from services.stages import Stages

CONTROL_VERSION = 9000  # of the control's policy; versions of the loop count up from 0
STORES = ("real", "demos", "imagined", "evaluation")


@dataclass(frozen=True, slots=True)
class Versions:
    """The newest published version of each model."""

    policy: int = 0
    world_model: int = 0
    reward: int = 0


@dataclass(frozen=True, slots=True)
class Context:
    """One run: its config, its folder and the services that serve it."""

    config: RunConfig
    folder: Path
    tasks: list[str]
    stages: Stages
    reporter: Reporter
    checkpoints: CheckpointFolder
    replay: Any  # the ReplayService actor, the only writer of the stores

    def writer(self, store: str) -> RemoteStore:
        return RemoteStore(self.replay, store)

    def reader(self, store: str) -> ReplayStore:
        """Open a store for reading; it shows what was committed until now."""
        return ReplayStore.open(self.store_folder(store))

    def store_folder(self, store: str) -> Path:
        return self.folder / "stores" / store

    def stall(self, bar: Bar, advice: str, **services: Any) -> Stall:
        """What the stage of ``bar`` puts up with; ``services`` it leans on beside the stores'."""
        cluster, leans_on = self.config.cluster, {"replay service": self.replay}
        for name, actor in services.items():
            leans_on[name.replace("_", " ")] = actor
        return Stall(
            bar.name,
            cluster.stall_timeout_s,
            advice,
            cluster.max_failures,
            leans_on,
            bar.lost,
        )

    def newest(self) -> dict[str, int]:
        """The newest version of each model that the loop has published."""
        found: dict[str, int] = {}
        for facts in self.checkpoints.lineage():
            kind, version = str(facts["kind"]), facts["version"]
            if isinstance(version, int) and version < CONTROL_VERSION:
                found[kind] = max(version, found.get(kind, version))
        return found

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.config.robot.height, self.config.robot.width
