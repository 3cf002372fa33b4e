"""One annotation file of Ctrl-World's layout: what an episode's json says, checked.

The layout (Ctrl-World 4c713d1, its ``extract_latent.py``) is ``annotation/<split>/<episode>.json``
next to ``videos/<split>/<episode>/{0,1,2}.mp4``. Its 15 Hz rows are those of DROID.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from contracts.constants import NUM_JOINTS, TICKS_PER_FRAME, VIEWS

_KEYS = {  # 15 Hz rows -> columns
    "observation.state.joint_position": (NUM_JOINTS,),
    "observation.state.gripper_position": (),
    "observation.state.cartesian_position": (6,),
    "action.joint_velocity": (NUM_JOINTS,),
    "action.gripper_position": (),
}
UNTITLED = "untitled"  # the task of episodes without an instruction


@dataclass(frozen=True, slots=True)
class Annotation:
    """A recorded episode without its pictures. Row k of ``actions`` acts on row k of the states.

    The last action is in the file, too: it was commanded, but what it did was not recorded.
    ``success`` is None where the file does not tell.
    """

    file: Path
    split: str
    episode: str
    instruction: str
    success: bool | None
    videos: tuple[Path, ...]  # one per view, in the order of ``VIEWS``
    joint_position: Float32[np.ndarray, "rows 7"]
    gripper_position: Float32[np.ndarray, " rows"]
    cartesian_position: Float32[np.ndarray, "rows 6"]
    actions: Float32[np.ndarray, "rows 8"]

    @property
    def id(self) -> str:
        return f"recorded-{self.split}-{self.episode.zfill(4)}"

    @property
    def task(self) -> str:
        return task_name(self.instruction)

    @property
    def num_frames(self) -> int:
        """5 Hz frames that the 15 Hz rows ask for."""
        return (len(self.actions) - 1) // TICKS_PER_FRAME + 1


def task_name(instruction: str) -> str:
    """The instruction in lower case with underscores: ``Stack it!`` is task ``stack_it``."""
    return re.sub(r"[\W_]+", "_", instruction.casefold()).strip("_") or UNTITLED


def read_annotation(file: Path) -> Annotation:
    """Read ``<folder>/annotation/<split>/<episode>.json``.

    Raises:
        ValueError: no json; no 15 Hz rows; rows that disagree with each other or are not finite.
    """
    content = _parse(file)
    missing = [key for key in _KEYS if key not in content]
    if missing:
        raise ValueError(f"{file} has no 15 Hz rows: {', '.join(missing)} missing")
    rows = {key: _rows(file, key, content[key], columns) for key, columns in _KEYS.items()}
    lengths = {key: len(array) for key, array in rows.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        raise ValueError(f"{file}: rows disagree in number or are none: {lengths}")
    gripper = rows["action.gripper_position"][:, None]
    texts, success = content.get("texts") or [""], content.get("success")
    return Annotation(
        file=file,
        split=file.parent.name,
        episode=file.stem,
        instruction=str(texts[0]).strip(),
        success=None if success is None else bool(success),
        videos=_videos(file, content),
        joint_position=rows["observation.state.joint_position"],
        gripper_position=rows["observation.state.gripper_position"],
        cartesian_position=rows["observation.state.cartesian_position"],
        actions=np.concatenate([rows["action.joint_velocity"], gripper], axis=1),
    )


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


def _videos(file: Path, content: Mapping[str, Any]) -> tuple[Path, ...]:
    """The videos that the file names, or those of the layout where it names none."""
    folder, split, episode = file.parents[2], file.parent.name, file.stem
    layout = [{"video_path": f"videos/{split}/{episode}/{view}.mp4"} for view in range(len(VIEWS))]
    named = content.get("videos") or layout
    try:
        videos = tuple(folder / entry["video_path"] for entry in named)
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file}: videos has an entry without a video_path") from error
    if len(videos) != len(VIEWS):
        raise ValueError(f"{file} names {len(videos)} videos, not one per view of {VIEWS}")
    return videos
