"""The trajectory store: one writer, many readers, every acknowledged trajectory kept."""

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from contracts.types import Clip, Label, Origin, Provenance, Trajectory, Verdict
from replay.codec import (
    EpisodeRow,
    check_trajectory,
    check_verdict,
    episode_table,
    frames_table,
    read_episodes,
    read_verdicts,
    verdicts_table,
)
from replay.frames import FrameCache, FrameReader
from replay.images import ImageCoding
from replay.index import Entry, Index
from replay.lock import WriterLock
from replay.schema import EPISODES, FRAMES, LIGHT, VERDICTS
from replay.tables import Table, Upkeep

_TABLES = {"episodes": EPISODES, "frames": FRAMES, "verdicts": VERDICTS}


@dataclass(frozen=True, slots=True)
class StoreOptions:
    """How a process uses a store; nothing here changes what is stored but ``coding``."""

    coding: ImageCoding = field(default_factory=ImageCoding)
    cache_mb: int = 256  # decoded frames kept in memory
    decode_threads: int = 1
    lock_wait_s: float = 5.0  # how long a writer waits for another one to end
    upkeep: Upkeep = field(default_factory=Upkeep)


class ReplayStore:
    """Trajectories, labels and verdicts in a folder (Lance; ``replay/schema.py``).

    ``create_or_open`` makes the one writer, ``open`` a reader. A reader sees what was committed
    when it was opened or last refreshed. Methods may be called from several threads of a
    process; a store must not cross a fork.

    Raises:
        ValueError: a torn or missing file, another schema version, a second writer.
    """

    def __init__(self, folder: Path, options: StoreOptions, lock: WriterLock | None) -> None:
        self._folder, self._coding, self._lock = folder, options.coding, lock
        opener = Table if lock is None else Table.create_or_open
        tables = {
            name: opener(folder / f"{name}.lance", schema, options.upkeep)
            for name, schema in _TABLES.items()
        }
        self._episodes, self._frames = tables["episodes"], tables["frames"]
        self._verdicts = tables["verdicts"]
        cache = FrameCache(options.cache_mb * 2**20)
        self._reader = FrameReader(self._frames, cache, options.decode_threads)
        self._mutex = threading.RLock()
        self._index = Index()
        self._unsure = lock is not None  # frames without an episode may lie behind the last one
        self._load_index()
        self._check_frames()

    @classmethod
    def create_or_open(
        cls, folder: str | Path, options: StoreOptions | None = None
    ) -> "ReplayStore":
        """The writer. Creates the folder where it is missing and sweeps up after a crash."""
        options, path = options or StoreOptions(), _local(folder)
        path.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path / "writer.lock", options.lock_wait_s)
        try:
            store = cls(path, options, lock)
            store._sweep()
        except BaseException:  # whatever it was, an interrupt too: the lock must not stay behind
            lock.release()
            raise
        return store

    @classmethod
    def open(cls, folder: str | Path, options: StoreOptions | None = None) -> "ReplayStore":
        """A reader of a store that exists."""
        return cls(_local(folder), options or StoreOptions(), None)

    def close(self) -> None:
        """Let another writer in. Idempotent."""
        self._reader.close()
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def add(self, trajectory: Trajectory, label: Label | None) -> bool:
        """Commit a trajectory before returning. False if its id is stored: nothing changes.

        Raises:
            ValueError: an array has the wrong dtype or shape or is not finite; the label names
                another trajectory; this process is not the writer.
        """
        check_trajectory(trajectory, label)
        frames = frames_table(trajectory, self._coding)
        with self._mutex:
            self._require_writer()
            if trajectory.id in self._index.entries:
                return False
            self._sweep()
            episode = episode_table(trajectory, label, self._index.end)
            self._unsure = True  # until the episode row stands
            self._frames.append(frames)
            self._episodes.append(episode)
            self._unsure = False
            self._index.extend(episode.select(LIGHT))
        return True

    def add_verdicts(self, verdicts: Sequence[Verdict]) -> None:
        """Append scores of stored trajectories in one commit; earlier ones stay.

        Raises:
            ValueError: an unknown trajectory, ``p_yes`` no probability, not the writer.
        """
        for verdict in verdicts:
            check_verdict(verdict)
            self._entry(verdict.trajectory_id)
        if verdicts:
            with self._mutex:
                self._require_writer()
                self._verdicts.append(verdicts_table(verdicts))

    def refresh(self) -> int:
        """See what the writer has committed since; returns how many trajectories are new."""
        with self._mutex:
            known = len(self)
            self._episodes.refresh()  # before the frames: those of a row we see are then there
            self._frames.refresh()
            self._verdicts.refresh()
            self._load_index()
            return len(self) - known

    def __len__(self) -> int:
        return len(self._index.entries)

    def __contains__(self, trajectory_id: str) -> bool:
        return trajectory_id in self._index.entries

    def ids(
        self, origin: Origin | None = None, task: str | None = None, iteration: int | None = None
    ) -> list[str]:
        """Ids in the order of their commits, narrowed to those that agree with what is given."""
        wanted = {"origin": origin, "task": task, "iteration": iteration}
        asked = {name: value for name, value in wanted.items() if value is not None}
        return [
            name
            for name, entry in list(self._index.entries.items())
            if all(getattr(entry.provenance, key) == value for key, value in asked.items())
        ]

    def provenance(self, trajectory_id: str) -> Provenance:
        return self._entry(trajectory_id).provenance

    def label(self, trajectory_id: str) -> Label | None:
        return self._entry(trajectory_id).label

    def instruction(self, trajectory_id: str) -> str:
        return self._entry(trajectory_id).instruction

    def num_frames(self, trajectory_id: str) -> int:
        return self._entry(trajectory_id).num_frames

    def episodes(self, ids: Collection[str] | None = None) -> list[EpisodeRow]:
        """Trajectories without frames, in the order of ``ids``; all of them by default."""
        names = self.ids() if ids is None else list(ids)
        rows = np.array([self._entry(name).row for name in names], np.int64)
        return read_episodes(self._episodes.take(rows, EPISODES.names)) if names else []

    def frames(
        self, trajectory_id: str, indices: Sequence[int]
    ) -> UInt8[np.ndarray, "frame 3 height width 3"]:
        """These 5 Hz frames, in the order asked for; repeats are allowed."""
        return self.frames_many([(trajectory_id, indices)])[0]

    def frames_many(
        self, pairs: Iterable[tuple[str, Sequence[int]]]
    ) -> list[UInt8[np.ndarray, "frame 3 height width 3"]]:
        """``frames`` of many trajectories in one read: what a sampler should call per batch."""
        wanted = [self._entry(name).keys(indices) for name, indices in pairs]
        for keys in wanted:
            if not keys:
                raise ValueError("zero frame indices: ask for at least one frame")
        found = self._reader.read(key for keys in wanted for key in keys)
        return [np.stack([found[key.row] for key in keys]) for keys in wanted]

    def trajectory(self, trajectory_id: str) -> Trajectory:
        """The whole trajectory; frames as the image coding kept them, all else bit-exact."""
        (row,) = self.episodes([trajectory_id])
        return Trajectory(
            provenance=row.provenance,
            instruction=row.instruction,
            actions=row.actions,
            joint_position=row.joint_position,
            gripper_position=row.gripper_position,
            cartesian_position=row.cartesian_position,
            frames=self.frames(trajectory_id, range(row.num_frames)),
            ending=row.ending,
        )

    def clip(self, trajectory_id: str, num_frames: int) -> Clip:
        """``num_frames`` evenly spaced frames; of a shorter trajectory, some repeat."""
        entry = self._entry(trajectory_id)
        indices = clip_indices(entry.num_frames, num_frames)
        return Clip(self.frames(trajectory_id, indices), indices, entry.instruction)

    def verdicts(self, reward_version: int | None = None) -> dict[str, Verdict]:
        """The verdict of each scored trajectory, or those of one reward model.

        The highest reward version wins; among equals, the one that was added last.
        """
        latest: dict[str, Verdict] = {}
        for verdict in read_verdicts(self._verdicts.read()):
            before = latest.get(verdict.trajectory_id)
            if reward_version not in (None, verdict.reward_version):
                continue
            if before is None or verdict.reward_version >= before.reward_version:
                latest[verdict.trajectory_id] = verdict
        return latest

    @property
    def folder(self) -> Path:
        return self._folder

    def bytes_on_disk(self) -> int:
        return sum(file.stat().st_size for file in self._folder.rglob("*") if file.is_file())

    @property
    def version(self) -> int:
        """Grows with every committed change of the episodes that this process sees."""
        return self._episodes.version

    def _entry(self, trajectory_id: str) -> Entry:
        entry = self._index.entries.get(trajectory_id)
        if entry is None:
            raise ValueError(
                f"no trajectory {trajectory_id!r} among {len(self)} in {self._folder}; "
                "a reader sees newer ones after refresh()"
            )
        return entry

    def _require_writer(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self._folder} is open for reading; write through the one writer")

    def _load_index(self) -> None:
        self._index.extend(self._episodes.read(LIGHT, start=len(self)))

    def _check_frames(self) -> None:
        if self._frames.num_rows < self._index.end:
            raise ValueError(
                f"{self._folder / 'frames.lance'} has {self._frames.num_rows} rows, its episodes "
                f"need {self._index.end}: restore both tables from the same backup, or delete the "
                f"newest file (the lowest number) in {self._folder / 'episodes.lance/_versions'}"
            )

    def _sweep(self) -> None:
        """Remove frames whose episode row was never committed; they lie behind all others."""
        if self._unsure:
            self._episodes.refresh()  # an append may have failed after its commit
            self._load_index()
            tail = self._frames.read(["trajectory_id"], start=self._index.end)
            if tail.num_rows:
                self._frames.remove(sorted(set(tail["trajectory_id"].to_pylist())))
            self._unsure = False


def clip_indices(frames: int, num_frames: int) -> tuple[int, ...]:
    """``num_frames`` of ``frames`` evenly spaced indices, first and last included.

    Rounded as transformers' Qwen3-VL video processor does, half to even. One frame is the last.

    Raises:
        ValueError: ``num_frames`` is not positive.
    """
    if num_frames < 1:
        raise ValueError(f"a clip of {num_frames} frames: ask for at least 1")
    if num_frames == 1:
        return (frames - 1,)
    return tuple(int(index) for index in np.linspace(0, frames - 1, num_frames).round())


def _local(folder: str | Path) -> Path:
    if "://" in str(folder):
        raise ValueError(f"{folder} is a URL; a store needs a path that every node mounts")
    return Path(folder)
