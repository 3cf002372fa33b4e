"""One Lance table of a store: open, append, read by row, keep small. Not safe across a fork."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import lance
import numpy as np
import pyarrow as pa
from jaxtyping import Int64

from contracts.errors import room
from replay.schema import SCHEMA_VERSION

Answer = TypeVar("Answer")
_LANCE_ERRORS = (OSError, ValueError, RuntimeError)  # pa.ArrowInvalid is a ValueError


@dataclass(frozen=True, slots=True)
class Upkeep:
    """How a growing table is kept fast.

    Every append adds a file and rewrites the list of files: without upkeep 5000 trajectories
    leave 2 GB of old lists and a random read takes ten times as long. So every ``every`` appends
    neighbouring small files are merged, in order, up to ``rows`` rows each, and what only versions
    older than ``keep`` still name is deleted.
    """

    every: int = 64
    rows: int = 1024
    keep: timedelta = timedelta(minutes=10)


class Table:
    """A Lance dataset with one schema. Appends are atomic; readers see a fixed version.

    Row numbers are stable: rows are only appended, and only an uncommitted tail is ever removed.

    Raises:
        ValueError: a file is missing or torn, or another version of this code wrote the table.
    """

    def __init__(self, path: Path, schema: pa.Schema, upkeep: Upkeep) -> None:
        self._path, self._schema, self._upkeep = path, schema, upkeep
        self._appends = 0
        self._dataset = self._open()

    @classmethod
    def create_or_open(cls, path: Path, schema: pa.Schema, upkeep: Upkeep) -> "Table":
        if _newest_manifest(path) is None:
            with room(path):
                lance.write_dataset(schema.empty_table(), str(path), mode="create")
        return cls(path, schema, upkeep)

    @property
    def version(self) -> int:
        """Grows with every append and every upkeep."""
        return self._dataset.version

    @property
    def num_rows(self) -> int:
        return self._dataset.count_rows()

    def append(self, rows: pa.Table) -> None:
        """Add rows at the end and commit. Survives the death of the process, not of the power.

        Raises:
            DiskFullError: nothing was committed, or only the upkeep was left out.
        """
        with room(self._path):
            self._dataset.insert(rows, mode="append")
            self._appends += 1
            if self._appends % self._upkeep.every == 0:
                self.tidy()

    def tidy(self) -> None:
        """Merge small files and drop old versions; row numbers stay."""
        self._dataset.optimize.compact_files(
            target_rows_per_fragment=self._upkeep.rows, num_threads=1
        )
        self._dataset.cleanup_old_versions(older_than=self._upkeep.keep)

    def remove(self, trajectory_ids: Sequence[str]) -> None:
        """Delete every row of these trajectories."""
        quoted = ", ".join("'" + name.replace("'", "''") + "'" for name in trajectory_ids)
        self._dataset.delete(f"trajectory_id IN ({quoted})")

    def refresh(self) -> None:
        """Move to the newest committed version."""
        self._guarded(self._dataset.checkout_latest, self._path)

    def read(self, columns: Sequence[str] | None = None, start: int = 0) -> pa.Table:
        """All rows from number ``start`` on, in order."""
        names = self._schema.names if columns is None else list(columns)
        return self._retried(lambda: self._dataset.to_table(columns=names, offset=start))

    def take(self, rows: Int64[np.ndarray, " row"], columns: Sequence[str]) -> pa.Table:
        """These rows, in the order asked for."""
        return self._retried(lambda: self._dataset.take(rows.tolist(), columns=list(columns)))

    def _retried(self, read: Callable[[], Answer]) -> Answer:
        """Read again from the newest version where the writer has merged our files away."""
        try:
            return read()
        except _LANCE_ERRORS:
            self.refresh()
            return self._guarded(read, self._path)

    @staticmethod
    def _guarded(call: Callable[[], Answer], what: Path, way_out: str = "") -> Answer:
        try:
            return call()
        except _LANCE_ERRORS as error:
            raise ValueError(f"{what} cannot be read: {error}. {way_out}{_WAY_OUT}") from error

    def _open(self) -> lance.LanceDataset:
        manifest = _newest_manifest(self._path)
        if manifest is None:
            raise ValueError(
                f"{self._path} does not exist: {self._path.parent} is no replay store; "
                "check the path, or let the writer create it first"
            )
        dataset = self._guarded(lambda: lance.dataset(str(self._path)), manifest, _GO_BACK)
        self._check_schema(dataset.schema)
        self._check_files(dataset)
        return dataset

    def _check_schema(self, found: pa.Schema) -> None:
        version = (found.metadata or {}).get(b"schema_version", b"none").decode()
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"{self._path} has schema_version {version}, this code reads {SCHEMA_VERSION}: "
                "use the code that wrote it, or a new folder"
            )
        if not found.equals(self._schema):
            raise ValueError(f"{self._path} has other columns: {found.names}; use a new folder")

    def _check_files(self, dataset: lance.LanceDataset) -> None:
        """Find a truncated file at once, and not in the middle of a training."""
        for fragment in dataset.get_fragments():
            for part in fragment.metadata.files:
                file = self._path / "data" / part.path
                found = file.stat().st_size if file.exists() else 0
                if part.file_size_bytes is not None and found != part.file_size_bytes:
                    raise ValueError(
                        f"{file} has {found} of {part.file_size_bytes} bytes. {_WAY_OUT}"
                    )


def _newest_manifest(path: Path) -> Path | None:
    """The file that lists a table's newest version; Lance numbers these files downwards."""
    return min((path / "_versions").glob("*.manifest"), default=None)


# What a power cut tears is the newest manifest: Lance leaves it to the system when to write.
_GO_BACK = (
    "If the power went, delete that file: the table is then as it was one commit before, and what "
    "is missing is made again. Otherwise: "
)
_WAY_OUT = "Restore the folder from a backup, or start a new one: a part of the store is lost"
