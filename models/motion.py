"""Recorded arm motion, cut into windows that an adapter is fitted and measured on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from contracts.constants import TICKS_PER_FRAME
from contracts.kinematics import flange_transform

TICKS = 15  # a policy's horizon; the longest chunk that can be predicted
REPORTED_TICKS = (4, 8, 12)


@runtime_checkable
class Recorded(Protocol):
    """A trajectory or a stored row of one; read-only."""

    @property
    def num_ticks(self) -> int: ...
    @property
    def actions(self) -> Float32[np.ndarray, "ticks 8"]: ...
    @property
    def joint_position(self) -> Float32[np.ndarray, "rows 7"]: ...
    @property
    def gripper_position(self) -> Float32[np.ndarray, " rows"]: ...


@dataclass(frozen=True, slots=True)
class MotionWindows:
    """What the arm did after ``actions``, in the order of trajectories and time.

    Row k of ``future_*`` is the state after action k; ``joint_position`` and ``gripper_position``
    are the state before action 0. ``joint_motion`` is the way [rad] of the tick before that, zero
    at the start of an episode. Units of ``ActionChunk``. ``episode`` numbers the trajectories.
    """

    joint_position: Float32[np.ndarray, "window 7"]
    joint_motion: Float32[np.ndarray, "window 7"]
    gripper_position: Float32[np.ndarray, " window"]
    actions: Float32[np.ndarray, "window ticks 8"]
    future_joints: Float32[np.ndarray, "window ticks 7"]
    future_gripper: Float32[np.ndarray, "window ticks"]
    episode: Int64[np.ndarray, " window"]

    @classmethod
    def of(
        cls, recorded: Iterable[Recorded], ticks: int = TICKS, stride: int = TICKS_PER_FRAME
    ) -> "MotionWindows":
        """Windows of ``ticks`` actions that start every ``stride`` ticks. Shorter episodes, and an
        empty list, have none."""
        parts = [_cut(item, number, ticks, stride) for number, item in enumerate(recorded)]
        empty = [np.zeros((0, *shape), np.float32) for shape in _shapes(ticks)]
        parts.append((*empty, np.zeros(0, np.int64)))
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    @classmethod
    def joined(cls, parts: Sequence["MotionWindows"]) -> "MotionWindows":
        """One after the other; there is at least one."""
        columns = ([getattr(part, item.name) for part in parts] for item in fields(cls))
        return cls(*(np.concatenate(column) for column in columns))

    def __len__(self) -> int:
        return len(self.joint_position)

    def take(self, rows: np.ndarray) -> "MotionWindows":
        """The windows at ``rows`` (indices or a mask)."""
        return type(self)(*(getattr(self, item.name)[rows] for item in fields(self)))

    def thinned(self, most: int) -> "MotionWindows":
        """At most ``most`` windows, evenly spaced; all where there are no more."""
        return self.take(np.arange(0, len(self), max(1, -(-len(self) // most))))


def _shapes(ticks: int) -> tuple[tuple[int, ...], ...]:
    return ((7,), (7,), (), (ticks, 8), (ticks, 7), (ticks,))


def _cut(item: Recorded, number: int, ticks: int, stride: int) -> tuple[np.ndarray, ...]:
    """One episode's fields of ``MotionWindows``, in their order."""
    starts = np.arange(0, max(0, item.num_ticks - ticks + 1), stride)
    rows = starts[:, None] + np.arange(ticks)
    joints = item.joint_position
    return (
        joints[starts],
        joints[starts] - joints[np.maximum(starts - 1, 0)],
        item.gripper_position[starts],
        item.actions[rows],
        joints[rows + 1],
        item.gripper_position[rows + 1],
        np.full(len(starts), number, np.int64),
    )


@dataclass(frozen=True, slots=True)
class AdapterErrors:
    """Mean distance [mm] of the predicted flange from the real one on windows held out of the fit,
    after each of ``ticks``; ``no_motion`` is the distance if the arm stood still.

    ``kind`` names the model that was chosen; ``held_out`` says what was kept apart.
    """

    ticks: tuple[int, ...]
    adapter: tuple[float, ...]
    no_motion: tuple[float, ...]
    windows: int
    kind: str
    held_out: str


def flange_errors(
    guess: Float[np.ndarray, "window ticks 7"], real: Float[np.ndarray, "window ticks 7"]
) -> Float64[np.ndarray, "window ticks 2"]:
    """Distance [mm] and angle [degrees] between the flanges of two joint paths."""
    ours, theirs = flange_transform(guess), flange_transform(real)
    away = np.linalg.norm(ours[..., :3, 3] - theirs[..., :3, 3], axis=-1)
    # |R - R'| = 2 sqrt(2) sin(angle / 2); the arccos of the trace is blind below 1e-8
    chord = np.linalg.norm(ours[..., :3, :3] - theirs[..., :3, :3], axis=(-2, -1))
    angle = 2 * np.arcsin(np.minimum(chord / np.sqrt(8), 1))
    return np.stack([1e3 * away, np.rad2deg(angle)], axis=-1)
