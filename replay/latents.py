"""Latents of stored frames, beside the store: encoded once, read by window."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int64

from contracts.types import LatentFormat
from replay.lock import WriterLock
from replay.schema import SCHEMA_VERSION
from replay.tables import Table, Upkeep

FACTS = "latents.json"
MOMENTS = 2  # mean and standard deviation
_UPKEEP = Upkeep(every=64, rows=256)  # rows are 100 times as wide as compressed frames


class LatentCache:
    """Mean and standard deviation of every frame of some trajectories of a store.

    One folder per image encoder, ``<store>/latents-<key>``: a Lance table with one row per frame,
    and what made them in ``latents.json``. The rows of a trajectory are committed together, so it
    is here whole or not at all. One writer, many readers.

    Raises:
        ValueError: the folder holds latents of another size, scale or dtype, or is torn.
    """

    def __init__(
        self, folder: Path, latents: LatentFormat, dtype: str, lock: WriterLock | None
    ) -> None:
        self.format = latents
        self._folder, self._dtype, self._lock = folder, np.dtype(dtype), lock
        self._rows: dict[str, tuple[int, int]] = {}  # id -> first row, number of frames
        self._end = 0
        opener = Table if lock is None else Table.create_or_open
        try:
            schema = _schema(latents, self._dtype)
            self._table = opener(folder / "moments.lance", schema, _UPKEEP)
            self._load_index()
        except BaseException:  # whatever it was, an interrupt too: the lock must not stay behind
            self.close()
            raise

    @classmethod
    def create_or_open(
        cls, store: Path, latents: LatentFormat, dtype: str = "float32", lock_wait_s: float = 5.0
    ) -> "LatentCache":
        """The writer of the latents beside ``store``; ``dtype`` is float32 or float16.

        ``lock_wait_s`` is how long to wait for another writer to end.
        """
        folder = store / f"latents-{latents.key}"
        if not (folder / FACTS).exists():
            folder.mkdir(parents=True, exist_ok=True)
            _write_facts(folder, asdict(latents) | {"dtype": dtype})
        found = _facts(folder, latents)
        if found != dtype:
            raise ValueError(
                f"{folder} holds latents as {found}: set world_model.ctrl_world.latents_dtype="
                f"{found}, or delete the folder to extract them anew"
            )
        lock = WriterLock(folder / "writer.lock", lock_wait_s)
        return cls(folder, latents, dtype, lock)

    @classmethod
    def open(cls, store: Path, latents: LatentFormat) -> "LatentCache | None":
        """A reader; None where this encoder's latents were never extracted."""
        folder = store / f"latents-{latents.key}"
        if not (folder / FACTS).exists() or not (folder / "moments.lance").exists():
            return None
        return cls(folder, latents, _facts(folder, latents), None)

    def close(self) -> None:
        """Let another writer in. Idempotent."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def __contains__(self, trajectory_id: str) -> bool:
        return trajectory_id in self._rows

    def __len__(self) -> int:
        return len(self._rows)

    def num_frames(self, trajectory_id: str) -> int:
        return self._rows[trajectory_id][1]

    def add(
        self, trajectory_id: str, moments: Float[np.ndarray, "frame 2 channels rows columns"]
    ) -> bool:
        """Commit one trajectory before returning; False if it is here: nothing changes.

        Raises:
            ValueError: another size, numbers that are not finite (in ``latents_dtype``), no writer.
        """
        if self._lock is None:
            raise ValueError(f"{self._folder} is open for reading; write through the one writer")
        if trajectory_id in self:
            return False
        if moments.shape[1:] != (MOMENTS, *self.format.shape) or not len(moments):
            raise ValueError(
                f"latents of {trajectory_id!r} are {moments.shape}, {self._folder} holds "
                f"(frames, {MOMENTS}, {self.format.shape})"
            )
        with np.errstate(over="ignore"):
            stored = moments.astype(self._dtype)
        if not np.isfinite(stored).all():
            raise ValueError(
                f"latents of {trajectory_id!r} are not finite as {self._dtype}: look at its frames "
                "and the VAE's weights, or set world_model.ctrl_world.latents_dtype=float32"
            )
        self._table.append(_rows(trajectory_id, stored))
        self._load_index()
        return True

    def windows(
        self, pairs: Iterable[tuple[str, Sequence[int]]]
    ) -> list[Float32[np.ndarray, "frame 2 channels rows columns"]]:
        """These frames of many trajectories in one read; each row is read once, nothing else is.

        Raises:
            ValueError: a trajectory or frame that is not here.
        """
        wanted = [np.array([self._row(name, int(i)) for i in picks]) for name, picks in pairs]
        if not wanted:
            return []
        rows = np.unique(np.concatenate(wanted)).astype(np.int64)
        found = self._read(rows)
        return [found[np.searchsorted(rows, part)] for part in wanted]

    def _row(self, name: str, frame: int) -> int:
        first, count = self._rows.get(name, (0, 0))
        if not 0 <= frame < count:
            raise ValueError(
                f"{self._folder} has no latents of frame {frame} of {name!r}, which has {count} "
                "there: run job=latents"
            )
        return first + frame

    def _read(self, rows: Int64[np.ndarray, " row"]) -> np.ndarray:
        table = self._table.take(rows, ("frame", "moments"))
        flat = table["moments"].combine_chunks().flatten().to_numpy()
        return flat.reshape(len(rows), MOMENTS, *self.format.shape).astype(np.float32)

    def _load_index(self) -> None:
        """Learn what was committed since the last look."""
        for name in self._table.read(["trajectory_id"], start=self._end)[0].to_pylist():
            first, count = self._rows.get(name, (self._end, 0))
            self._rows[name] = (first, count + 1)
            self._end += 1


def _schema(latents: LatentFormat, dtype: np.dtype) -> pa.Schema:
    size = MOMENTS * int(np.prod(latents.shape))
    return pa.schema(
        [
            pa.field("trajectory_id", pa.string(), nullable=False),
            pa.field("frame", pa.int64(), nullable=False),  # 5 Hz index inside the trajectory
            pa.field("moments", pa.list_(pa.from_numpy_dtype(dtype), size), nullable=False),
        ],
        metadata={"schema_version": SCHEMA_VERSION},
    )


def _rows(name: str, moments: np.ndarray) -> pa.Table:
    count = len(moments)
    flat = pa.array(np.ascontiguousarray(moments).reshape(-1))
    schema = _schema(LatentFormat("", 1.0, moments.shape[2:]), moments.dtype)
    columns = {
        "trajectory_id": [name] * count,
        "frame": np.arange(count),
        "moments": pa.FixedSizeListArray.from_arrays(flat, moments[0].size),
    }
    return pa.table(columns, schema=schema)


def _facts(folder: Path, latents: LatentFormat) -> str:
    """The dtype that ``folder`` is kept in, once key, scale and size are known to agree."""
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        dtype = facts.pop("dtype")
        found = LatentFormat(facts["key"], facts["scale"], tuple(facts["shape"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FACTS} is damaged ({error}): delete {folder}") from error
    if found != latents:
        raise ValueError(
            f"{folder} holds latents of {found}, the world model makes {latents}: delete the "
            "folder and run job=latents, or use the world model that made them"
        )
    return dtype


def _write_facts(folder: Path, facts: Mapping[str, object]) -> None:
    """Whole or absent after a crash."""
    partial = folder / (FACTS + ".tmp")
    with partial.open("w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(folder / FACTS)
