"""Episodes in Ctrl-World's layout: what an annotation file says, checked.

The layout (Ctrl-World 4c713d1, its ``extract_latent.py``) is ``annotation/<split>/<episode>.json``
next to ``videos/<split>/<episode>/{0,1,2}.mp4``. Its 15 Hz rows are those of DROID.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from contracts.constants import NUM_JOINTS, VIEWS
from contracts.droid_features import (
    GRIPPER,
    GRIPPER_TARGET,
    JOINTS,
    LABELLED,
    POSE,
    VELOCITY,
)
from envs.recorded import five_hertz
from envs.recorded.episode import EpisodeKey, Recording, frames_of
from envs.recorded.video import View

_KEYS = {  # 15 Hz rows -> columns
    JOINTS: (NUM_JOINTS,),
    GRIPPER: (),
    POSE: (6,),
    VELOCITY: (NUM_JOINTS,),
    GRIPPER_TARGET: (),
}


class CtrlWorldFolder:
    """A folder with ``annotation/`` and ``videos/``; its own ``train`` and ``val`` are the splits.

    Raises:
        ValueError: it has no annotations.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        files = [file for file in folder.glob("annotation/*/*.json") if file.is_file()]
        if not files:
            raise ValueError(
                f"{folder} has no annotation/*/*.json: expected annotation/ and videos/ in it"
            )
        self._keys = sorted(
            (EpisodeKey(file.parent.name, file.stem) for file in files),
            key=lambda key: (key.split, key.episode.zfill(20)),
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """Judged by the first episode that can be read: a folder is of one kind."""
        for key in self._keys:
            try:
                content = _parse(self._file(key))
            except ValueError:  # reported where the episodes are read
                continue
            return (five_hertz.NOTE,) if _only_5_hz(content) else ()
        return ()

    def keys(self, split: str) -> list[EpisodeKey]:
        return [key for key in self._keys if not split or key.split == split]

    def instruction(self, key: EpisodeKey) -> str:
        return self.read(key).instruction

    def read(self, key: EpisodeKey) -> Recording:
        return read_annotation(self._file(key))

    def _file(self, key: EpisodeKey) -> Path:
        return self._folder / "annotation" / key.split / f"{key.episode}.json"


def read_annotation(file: Path) -> Recording:
    """Read ``<folder>/annotation/<split>/<episode>.json``.

    Raises:
        ValueError: no json; neither 15 Hz rows nor the states of each frame; rows that disagree
            with each other or are not finite.
    """
    content = _parse(file)
    rows = _from_5_hz(file, content) if _only_5_hz(content) else _from_15_hz(file, content)
    gripper = rows[GRIPPER_TARGET][:, None]
    texts, success = content.get("texts") or [""], content.get("success")
    if content.get(LABELLED) is False:  # our own export of an imagined trajectory
        success = None
    return Recording(
        file=file,
        key=EpisodeKey(file.parent.name, file.stem),
        instruction=str(texts[0]).strip(),
        success=None if success is None else bool(success),
        views=_views(file, content, frames_of(len(gripper))),
        joint_position=rows[JOINTS],
        gripper_position=rows[GRIPPER],
        cartesian_position=rows[POSE],
        actions=np.concatenate([rows[VELOCITY], gripper], axis=1),
    )


def _only_5_hz(content: Mapping[str, Any]) -> bool:
    """Whether there is one row per frame and nothing of what was commanded."""
    return not content.keys() & _KEYS.keys() and five_hertz.WIDTHS.keys() <= content.keys()


def _from_15_hz(file: Path, content: Mapping[str, Any]) -> five_hertz.Rows:
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise ValueError(f"{file} has no 15 Hz rows: {', '.join(missing)} missing")
    return _table(file, content, _KEYS)


def _from_5_hz(file: Path, content: Mapping[str, Any]) -> five_hertz.Rows:
    rows = _table(file, content, five_hertz.WIDTHS)
    states, joints = rows[five_hertz.STATES], rows[five_hertz.FULL_JOINTS]
    return five_hertz.interpolate(states.astype(np.float64), joints.astype(np.float64))


def _table(
    file: Path, content: Mapping[str, Any], widths: Mapping[str, tuple[int, ...]]
) -> five_hertz.Rows:
    """The named columns, of one length."""
    rows = {key: _rows(file, key, content[key], columns) for key, columns in widths.items()}
    lengths = {key: len(array) for key, array in rows.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{file}: rows disagree in number or are none: {lengths}")
    return rows


def _parse(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # JSONDecodeError and UnicodeDecodeError are ValueErrors
        raise ValueError(f"{file} is no readable json: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}, not an object of keys")
    return content


def _rows(file: Path, key: str, values: object, columns: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.array(values, np.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {key} is no table of numbers: {error}") from error
    if array.shape[1:] != columns or array.ndim != len(columns) + 1:
        raise ValueError(f"{file}: {key} has shape {array.shape}, not (rows, {columns})")
    if not np.isfinite(array).all():
        raise ValueError(f"{file}: {key} has numbers that are not finite")
    return array


def _views(file: Path, content: Mapping[str, Any], num_frames: int) -> tuple[View, ...]:
    """The videos that the file names, or those of the layout where it names none."""
    folder, split, episode = file.parents[2], file.parent.name, file.stem
    layout = [{"video_path": f"videos/{split}/{episode}/{view}.mp4"} for view in range(len(VIEWS))]
    named = content.get("videos") or layout
    try:
        views = tuple(View(folder / entry["video_path"], num_frames) for entry in named)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: videos has an entry without a video_path") from error
    if len(views) != len(VIEWS):
        raise ValueError(f"{file} names {len(views)} videos, not one per view of {VIEWS}")
    return views
