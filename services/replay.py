"""The one writer of a run's trajectory stores, by name."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from contracts.metrics import EPISODES, STORE_BYTES, STORE_TRAJECTORIES, Meter, NoMeter
from contracts.types import Clip, Label, Trajectory, Verdict
from replay.store import ReplayStore, StoreOptions

MEASURE_S = 10.0  # a store's bytes are measured at most that often: it looks at every file


@dataclass(frozen=True, slots=True)
class StoreCounts:
    """How much one store holds; ``successes`` among those that carry a label."""

    trajectories: int
    labelled: int
    successes: int
    bytes_on_disk: int


class ReplayService:
    """Opens every store for writing; after a restart it reopens them as they are.

    ``folders`` maps a store's name ("real", "demos", "imagined", "evaluation") to its folder.
    ``clock``: monotonic seconds.

    Raises:
        ValueError: no such store, or whatever the store refuses.
    """

    def __init__(
        self,
        folders: Mapping[str, str | Path],
        options: StoreOptions | None = None,
        meter: Meter | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stores = {
            name: ReplayStore.create_or_open(folder, options) for name, folder in folders.items()
        }
        self._meter: Meter = meter or NoMeter()
        self._clock = clock
        self._measured: dict[str, float] = {}
        for name in self._stores:
            self._measure(name)

    def add(self, store: str, trajectory: Trajectory, label: Label | None) -> bool:
        """Commit a trajectory; False when its id is stored already."""
        new = self._store(store).add(trajectory, label)
        if new:
            self._report(store, trajectory, label)
        return new

    def _report(self, store: str, trajectory: Trajectory, label: Label | None) -> None:
        provenance = trajectory.provenance
        if provenance.origin != "imagined":  # those are counted where they are imagined
            ending = outcome(trajectory, label)
            self._meter.count(EPISODES, store=store, task=provenance.task, outcome=ending)
        self._meter.set(STORE_TRAJECTORIES, len(self._store(store)), store=store)
        if self._clock() - self._measured[store] >= MEASURE_S:
            self._measure(store)

    def _measure(self, name: str) -> None:
        store = self._store(name)
        self._measured[name] = self._clock()
        self._meter.set(STORE_TRAJECTORIES, len(store), store=name)
        self._meter.set(STORE_BYTES, store.bytes_on_disk(), store=name)

    def add_verdicts(self, store: str, verdicts: Sequence[Verdict]) -> None:
        self._store(store).add_verdicts(verdicts)

    def ids(self, store: str) -> list[str]:
        return self._store(store).ids()

    def trajectory(self, store: str, trajectory_id: str) -> Trajectory:
        return self._store(store).trajectory(trajectory_id)

    def clip(self, store: str, trajectory_id: str, num_frames: int) -> Clip:
        return self._store(store).clip(trajectory_id, num_frames)

    def verdicts(self, store: str, reward_version: int | None = None) -> dict[str, Verdict]:
        return self._store(store).verdicts(reward_version)

    def counts(self) -> dict[str, StoreCounts]:
        return {name: _counts(store) for name, store in self._stores.items()}

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _store(self, name: str) -> ReplayStore:
        if name not in self._stores:
            raise ValueError(f"no store {name!r}; there are {', '.join(sorted(self._stores))}")
        return self._stores[name]


def outcome(trajectory: Trajectory, label: Label | None) -> str:
    """``aborted``, ``unlabelled``, ``success`` or ``failure``."""
    if trajectory.ending.startswith("aborted"):
        return "aborted"
    if label is None:
        return "unlabelled"
    return "success" if label.success else "failure"


def _counts(store: ReplayStore) -> StoreCounts:
    labels = [label for label in map(store.label, store.ids()) if label is not None]
    successes = sum(label.success for label in labels)
    return StoreCounts(len(store), len(labels), successes, store.bytes_on_disk())
