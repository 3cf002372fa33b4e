"""Replays recorded poses in a world model: what it shows where a camera showed the truth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, UInt8

from contracts.constants import NEW_FRAMES
from contracts.protocols import WorldModel
from contracts.types import StartState


@dataclass(frozen=True, slots=True)
class Recording:
    """A real start, and the flange poses and gripper that were recorded from it on, at 5 Hz.

    Row 0 of ``poses`` belongs to the start. ``frames`` are wanted after it. Where a chunk of the
    world model reaches beyond the recording, the last pose is held; what it shows there is cut.
    """

    start: StartState
    seed: int
    poses: Float32[np.ndarray, "rows 7"]
    frames: int

    @property
    def chunks(self) -> int:
        return -(-self.frames // NEW_FRAMES)

    def chunk(self, index: int) -> Float32[np.ndarray, "5 7"]:
        """The poses of one world-model call: the current one and the next four."""
        rows = NEW_FRAMES * index + np.arange(NEW_FRAMES + 1)
        return self.poses[np.minimum(rows, len(self.poses) - 1)]


Shown = UInt8[np.ndarray, "frames 3 height width 3"]


def replay(model: WorldModel, recordings: Sequence[Recording]) -> list[Shown]:
    """The ``frames`` that the model shows after each start; it sees nothing real behind that.

    All advance together, a short one as long as it has frames.
    """
    parts: list[list[np.ndarray]] = [[] for _ in recordings]
    for active, shown in _chunks(model, recordings):
        for index, frames in zip(active, shown, strict=True):
            parts[index].append(frames)
    return [
        np.concatenate(frames)[: recording.frames]
        for frames, recording in zip(parts, recordings, strict=True)
    ]


def _chunks(
    model: WorldModel, recordings: Sequence[Recording]
) -> Iterator[tuple[list[int], np.ndarray]]:
    """(rows that are not done yet, their next four frames), chunk by chunk."""
    slots = [model.begin(recording.start, recording.seed) for recording in recordings]
    for chunk in range(max((recording.chunks for recording in recordings), default=0)):
        active = [i for i, recording in enumerate(recordings) if recording.chunks > chunk]
        poses = np.stack([recordings[i].chunk(chunk) for i in active])
        yield active, model.imagine([slots[i] for i in active], poses)
