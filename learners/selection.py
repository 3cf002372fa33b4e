"""Which stored trajectories a learner draws from, and how batches are drawn and shared out."""

import shutil
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt8

from contracts.seeds import fold, in_share
from contracts.types import LatentFormat, Trajectory, Verdict
from learners.loop import shard
from models.interfaces import Trainable
from replay.codec import EpisodeRow
from replay.latents import LatentCache
from replay.store import ReplayStore

Windows = Int64[np.ndarray, "window 2"]  # row of the episode, 5 Hz frame in it


@runtime_checkable
class Source(Protocol):
    """What a learner asks of where its trajectories are: a ``ReplayStore`` in every run."""

    @property
    def folder(self) -> Path: ...
    def episodes(self, ids: Collection[str]) -> list[EpisodeRow]: ...
    def frames_many(
        self, pairs: Iterable[tuple[str, Sequence[int]]]
    ) -> list[UInt8[np.ndarray, "frame 3 height width 3"]]: ...
    def trajectory(self, trajectory_id: str) -> Trajectory: ...


@dataclass(frozen=True, slots=True)
class Selection:
    """Some trajectories of a store. The order of ``ids`` does not matter."""

    store: Source
    ids: Sequence[str]


def real_successes(store: ReplayStore) -> Selection:
    """Every trajectory that a person, the simulator or its recording calls a success."""
    labels = {name: store.label(name) for name in store.ids()}
    return Selection(store, [name for name, label in labels.items() if label and label.success])


def accepted(
    store: ReplayStore, verdicts: Mapping[str, Verdict], alpha: Mapping[str, float]
) -> Selection:
    """D_syn+ of Eq. 3: P('yes') above its task's ``alpha``. A scoring error is left out."""
    ids = [
        name
        for name, verdict in verdicts.items()
        if verdict.accepted(alpha[store.provenance(name).task])
    ]
    return Selection(store, ids)


def held_out(ids: Iterable[str], share: float) -> tuple[list[str], list[str]]:
    """Split whole episodes into (kept for training, held out).

    Each goes where the hash of its own id puts it, so an episode never changes sides while the
    store grows. The held-out share is right on average, not for every small set.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for name in ids:
        sides[in_share(share, "holdout", name)].append(name)
    return sides


class Episodes:
    """The rows of a selection in the order of their ids: a batch never depends on the order in
    which parallel workers happened to store them. Frames are read when asked for."""

    def __init__(self, selection: Selection) -> None:
        self._store = selection.store
        self.rows: list[EpisodeRow] = self._store.episodes(sorted(set(selection.ids)))

    def __len__(self) -> int:
        return len(self.rows)

    def windows(self, ahead: int) -> Windows:
        """All (episode, frame) with ``ahead`` more frames behind them."""
        parts = [
            np.stack([np.full(count, row), np.arange(count)], axis=1)
            for row, episode in enumerate(self.rows)
            if (count := episode.num_frames - ahead) > 0
        ]
        return np.concatenate(parts) if parts else np.zeros((0, 2), np.int64)

    def frames(
        self, wanted: Sequence[tuple[int, Sequence[int]]]
    ) -> list[UInt8[np.ndarray, "frame 3 height width 3"]]:
        """Frames of many (episode row, frame indices) in one read."""
        return self._store.frames_many([(self.rows[row].id, picks) for row, picks in wanted])

    def latents(self, latents: LatentFormat) -> LatentCache | None:
        """The stored latents of this encoder, if they cover every trajectory.

        Raises:
            ValueError: they are of trajectories with other numbers of frames.
        """
        cache = LatentCache.open(self._store.folder, latents)
        if cache is None or any(row.id not in cache for row in self.rows):
            return None
        for row in self.rows:
            if cache.num_frames(row.id) != row.num_frames:
                raise ValueError(
                    f"{self._store.folder} holds latents of {cache.num_frames(row.id)} frames for "
                    f"{row.id!r}, which has {row.num_frames}: delete its latents-{latents.key} "
                    "and run job=latents"
                )
        return cache


def step_rng(seed: int, stream: str, step: int) -> np.random.Generator:
    """The generator of one step's draws."""
    return np.random.default_rng(fold(seed, stream, step))


def my_share(batch: int) -> slice:
    """Which rows of the global batch this learner process takes.

    Raises:
        ValueError: there are more processes than rows.
    """
    rank, world = shard()
    if batch < world:
        raise ValueError(f"train.batch={batch} is less than the {world} learner processes")
    return slice(rank, None, world)


def save_weights(trainable: Trainable, folder: Path) -> Path:
    """A fresh folder with the trained weights, for ``commit`` to move into place."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    trainable.save(partial)
    return partial


def commit(partial: Path, folder: Path) -> None:
    """Put a finished folder in its place as one rename."""
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
