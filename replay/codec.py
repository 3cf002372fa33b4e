"""Trajectories and verdicts to table rows and back, checked where they enter the store."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Float32, UInt8

from contracts.constants import ACTION_DIM, NUM_JOINTS, TICKS_PER_FRAME, VIEWS
from contracts.types import Label, Provenance, StartState, Trajectory, Verdict
from replay.images import ImageCoding, encode
from replay.schema import EPISODES, FRAMES, VECTORS, VERDICTS

_INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """A stored trajectory without its frames; units and rows as in ``Trajectory``.

    ``height`` and ``width`` are the pixels of one view. The arrays belong to the caller.
    """

    provenance: Provenance
    instruction: str
    ending: str
    label: Label | None
    num_frames: int
    height: int
    width: int
    actions: Float32[np.ndarray, "ticks 8"]
    joint_position: Float32[np.ndarray, "rows 7"]
    gripper_position: Float32[np.ndarray, " rows"]
    cartesian_position: Float32[np.ndarray, "rows 6"]

    @property
    def id(self) -> str:
        return self.provenance.trajectory_id

    @property
    def num_ticks(self) -> int:
        return len(self.actions)

    @property
    def poses(self) -> Float32[np.ndarray, "frames 7"]:
        """Flange pose and gripper at each frame, equal to ``Trajectory.poses``."""
        rows = np.arange(self.num_frames) * TICKS_PER_FRAME
        return np.concatenate(
            [self.cartesian_position[rows], self.gripper_position[rows, None]], axis=1
        )

    def start(self, frame: int, picture: UInt8[np.ndarray, "3 height width 3"]) -> StartState:
        """Where an imagination begins that knows this frame, which shows ``picture``."""
        tick = TICKS_PER_FRAME * frame
        return StartState(
            parent=self.id,
            parent_frame=frame,
            task=self.provenance.task,
            instruction=self.instruction,
            frame=picture,
            joint_position=self.joint_position[tick],
            gripper_position=float(self.gripper_position[tick]),
            joint_motion=self.joint_position[tick] - self.joint_position[max(tick - 1, 0)],
        )


def check_trajectory(trajectory: Trajectory, label: Label | None) -> None:
    """Raise ValueError unless every array has the dtype, shape and finite values of the format."""
    if not trajectory.id:
        raise ValueError("trajectory_id is empty: give every trajectory a unique id")
    ticks, num_frames = len(trajectory.actions), len(trajectory.frames)
    expected: dict[str, tuple[int, ...]] = {
        "actions": (ticks, ACTION_DIM),
        "joint_position": (ticks + 1, NUM_JOINTS),
        "gripper_position": (ticks + 1,),
        "cartesian_position": (ticks + 1, 6),
    }
    for name, shape in expected.items():
        _check_vectors(trajectory.id, name, getattr(trajectory, name), shape)
    height, width = trajectory.frames.shape[2:4] if trajectory.frames.ndim == 5 else (0, 0)
    shape = (ticks // TICKS_PER_FRAME + 1, len(VIEWS), height, width, 3)
    if trajectory.frames.dtype != np.uint8 or trajectory.frames.shape != shape or not height:
        raise ValueError(
            f"trajectory {trajectory.id!r}: {num_frames} frames of dtype {trajectory.frames.dtype} "
            f"and shape {trajectory.frames.shape}; store uint8 of (ticks // 3 + 1, 3, H, W, 3)"
        )
    if label is not None and label.trajectory_id != trajectory.id:
        raise ValueError(f"the label of {label.trajectory_id!r} came with {trajectory.id!r}")
    if not -_INT64_MAX <= trajectory.provenance.seed <= _INT64_MAX:
        raise ValueError(f"seed {trajectory.provenance.seed} does not fit 64 bits")


def _check_vectors(owner: str, name: str, array: np.ndarray, shape: tuple[int, ...]) -> None:
    if array.dtype != np.float32 or array.shape != shape:
        raise ValueError(
            f"trajectory {owner!r}: {name} is {array.dtype} {array.shape}; store float32 {shape}"
        )
    if not np.isfinite(array).all():
        row = int(np.argwhere(~np.isfinite(array))[0][0])
        raise ValueError(f"trajectory {owner!r}: {name} row {row} is not finite; drop the episode")


def check_verdict(verdict: Verdict) -> None:
    """Raise ValueError unless ``p_yes`` is a probability, or NaN with an error that says why."""
    if verdict.error:
        if not math.isnan(verdict.p_yes):
            raise ValueError(f"{verdict}: a verdict with an error has p_yes NaN")
    elif not 0.0 <= verdict.p_yes <= 1.0:
        raise ValueError(f"{verdict}: p_yes is no probability; say in error why there is none")


def episode_table(trajectory: Trajectory, label: Label | None, first_frame: int) -> pa.Table:
    """The one row of ``episodes`` that commits a trajectory."""
    source = trajectory.provenance
    height, width = trajectory.frames.shape[2:4]
    row = {name: getattr(source, name) for name in Provenance.__dataclass_fields__}
    row |= {"instruction": trajectory.instruction, "ending": trajectory.ending}
    row |= {"num_ticks": trajectory.num_ticks, "num_frames": len(trajectory.frames)}
    row |= {"height": height, "width": width, "first_frame": first_frame}
    row |= {
        "success": None if label is None else label.success,
        "label_source": None if label is None else label.source,
        "label_operator": None if label is None else label.operator,
    }
    columns = {
        name: _one_list(getattr(trajectory, name), EPISODES.field(name).type)
        if name in VECTORS
        else pa.array([row[name]], EPISODES.field(name).type)
        for name in EPISODES.names
    }
    return pa.table(columns, schema=EPISODES)


def _one_list(array: np.ndarray, kind: pa.ListType) -> pa.ListArray:
    """One list cell that holds all rows of ``array``."""
    values = pa.array(np.ascontiguousarray(array).reshape(-1))
    if array.ndim == 2:
        values = pa.FixedSizeListArray.from_arrays(values, array.shape[1])
    offsets = pa.array([0, len(array)], pa.int32())
    return pa.ListArray.from_arrays(offsets, values).cast(kind)


def frames_table(trajectory: Trajectory, coding: ImageCoding) -> pa.Table:
    """One row of ``frames`` per frame, in order."""
    images = [encode(frame, coding) for frame in trajectory.frames]
    count = len(images)
    columns = {"trajectory_id": [trajectory.id] * count, "frame": range(count), "image": images}
    return pa.table(columns, schema=FRAMES)


def verdicts_table(verdicts: Sequence[Verdict]) -> pa.Table:
    rows = [{name: getattr(verdict, name) for name in VERDICTS.names} for verdict in verdicts]
    return pa.Table.from_pylist(rows, schema=VERDICTS)


def read_provenance(row: Mapping[str, Any]) -> Provenance:
    return Provenance(**{name: row[name] for name in Provenance.__dataclass_fields__})


def read_label(row: Mapping[str, Any]) -> Label | None:
    """None where nobody labelled the trajectory."""
    if row["success"] is None:
        return None
    return Label(row["trajectory_id"], row["success"], row["label_source"], row["label_operator"])


def read_verdicts(table: pa.Table) -> list[Verdict]:
    return [Verdict(**row) for row in table.select(VERDICTS.names).to_pylist()]


def read_episodes(table: pa.Table) -> list[EpisodeRow]:
    """Rows of ``episodes`` with every column, in order."""
    light = [name for name in table.column_names if name not in VECTORS]
    vectors = {name: table[name].combine_chunks() for name in VECTORS}
    return [
        EpisodeRow(
            provenance=read_provenance(row),
            instruction=row["instruction"],
            ending=row["ending"],
            label=read_label(row),
            num_frames=row["num_frames"],
            height=row["height"],
            width=row["width"],
            **{name: _cell(vectors[name], number) for name in VECTORS},
        )
        for number, row in enumerate(table.select(light).to_pylist())
    ]


def _cell(column: pa.Array, number: int) -> np.ndarray:
    """One list cell as a writable float32 array of (rows,) or (rows, columns)."""
    values = column[number].values
    if pa.types.is_fixed_size_list(values.type):
        width = values.type.list_size
        return values.flatten().to_numpy().reshape(-1, width).copy()
    return values.to_numpy().copy()
