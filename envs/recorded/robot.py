"""Recorded episodes as D_real: what takes the place of a robot where there are only recordings."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from contracts.constants import TICKS_PER_FRAME
from contracts.types import Label, Provenance, Trajectory
from envs.recorded.annotation import Annotation, read_annotation
from envs.recorded.video import read_views

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An episode that could not be used, and why."""

    episode: str  # split/episode
    reason: str


class RecordedRobot:
    """Hands out the episodes of a folder in Ctrl-World's layout.

    It is no ``RobotEnv``: a recording cannot execute an action. ``height`` and ``width`` are the
    pixels of a view; ``split`` narrows to "train" or "val". Episodes that cannot be used are left
    out, logged, and listed in ``skipped``.

    Raises:
        ValueError: the folder has no annotations.
    """

    def __init__(self, folder: str | Path, height: int, width: int, split: str = "") -> None:
        self._folder, self._height, self._width = Path(folder), height, width
        self._files = _annotation_files(self._folder, split)
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        """Annotation files, usable or not."""
        return len(self._files)

    def tasks(self) -> dict[str, list[str]]:
        """Trajectory ids by task, from the annotations alone: no video is opened."""
        tasks: dict[str, list[str]] = {}
        for annotation in self._annotations([]):
            tasks.setdefault(annotation.task, []).append(annotation.id)
        return tasks

    def episodes(self) -> Iterator[tuple[Trajectory, Label | None]]:
        """Every usable episode and its label, in the order of split and episode number.

        Raises:
            ValueError: at the end, if not one episode could be used.
        """
        self.skipped.clear()
        count = 0
        for annotation in self._annotations(self.skipped):
            try:
                trajectory = self._read(annotation)
            except ValueError as error:
                self._skip(annotation.file, error, self.skipped)
                continue
            count += 1
            yield trajectory, _label(annotation)
        if count == 0:
            reasons = "\n  ".join(f"{item.episode}: {item.reason}" for item in self.skipped[:3])
            raise ValueError(
                f"{self._folder} has no usable episode; expected 15 Hz joint velocities and states "
                "in annotation/<split>/*.json and three videos each. "
                f"{len(self.skipped)} skipped, the first of them:\n  {reasons}"
            )

    def _annotations(self, skipped: list[Skipped]) -> Iterator[Annotation]:
        for file in self._files:
            try:
                annotation = read_annotation(file)
            except ValueError as error:
                self._skip(file, error, skipped)
                continue
            yield annotation

    def _skip(self, file: Path, error: ValueError, skipped: list[Skipped]) -> None:
        item = Skipped(f"{file.parent.name}/{file.stem}", str(error))
        skipped.append(item)
        log.warning("recorded episode %s is not used: %s", item.episode, item.reason)

    def _read(self, annotation: Annotation) -> Trajectory:
        frames = read_views(annotation.videos, annotation.num_frames, self._height, self._width)
        rows = min(len(annotation.actions), TICKS_PER_FRAME * len(frames))
        return Trajectory(
            provenance=Provenance(annotation.id, "recorded", annotation.task, iteration=0, seed=0),
            instruction=annotation.instruction,
            actions=annotation.actions[: rows - 1],
            joint_position=annotation.joint_position[:rows],
            gripper_position=annotation.gripper_position[:rows],
            cartesian_position=annotation.cartesian_position[:rows],
            frames=frames,
            ending="done",
        )


def read_episodes(
    folder: str | Path, height: int, width: int, split: str = ""
) -> Iterator[tuple[Trajectory, Label | None]]:
    """``RecordedRobot(...).episodes()`` for callers who do not ask what was skipped."""
    return RecordedRobot(folder, height, width, split).episodes()


def _annotation_files(folder: Path, split: str) -> list[Path]:
    """Annotations in the order of split, then episode number."""
    pattern = f"annotation/{split or '*'}/*.json"
    files = [file for file in folder.glob(pattern) if file.is_file()]
    if not files:
        raise ValueError(f"{folder} has no {pattern}: expected annotation/ and videos/ in it")
    return sorted(files, key=lambda file: (file.parent.name, file.stem.zfill(20)))


def _label(annotation: Annotation) -> Label | None:
    if annotation.success is None:
        return None
    return Label(annotation.id, annotation.success, "recording")
