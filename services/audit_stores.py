"""The stores of a run, read while the run may go on."""

import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from contracts.types import Verdict
from replay.store import ReplayStore, StoreOptions

STORES = ("imagined", "real", "evaluation", "demos")
REFRESH_S = 5.0  # stores are looked at again after this long
OPTIONS = StoreOptions(cache_mb=32)  # films are kept as films


class AuditStores:
    """Those of ``STORES`` that are there; what they hold was true within ``REFRESH_S`` seconds.

    Methods may be called from several threads. Names from outside are looked up, never joined to a
    path.

    Raises:
        ValueError: there is no store of imagined trajectories.
    """

    def __init__(self, folder: Path) -> None:
        self._paths = {name: folder / "stores" / name for name in STORES}
        self._stores = self._opened()
        if "imagined" not in self._stores:
            raise ValueError(
                f"{folder} holds no imagined trajectories: give out=<folder of a run> that has "
                "begun to imagine"
            )
        self._mutex = threading.Lock()
        self._look()

    def close(self) -> None:
        """Idempotent."""
        for store in self._stores.values():
            store.close()

    def __iter__(self) -> Iterator[tuple[str, ReplayStore]]:
        """Names and stores."""
        return iter(self._stores.items())

    def store(self, name: str) -> ReplayStore:
        """Raises ValueError for another name than those of this run."""
        if name not in self._stores:
            raise ValueError(f"no store {name!r} here; there are {', '.join(self._stores)}")
        return self._stores[name]

    @property
    def imagined(self) -> ReplayStore:
        return self._stores["imagined"]

    def holding(self, trajectory_id: str) -> str:
        """The store of a trajectory, "" where none holds it."""
        return next((name for name, store in self if trajectory_id in store), "")

    def verdicts(self, store: str) -> Mapping[str, Verdict]:
        """Each trajectory's verdict by the newest reward model that judged it."""
        return self._verdicts[store]

    @property
    def populations(self) -> Mapping[str, Mapping[str, Verdict]]:
        """By task, the verdicts of the newest reward model on imagined trajectories."""
        return self._populations

    def refresh(self) -> None:
        """See what the run has stored since. Stores are opened anew: to refresh one that another
        thread reads at that moment makes Lance fail ("Already borrowed")."""
        with self._mutex:
            if time.monotonic() - self._seen_at >= REFRESH_S:
                self._stores = self._opened()
                self._look()

    def _opened(self) -> dict[str, ReplayStore]:
        there = {name: path for name, path in self._paths.items() if path.is_dir()}
        return {name: ReplayStore.open(path, OPTIONS) for name, path in there.items()}

    def _look(self) -> None:
        self._verdicts = {name: store.verdicts() for name, store in self._stores.items()}
        known = self._verdicts["imagined"]
        version = max((verdict.reward_version for verdict in known.values()), default=0)
        found: dict[str, dict[str, Verdict]] = {}
        for name, verdict in known.items():
            if verdict.reward_version == version and name in self.imagined:
                found.setdefault(self.imagined.provenance(name).task, {})[name] = verdict
        self._populations = dict(sorted(found.items()))
        self._seen_at = time.monotonic()
