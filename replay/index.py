"""What a store keeps in memory of each trajectory: who made it, its label, where its frames are."""

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from contracts.types import Label, Provenance
from replay.codec import read_label, read_provenance
from replay.frames import FrameKey


@dataclass(frozen=True, slots=True)
class Entry:
    """One committed trajectory. ``row`` is its row in ``episodes``."""

    provenance: Provenance
    label: Label | None
    instruction: str
    row: int
    first_frame: int
    num_frames: int

    def keys(self, indices: Sequence[int]) -> list[FrameKey]:
        """Where these 5 Hz frames are. Raises ValueError outside 0..num_frames - 1."""
        name = self.provenance.trajectory_id
        for index in indices:
            if not 0 <= index < self.num_frames:
                raise ValueError(f"frame {index} of {name!r} is not in 0..{self.num_frames - 1}")
        return [FrameKey(name, int(index), self.first_frame + int(index)) for index in indices]


class Index:
    """Committed trajectories by id, in the order in which they were added."""

    def __init__(self) -> None:
        self.entries: dict[str, Entry] = {}
        self.end = 0  # rows of ``frames`` that belong to committed trajectories

    def extend(self, episodes: pa.Table) -> None:
        """Append the light columns of newly committed rows."""
        for row in episodes.to_pylist():
            self.entries[row["trajectory_id"]] = Entry(
                provenance=read_provenance(row),
                label=read_label(row),
                instruction=row["instruction"],
                row=len(self.entries),
                first_frame=row["first_frame"],
                num_frames=row["num_frames"],
            )
            self.end = row["first_frame"] + row["num_frames"]
