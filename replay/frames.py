"""Random access to single frames, with the most recent ones kept decoded in memory."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from replay.images import Frame, decode
from replay.tables import Table


@dataclass(frozen=True, slots=True)
class FrameKey:
    """Frame ``frame`` of a trajectory, at row ``row`` of the table."""

    trajectory_id: str
    frame: int
    row: int


class FrameCache:
    """Decoded frames by row, least recently used out first. Thread-safe.

    ``limit`` is in bytes of pixels; 0 keeps nothing.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes = 0
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        return self._bytes

    def get(self, rows: Iterable[int]) -> dict[int, Frame]:
        """Those of ``rows`` that are kept."""
        with self._lock:
            found = {row: self._frames[row] for row in rows if row in self._frames}
            for row in found:
                self._frames.move_to_end(row)
            return found

    def put(self, frames: Mapping[int, Frame]) -> None:
        with self._lock:
            for row, frame in frames.items():
                if row not in self._frames:
                    self._bytes += frame.nbytes
                self._frames[row] = frame
            while self._bytes > self._limit:
                _, oldest = self._frames.popitem(last=False)
                self._bytes -= oldest.nbytes


class FrameReader:
    """Reads frames of the table by row and checks that they are the ones asked for.

    Raises:
        ValueError: rows of the table are not where its episodes say, or an image is broken.
    """

    def __init__(self, table: Table, cache: FrameCache, threads: int) -> None:
        self._table, self._cache = table, cache
        self._pool = ThreadPoolExecutor(threads) if threads > 1 else None

    def read(self, keys: Iterable[FrameKey]) -> dict[int, Frame]:
        """Read-only frames by row; each row is read and decoded once."""
        by_row = {key.row: key for key in keys}
        found = self._cache.get(by_row)
        missing = sorted(by_row.keys() - found.keys())
        if missing:
            fresh = dict(zip(missing, self._load([by_row[row] for row in missing]), strict=True))
            self._cache.put(fresh)
            found |= fresh
        return found

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown()

    def _load(self, keys: list[FrameKey]) -> list[Frame]:
        rows = np.array([key.row for key in keys], np.int64)
        table = self._table.take(rows, ("trajectory_id", "frame", "image"))
        stored = zip(table["trajectory_id"].to_pylist(), table["frame"].to_pylist(), strict=True)
        for key, (trajectory_id, frame) in zip(keys, stored, strict=True):
            if (trajectory_id, frame) != (key.trajectory_id, key.frame):
                raise ValueError(
                    f"row {key.row} of frames holds frame {frame} of {trajectory_id!r}, "
                    f"not {key.frame} of {key.trajectory_id!r}: the table was changed from outside"
                )
        blobs = table["image"].to_pylist()
        return list(self._pool.map(decode, blobs) if self._pool else map(decode, blobs))
