"""LeRobot datasets with the features of ``droid_1.0.1``, versions 2.0, 2.1 and 3.0.

The names are those of LeRobot's own port of DROID (huggingface/lerobot 7427f31,
``examples/port_datasets/port_droid.py``). Opening a dataset reads its index only; the rows of an
episode are read when it is asked for.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from contracts.constants import CONTROL_HZ, NUM_JOINTS, RAD_PER_TICK
from contracts.droid_features import (
    CAMERAS,
    GRIPPER,
    GRIPPER_TARGET,
    INSTRUCTIONS,
    JOINT_TARGET,
    JOINTS,
    LABELLED,
    POSE,
    SUCCESS,
    VELOCITY,
)
from contracts.seeds import fold, in_share
from envs.recorded.episode import EpisodeKey, Recording
from envs.recorded.lerobot_index import Index, Layout, Place, open_index
from envs.recorded.tables import TableReader

_WIDTHS = {JOINTS: NUM_JOINTS, GRIPPER: 1, POSE: 6, GRIPPER_TARGET: 1}
_WIDTHS |= {VELOCITY: NUM_JOINTS, JOINT_TARGET: NUM_JOINTS}
_DERIVED = (
    "action.joint_velocity is derived from action.joint_position and the measured joints: "
    "(target - joints) / 0.2 rad"
)


@dataclass(frozen=True, slots=True)
class LeRobotOptions:
    """How to read a dataset. ``instruction``: one of ``INSTRUCTIONS``, or "any": one of those that
    an episode has, always the same. ``holdout``: share of the episodes that are "val" where the
    dataset names no split of its own."""

    instruction: str = INSTRUCTIONS[0]
    holdout: float = 0.05


class LeRobotFolder:
    """A folder with ``meta/info.json``, ``data/`` and ``videos/``.

    Commanded joint velocities are read, or, where there are none, derived from commanded joint
    positions as DROID's law has it: target = joints + 0.2 rad * velocity (``robot_ik_solver``).

    Raises:
        ValueError: another version, rate, or set of features; a damaged index. It names the file.
    """

    def __init__(self, folder: Path, options: LeRobotOptions) -> None:
        self._options, self._info = options, _read_info(folder)
        self._velocity = _check_features(folder, self._info)
        layout = Layout(folder, self._info, CAMERAS)
        self._index: Index = open_index(layout)
        self._val = _declared_val(self._info)
        self._rows = {int(number): row for row, number in enumerate(self._index.numbers)}
        self._tables = TableReader()

    @property
    def notes(self) -> tuple[str, ...]:
        return () if self._velocity == VELOCITY else (_DERIVED,)

    def keys(self, split: str) -> list[EpisodeKey]:
        numbers = sorted(self._rows)
        keys = [EpisodeKey(self._split(number), f"{number:06d}") for number in numbers]
        return [key for key in keys if not split or key.split == split]

    def instruction(self, key: EpisodeKey) -> str:
        """Without opening ``data/``, unless another than the first instruction is wanted."""
        place = self._place(key)
        if self._options.instruction == INSTRUCTIONS[0]:
            return place.task.strip()
        given = [name for name in INSTRUCTIONS if name in self._info["features"]]
        texts = self._tables.first_row(place.data, place.number, given)
        if self._options.instruction != "any":
            return str(texts.get(self._options.instruction) or "").strip()
        found = [str(text).strip() for text in texts.values() if text and str(text).strip()]
        return found[fold(0, "instruction", place.number) % len(found)] if found else ""

    def read(self, key: EpisodeKey) -> Recording:
        place = self._place(key)
        wanted = [JOINTS, GRIPPER, POSE, self._velocity, GRIPPER_TARGET]
        flags = [name for name in (SUCCESS, LABELLED) if name in self._info["features"]]
        table = self._tables.episode(place.data, place.number, (*wanted, *flags))
        if table.num_rows != place.length:
            raise ValueError(
                f"{place.data} has {table.num_rows} rows of episode {place.number}, the index in "
                f"meta/ says {place.length}: one of the two was cut off; copy the dataset again"
            )
        rows = {name: _numbers(place, name, table[name]) for name in wanted}
        velocity = rows[self._velocity]
        if self._velocity == JOINT_TARGET:
            velocity = np.clip((velocity - rows[JOINTS]) / np.float32(RAD_PER_TICK), -1, 1)
        return Recording(
            file=place.data,
            key=key,
            instruction=self.instruction(key),
            success=_success({name: table[name][0].as_py() for name in flags}),
            views=place.views,
            joint_position=rows[JOINTS],
            gripper_position=rows[GRIPPER][:, 0],
            cartesian_position=rows[POSE],
            actions=np.concatenate([velocity, rows[GRIPPER_TARGET]], axis=1),
        )

    def _place(self, key: EpisodeKey) -> Place:
        return self._index.place(self._rows[int(key.episode)])

    def _split(self, number: int) -> str:
        if self._val is not None:
            return "val" if number in self._val else "train"
        return "val" if in_share(self._options.holdout, "recorded", number) else "train"


def _read_info(folder: Path) -> dict[str, Any]:
    file = folder / "meta" / "info.json"
    try:
        info = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is no readable json: {error}; copy the dataset again") from error
    if not isinstance(info, dict) or not isinstance(info.get("features"), dict):
        raise ValueError(f"{file} names no features: it is no LeRobot dataset's info.json")
    if info.get("fps") != CONTROL_HZ:
        raise ValueError(
            f"{file} says fps {info.get('fps')}: DROID and the models here run at {CONTROL_HZ} Hz; "
            "resample the dataset first"
        )
    return info


def _check_features(folder: Path, info: Mapping[str, Any]) -> str:
    """The feature that the commanded velocities come from. Refuses datasets of other robots."""
    features = info["features"]
    file = folder / "meta" / "info.json"
    lost = [name for name in CAMERAS if features.get(name, {}).get("dtype") != "video"]
    if lost:
        found = [name for name, what in features.items() if what.get("dtype") in ("video", "image")]
        raise ValueError(
            f"{file} has no video {', '.join(lost)}; its cameras are {', '.join(found) or 'none'}. "
            "All three of DROID's are needed, stored as videos under droid_1.0.1's names"
        )
    velocity = VELOCITY if VELOCITY in features else JOINT_TARGET
    needed = {name: _WIDTHS[name] for name in (JOINTS, GRIPPER, POSE, velocity, GRIPPER_TARGET)}
    wrong = [name for name, width in needed.items() if not _has_width(features.get(name), width)]
    if wrong:
        raise ValueError(
            f"{file} lacks {', '.join(wrong)} (or with another shape than droid_1.0.1's); there "
            f"must be {VELOCITY}, or {JOINT_TARGET} to derive it from. Rename or add the columns"
        )
    return velocity


def _has_width(feature: Mapping[str, Any] | None, width: int) -> bool:
    return feature is not None and list(feature.get("shape", ())) == [width]


def _declared_val(info: Mapping[str, Any]) -> range | None:
    """Episodes of a split "val" or "validation" of ``info.json``; None where it names none."""
    splits = info.get("splits") or {}
    for name in ("val", "validation"):
        if name in splits:
            first, _, end = str(splits[name]).partition(":")
            return range(int(first or 0), int(end or info.get("total_episodes", 0)))
    return None


def _numbers(place: Place, name: str, column: Any) -> Float32[np.ndarray, "rows columns"]:
    """A column of numbers, or of lists of them, checked; scalars become one column."""
    array = column.combine_chunks()
    values = array.flatten() if array.type.num_fields else array
    numbers = values.to_numpy(zero_copy_only=False).astype(np.float32)
    if values.null_count or len(numbers) != len(array) * _WIDTHS[name]:
        raise ValueError(
            f"{place.data}: {name} of episode {place.number} has gaps or rows of another length"
        )
    if not np.isfinite(numbers).all():
        row = int(np.flatnonzero(~np.isfinite(numbers))[0]) // _WIDTHS[name]
        raise ValueError(
            f"{place.data}: {name} of episode {place.number} is not finite in row {row}; record "
            "the episode again or delete it"
        )
    return numbers.reshape(len(array), -1)


def _success(flags: Mapping[str, Any]) -> bool | None:
    value = flags.get(SUCCESS)
    if value is None or flags.get(LABELLED) is False:
        return None
    return bool(value[0] if isinstance(value, list) else value)
