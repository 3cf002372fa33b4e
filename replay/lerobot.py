"""Writes trajectories as a LeRobot dataset, version 3.0, with the features of ``droid_1.0.1``.

LeRobot wants a picture for each 15 Hz row: each 5 Hz frame stands for the rows until the next one.
What nobody recorded is left out (gripper and cartesian velocities, camera poses, building, ...).
Layout: huggingface/lerobot 0.6.1, ``datasets/{dataset_metadata,dataset_writer}.py``.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from contracts.constants import CONTROL_HZ, TICKS_PER_FRAME
from contracts.droid_features import (
    CAMERAS,
    DATA_PATH,
    EPISODES_PATH,
    GRIPPER,
    GRIPPER_TARGET,
    JOINT_TARGET,
    JOINTS,
    VIDEO_PATH,
)
from replay.exported import Exported, droid_flags, droid_rows, droid_texts
from replay.lerobot_stats import feature_stats, flat, image_stats, merged, whole_stats
from replay.mp4 import Mp4Writer

MEGABYTE = 2**20
FILES_PER_CHUNK = 1000
_INDEX = ("timestamp", "frame_index", "episode_index", "index", "task_index")


@dataclass(frozen=True, slots=True)
class LeRobotSizes:
    """When a new file is begun, in megabytes, and the quality of the videos (``Mp4Writer``)."""

    data_mb: int = 100
    video_mb: int = 200
    crf: int = 18


class LeRobotWriter:
    """``add`` trajectories one by one, then ``close``. ``folder`` must not exist.

    Raises:
        ValueError: a trajectory has another frame size than the first one.
    """

    def __init__(self, folder: Path, sizes: LeRobotSizes | None = None) -> None:
        self._folder, self._sizes = folder, sizes or LeRobotSizes()
        folder.mkdir(parents=True)
        self._tasks: dict[str, int] = {}
        self._episodes = 0
        self._rows = 0
        self._size: tuple[int, int] | None = None
        self._data, self._index = _ParquetFile(-1), _ParquetFile(-1)
        self._videos: list[Mp4Writer] = []
        self._video_file = -1
        self._image_stats: dict[str, dict[str, np.ndarray]] = {}
        self._features: dict[str, Any] = {}

    def add(self, episode: Exported) -> None:
        """Append one trajectory as the next episode."""
        self._check_size(episode)
        columns = self._columns(episode)
        self._features = self._features or _features(columns, self._size or (0, 0))
        data = self._next_data()
        data.write(_table(columns))
        row: dict[str, Any] = {
            "episode_index": self._episodes,
            "tasks": [episode.trajectory.instruction],
            "length": episode.num_rows,
            "data/chunk_index": data.number // FILES_PER_CHUNK,
            "data/file_index": data.number % FILES_PER_CHUNK,
            "dataset_from_index": self._rows,
            "dataset_to_index": self._rows + episode.num_rows,
        }
        row |= self._write_videos(episode)
        row |= self._stats(episode, columns)
        row |= {"meta/episodes/chunk_index": 0, "meta/episodes/file_index": 0}
        if self._index.writer is None:
            self._index.open(self._folder / EPISODES_PATH.format(chunk_index=0, file_index=0))
        self._index.write(pa.Table.from_pylist([row]))
        self._episodes += 1
        self._rows += episode.num_rows

    def close(self) -> None:
        """Write what describes the whole: ``meta/info.json``, ``tasks.parquet``, ``stats.json``."""
        for video in self._videos:
            video.close()
        self._data.close()
        self._index.close()
        if not self._episodes:
            raise ValueError("zero trajectories to write: choose other stores, or run the loop")
        meta = self._folder / "meta"
        (meta / "info.json").write_text(json.dumps(self._info(), indent=4), encoding="utf-8")
        pq.write_table(_tasks_table(self._tasks), meta / "tasks.parquet")
        names = [name for name, what in self._features.items() if _has_stats(name, what)]
        stats = whole_stats(names, self._numbers, self._image_stats)
        (meta / "stats.json").write_text(json.dumps(stats, indent=4), encoding="utf-8")

    def _check_size(self, episode: Exported) -> None:
        size = episode.trajectory.frames.shape[2:4]
        self._size = self._size or (int(size[0]), int(size[1]))
        if size != self._size:
            raise ValueError(
                f"trajectory {episode.trajectory.id!r} has frames of {size[0]} x {size[1]}, the "
                f"ones before it {self._size[0]} x {self._size[1]}: export the stores apart"
            )

    def _columns(self, episode: Exported) -> dict[str, Any]:
        """Every column of the episode's rows: arrays, or one value that all rows share."""
        rows, count = droid_rows(episode), episode.num_rows
        task = self._tasks.setdefault(episode.trajectory.instruction, len(self._tasks))
        frame = np.arange(count)
        return {
            **droid_texts(episode),
            **rows,
            "observation.state": np.concatenate([rows[JOINTS], rows[GRIPPER]], axis=1),
            "action": np.concatenate([rows[JOINT_TARGET], rows[GRIPPER_TARGET]], axis=1),
            **droid_flags(episode),
            **episode.provenance(),
            "timestamp": (frame / CONTROL_HZ).astype(np.float32),
            "frame_index": frame,
            "episode_index": np.full(count, self._episodes),
            "index": self._rows + frame,
            "task_index": np.full(count, task),
        }

    def _next_data(self) -> "_ParquetFile":
        if self._data.num_bytes >= self._sizes.data_mb * MEGABYTE or self._data.number < 0:
            self._data.close()
            self._data = _ParquetFile(self._data.number + 1)
            self._data.open(self._folder / _numbered(DATA_PATH, self._data.number))
        return self._data

    def _write_videos(self, episode: Exported) -> dict[str, Any]:
        """Append the frames to one file per camera; where each of them is from when to when."""
        full = any(v.num_bytes >= self._sizes.video_mb * MEGABYTE for v in self._videos)
        if full or not self._videos:
            self._next_videos()
        first = self._videos[0].count
        for row in range(episode.num_rows):
            views = episode.trajectory.frames[row // TICKS_PER_FRAME]
            for video, view in zip(self._videos, views, strict=True):
                video.write(view)
        place = {
            "chunk_index": self._video_file // FILES_PER_CHUNK,
            "file_index": self._video_file % FILES_PER_CHUNK,
            "from_timestamp": first / CONTROL_HZ,
            "to_timestamp": (first + episode.num_rows) / CONTROL_HZ,
        }
        return {f"videos/{name}/{key}": value for name in CAMERAS for key, value in place.items()}

    def _next_videos(self) -> None:
        for video in self._videos:
            video.close()
        self._video_file += 1
        self._videos = [
            Mp4Writer(
                self._folder / _numbered(VIDEO_PATH, self._video_file, video_key=name),
                CONTROL_HZ,
                self._size or (0, 0),
                self._sizes.crf,
            )
            for name in CAMERAS
        ]

    def _stats(self, episode: Exported, columns: Mapping[str, Any]) -> dict[str, Any]:
        images = {
            name: image_stats(episode.trajectory.frames[:, view])
            for view, name in enumerate(CAMERAS)
        }
        for name, found in images.items():
            before = self._image_stats.get(name)
            self._image_stats[name] = merged(before, found) if before else found
        stats = {
            name: feature_stats(np.asarray(values, np.float32).reshape(episode.num_rows, -1))
            for name, values in columns.items()
            if _has_stats(name, self._features[name])
        }
        return flat(stats | images)

    def _numbers(self, name: str) -> Iterator[np.ndarray]:
        """One feature of the data files that were written, a row group at a time."""
        for number in range(self._data.number + 1):
            with pq.ParquetFile(self._folder / _numbered(DATA_PATH, number)) as source:
                for group in range(source.metadata.num_row_groups):
                    yield _matrix(source.read_row_group(group, columns=[name])[name])

    def _info(self) -> dict[str, Any]:
        return {
            "codebase_version": "v3.0",
            "robot_type": "Franka",
            "total_episodes": self._episodes,
            "total_frames": self._rows,
            "total_tasks": len(self._tasks),
            "chunks_size": FILES_PER_CHUNK,
            "data_files_size_in_mb": self._sizes.data_mb,
            "video_files_size_in_mb": self._sizes.video_mb,
            "fps": CONTROL_HZ,
            "splits": {"train": f"0:{self._episodes}"},
            "data_path": DATA_PATH,
            "video_path": VIDEO_PATH,
            "features": self._features,
        }


class _ParquetFile:
    """A parquet file that grows by one row group per episode."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.num_bytes = 0
        self.writer: pq.ParquetWriter | None = None
        self._path = Path()

    def open(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, table: pa.Table) -> None:
        if self.writer is None:
            self.writer = pq.ParquetWriter(self._path, table.schema, compression="snappy")
        self.writer.write_table(table)
        self.num_bytes = self._path.stat().st_size

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _table(columns: Mapping[str, Any]) -> pa.Table:
    count = len(columns["index"])
    return pa.table({name: _column(values, count) for name, values in columns.items()})


def _column(values: Any, count: int) -> pa.Array:
    if not isinstance(values, np.ndarray):
        return pa.repeat(_scalar(values), count)
    if values.ndim == 1 or values.shape[1] == 1:
        return pa.array(values.reshape(-1))
    flattened = pa.array(np.ascontiguousarray(values).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flattened, values.shape[1])


def _scalar(value: bool | int | float | str) -> pa.Scalar:
    return pa.scalar(value, pa.float32()) if isinstance(value, float) else pa.scalar(value)


def _features(columns: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
    """LeRobot's description of every feature, in the order of the columns, cameras last."""
    features = {name: _feature(values) for name, values in columns.items() if name not in _INDEX}
    video = {
        "dtype": "video",
        "shape": [*size, 3],
        "names": ["height", "width", "channels"],
        "info": {
            "video.height": size[0],
            "video.width": size[1],
            "video.codec": "h264",
            "video.pix_fmt": "yuv420p",
            "video.is_depth_map": False,
            "video.fps": CONTROL_HZ,
            "video.channels": 3,
            "has_audio": False,
        },
    }
    features |= dict.fromkeys(CAMERAS, video)
    return features | {name: _feature(columns[name]) for name in _INDEX}


def _feature(values: Any) -> dict[str, Any]:
    width = values.shape[1] if isinstance(values, np.ndarray) and values.ndim == 2 else 1
    kind = values.dtype.name if isinstance(values, np.ndarray) else _KINDS[type(values)]
    names = None if width == 1 else {"axes": [f"axis_{k}" for k in range(width)]}
    return {"dtype": kind, "shape": [width], "names": names}


_KINDS = {str: "string", bool: "bool", int: "int64", float: "float32"}


def _has_stats(name: str, feature: Mapping[str, Any]) -> bool:
    return feature["dtype"] not in ("string", "video") and not name.startswith("vlaw.")


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    array = column.combine_chunks()
    values = array.flatten() if array.type.num_fields else array
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    return numbers.reshape(len(array), -1)


def _tasks_table(tasks: Mapping[str, int]) -> pa.Table:
    """Task texts and their numbers. LeRobot reads it with pandas and expects the texts to be the
    index, which pandas learns from the schema's metadata."""
    table = pa.table({"task_index": pa.array(tasks.values(), pa.int64()), "task": list(tasks)})
    kinds = {"task_index": ("int64", "int64"), "task": ("unicode", "object")}
    pandas = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [
            {"name": n, "field_name": n, "pandas_type": p, "numpy_type": k, "metadata": None}
            for n, (p, k) in kinds.items()
        ],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(pandas)})


def _numbered(template: str, number: int, **parts: str) -> str:
    chunk, file = number // FILES_PER_CHUNK, number % FILES_PER_CHUNK
    return template.format(chunk_index=chunk, file_index=file, **parts)
