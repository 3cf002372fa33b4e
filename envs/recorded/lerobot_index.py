"""Where the episodes of a LeRobot dataset are: its index under ``meta/``, versions 2 and 3.

Version 2 has one parquet and one mp4 per camera and episode. Version 3 puts many episodes into
each: ``meta/episodes`` says which file, and from which second on.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from contracts.constants import CONTROL_HZ, TICKS_PER_FRAME
from contracts.droid_features import DATA_PATH, VIDEO_PATH
from envs.recorded.video import View

V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


@dataclass(frozen=True, slots=True)
class Layout:
    """A dataset's folder, its ``info.json``, and the camera features in the order of ``VIEWS``."""

    folder: Path
    info: Mapping[str, Any]
    cameras: Sequence[str]

    def path(self, kind: str, default: str, **parts: object) -> Path:
        """A path from the template ``data_path`` or ``video_path`` of ``info.json``."""
        template = str(self.info.get(kind) or default)
        try:
            return self.folder / template.format(**parts)
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError(
                f"{self.folder / 'meta/info.json'}: {kind}={template!r} asks for {error}, this "
                "version of the format has no such part"
            ) from error


@dataclass(frozen=True, slots=True)
class Place:
    """Where one episode is. ``task`` is its first task text, ``length`` its 15 Hz rows."""

    number: int
    length: int
    task: str
    data: Path
    views: tuple[View, ...]


@runtime_checkable
class Index(Protocol):
    """Every episode of a dataset, by row."""

    @property
    def numbers(self) -> Int64[np.ndarray, " episodes"]: ...

    def place(self, row: int) -> Place: ...


def open_index(layout: Layout) -> Index:
    """Read ``meta/``: seconds for 95 000 episodes. Raises ValueError: it is damaged or too new."""
    version = str(layout.info.get("codebase_version"))
    if version.startswith("v2."):
        return IndexV2(layout)
    if version.startswith("v3."):
        return IndexV3(layout)
    raise ValueError(
        f"{layout.folder / 'meta/info.json'}: codebase_version {version!r} is none of v2.0, v2.1, "
        "v3.0; convert the dataset with LeRobot's own converter"
    )


class IndexV2:
    """``meta/episodes.jsonl``: one line per episode."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._chunk = int(layout.info.get("chunks_size") or 1000)
        file = layout.folder / "meta" / "episodes.jsonl"
        try:
            lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
            self._episodes = [
                (int(line["episode_index"]), int(line["length"]), _first(line.get("tasks")))
                for line in lines
            ]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{file} is no whole list of episodes ({error}); copy it again"
            ) from error
        self.numbers = np.array([number for number, _, _ in self._episodes], np.int64)

    def place(self, row: int) -> Place:
        number, length, task = self._episodes[row]
        parts = {"episode_chunk": number // self._chunk, "episode_index": number}
        files = [
            self._layout.path("video_path", V2_VIDEO, video_key=camera, **parts)
            for camera in self._layout.cameras
        ]
        views = tuple(View(file, length, TICKS_PER_FRAME, rate=CONTROL_HZ) for file in files)
        data = self._layout.path("data_path", V2_DATA, **parts)
        return Place(number, length, task, data, views)


class IndexV3:
    """``meta/episodes/*/*.parquet``: one row per episode, kept as Arrow columns."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        names = ["episode_index", "length", "tasks", "data/chunk_index", "data/file_index"]
        parts = ("chunk_index", "file_index", "from_timestamp")
        names += [f"videos/{camera}/{part}" for camera in layout.cameras for part in parts]
        files = sorted((layout.folder / "meta" / "episodes").glob("*/*.parquet"))
        if not files:
            raise ValueError(f"{layout.folder / 'meta/episodes'} has no parquet files; copy them")
        self._table = pa.concat_tables([_index_file(file, names) for file in files])
        self.numbers = self._column("episode_index").astype(np.int64)
        self._numeric = {name: self._column(name) for name in names if name != "tasks"}

    def place(self, row: int) -> Place:
        at = {name: column[row] for name, column in self._numeric.items()}
        number, length = int(at["episode_index"]), int(at["length"])
        views = tuple(self._view(camera, length, at) for camera in self._layout.cameras)
        data = self._layout.path("data_path", DATA_PATH, **_file_of(at, "data"))
        return Place(number, length, _first(self._table["tasks"][row].as_py()), data, views)

    def _view(self, camera: str, length: int, at: Mapping[str, Any]) -> View:
        parts = _file_of(at, f"videos/{camera}")
        file = self._layout.path("video_path", VIDEO_PATH, video_key=camera, **parts)
        start = float(at[f"videos/{camera}/from_timestamp"])
        return View(file, length, TICKS_PER_FRAME, start, rate=CONTROL_HZ, shared=True)

    def _column(self, name: str) -> np.ndarray:
        return self._table[name].combine_chunks().to_numpy(zero_copy_only=False)


def _index_file(file: Path, names: list[str]) -> pa.Table:
    try:
        return pq.read_table(file, columns=names).select(names)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise ValueError(
            f"{file} is no whole index of episodes ({error}); copy it again"
        ) from error


def _file_of(at: Mapping[str, Any], what: str) -> dict[str, int]:
    return {name: int(at[f"{what}/{name}"]) for name in ("chunk_index", "file_index")}


def _first(tasks: object) -> str:
    """The first task text of an episode: DROID's ``language_instruction``."""
    return str(tasks[0] or "") if isinstance(tasks, list) and tasks else ""
