"""Labelled real episodes, and beside them imagined ones whose outcome people said in an audit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import UInt8

from contracts.types import Label
from learners.selection import Episodes, Selection, held_out
from replay.codec import EpisodeRow
from replay.store import ReplayStore


@dataclass(frozen=True, slots=True)
class RewardSources:
    """What the reward model learns from. Labels of ``real`` are those of its store; ``success`` is
    what people said of every trajectory of ``audited``."""

    real: Selection
    audited: Selection | None = None
    success: Mapping[str, bool] = field(default_factory=dict)


class LabelledEpisodes:
    """Both sources as one list of rows, real ones first; as ``Episodes`` otherwise.

    Raises:
        ValueError: their views differ in size.
    """

    def __init__(self, sources: RewardSources) -> None:
        self._real = Episodes(sources.real)
        self._audited = Episodes(sources.audited) if sources.audited else None
        said = [_said(row, sources.success) for row in self._audited.rows] if self._audited else []
        self.rows: list[EpisodeRow] = [*self._real.rows, *said]
        sizes = sorted({(row.height, row.width) for row in self.rows})
        if said and len(sizes) > 1:
            raise ValueError(
                f"reward.audited: real and audited trajectories differ in size ({sizes}): give the "
                "folder of a run with the same robot.height and robot.width"
            )

    def frames(
        self, wanted: Sequence[tuple[int, Sequence[int]]]
    ) -> list[UInt8[np.ndarray, "frame 3 height width 3"]]:
        """Frames of many (row, frame indices), in the order asked for."""
        first = len(self._real)
        real = [i for i, (row, _) in enumerate(wanted) if row < first]
        audited = [i for i, (row, _) in enumerate(wanted) if row >= first]
        shown = dict(zip(real, self._real.frames([wanted[i] for i in real]), strict=True))
        if self._audited is not None:
            asked = [(wanted[i][0] - first, wanted[i][1]) for i in audited]
            shown |= dict(zip(audited, self._audited.frames(asked), strict=True))
        return [shown[i] for i in range(len(wanted))]


def _said(row: EpisodeRow, success: Mapping[str, bool]) -> EpisodeRow:
    return replace(row, label=Label(row.id, success[row.id], "human"))


def trainable(
    said: Mapping[str, bool | None], imagined: ReplayStore, holdout: float
) -> dict[str, bool]:
    """Which answers of an audit may train: those that are no "unsure" (None), on trajectories of
    the store whose real parent is not held out, or calibration would look at the same starts."""
    known = {name: success for name, success in said.items() if name in imagined}
    return {
        name: success
        for name, success in sorted(known.items())
        if success is not None and held_out([imagined.provenance(name).parent], holdout)[0]
    }
