"""A recorded episode without its pictures, whatever layout it was stored in."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from contracts.constants import TICKS_PER_FRAME
from envs.recorded.video import View

UNTITLED = "untitled"  # the task of episodes without an instruction


@dataclass(frozen=True, slots=True)
class EpisodeKey:
    """Names one episode of a folder: what can be listed without opening it."""

    split: str
    episode: str

    @property
    def id(self) -> str:
        return f"recorded-{self.split}-{self.episode.zfill(4)}"


@dataclass(frozen=True, slots=True)
class Recording:
    """15 Hz rows; row k of ``actions`` acts on row k of the states. Units as in ``Trajectory``.

    The last action is recorded, too: it was commanded, but what it did was not recorded.
    ``success`` is None where nobody says. ``views`` are in the order of ``VIEWS``.
    """

    file: Path  # where the rows are; messages name it
    key: EpisodeKey
    instruction: str
    success: bool | None
    views: tuple[View, ...]
    joint_position: Float32[np.ndarray, "rows 7"]
    gripper_position: Float32[np.ndarray, " rows"]
    cartesian_position: Float32[np.ndarray, "rows 6"]
    actions: Float32[np.ndarray, "rows 8"]

    @property
    def task(self) -> str:
        return task_name(self.instruction)

    @property
    def num_frames(self) -> int:
        """5 Hz frames that the 15 Hz rows ask for."""
        return frames_of(len(self.actions))


@runtime_checkable
class Dataset(Protocol):
    """A folder of recorded episodes in one layout. Opening it reads an index, no episode."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know about all of its episodes, in sentences."""
        ...

    def keys(self, split: str) -> list[EpisodeKey]:
        """Episodes of "train" or "val", or all of them for "", in a fixed order."""
        ...

    def instruction(self, key: EpisodeKey) -> str:
        """The episode's instruction, "" if it has none. Raises ValueError: it is damaged."""
        ...

    def read(self, key: EpisodeKey) -> Recording:
        """Rows of one episode, checked. Raises ValueError naming the file that is damaged."""
        ...


def frames_of(rows: int) -> int:
    """How many 5 Hz frames belong to ``rows`` rows at 15 Hz: one at rows 0, 3, 6, ..."""
    return (rows - 1) // TICKS_PER_FRAME + 1


def task_name(instruction: str) -> str:
    """The instruction in lower case with underscores: ``Stack it!`` is task ``stack_it``."""
    return re.sub(r"[\W_]+", "_", instruction.casefold()).strip("_") or UNTITLED
