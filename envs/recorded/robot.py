"""Recorded episodes as D_real: what takes the place of a robot where there are only recordings."""

import hashlib
import logging
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from contracts.constants import TICKS_PER_FRAME
from contracts.droid_features import INSTRUCTIONS
from contracts.types import Label, Provenance, Trajectory
from envs.recorded.annotation import CtrlWorldFolder
from envs.recorded.episode import Dataset, EpisodeKey, Recording, task_name
from envs.recorded.lerobot import LeRobotFolder, LeRobotOptions
from envs.recorded.video import read_views

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An episode that could not be used, and why."""

    episode: str  # split/episode
    reason: str


@dataclass(frozen=True, slots=True)
class Choice:
    """Which episodes of a folder, and which of their texts.

    ``split``: "train", "val", or "" for both. ``limit`` > 0: at most so many, chosen by the hash of
    their names, so that a larger limit only adds some. ``untitled``: False leaves out episodes
    without an instruction. ``instruction`` and ``holdout``: see ``LeRobotOptions``.
    """

    split: str = ""
    instruction: str = INSTRUCTIONS[0]
    holdout: float = 0.05
    limit: int = 0
    untitled: bool = True


def open_dataset(folder: Path, choice: Choice) -> Dataset:
    """Open a folder of recordings; its layout is recognised by its files.

    Raises:
        ValueError: it has none of the known layouts, or a damaged index.
    """
    if (folder / "meta" / "info.json").exists():
        return LeRobotFolder(folder, LeRobotOptions(choice.instruction, choice.holdout))
    if (folder / "annotation").is_dir():
        return CtrlWorldFolder(folder)
    hint = ""
    if next(folder.glob("**/*.tfrecord*"), None) is not None:
        hint = (
            ". It holds RLDS files: port them with LeRobot's examples/port_datasets/port_droid.py"
        )
    raise ValueError(
        f"{folder} holds no recordings: expected annotation/ and videos/ in it (Ctrl-World's "
        f"layout) or meta/info.json, data/ and videos/ (LeRobot v2 or v3){hint}"
    )


class RecordedRobot:
    """Hands out the episodes of a folder in Ctrl-World's or LeRobot's layout.

    It is no ``RobotEnv``: a recording cannot execute an action. ``height`` and ``width`` are the
    pixels of a view. Opening reads an index; one episode is in memory at a time. Episodes that
    cannot be used are left out, logged, and listed in ``skipped``.

    Raises:
        ValueError: the folder has no known layout, no episode, or a damaged index.
    """

    def __init__(
        self, folder: str | Path, height: int, width: int, choice: Choice | None = None
    ) -> None:
        self._folder, self._height, self._width = Path(folder), height, width
        self._choice = choice or Choice()
        self._dataset = open_dataset(self._folder, self._choice)
        self._keys = _limited(self._dataset.keys(self._choice.split), self._choice.limit)
        self.skipped: list[Skipped] = []

    def __len__(self) -> int:
        """Episodes of the split, usable or not."""
        return len(self._keys)

    def ids(self) -> list[str]:
        """Trajectory ids of the split, usable or not."""
        return [key.id for key in self._keys]

    @property
    def notes(self) -> tuple[str, ...]:
        """What holds for all episodes, such as columns that are derived from others."""
        return self._dataset.notes

    def tasks(self) -> dict[str, list[str]]:
        """Trajectory ids by task, from the instructions alone: no video is opened.

        Raises:
            ValueError: not one episode can be read.
        """
        tasks: dict[str, list[str]] = {}
        skipped: list[Skipped] = []
        for key in self._keys:
            try:
                instruction = self._titled(key, self._dataset.instruction(key))
            except ValueError as error:
                skipped.append(_skip(key, error))
                continue
            tasks.setdefault(task_name(instruction), []).append(key.id)
        if not tasks:
            self._refuse(skipped)
        return tasks

    def episodes(self, known: Collection[str] = ()) -> Iterator[tuple[Trajectory, Label | None]]:
        """Every usable episode and its label, in the order of split and episode number.

        Those whose id is in ``known`` are not opened.

        Raises:
            ValueError: at the end, if not one episode could be used.
        """
        self.skipped.clear()
        count = 0
        for key in self._keys:
            if key.id in known:
                count += 1
                continue
            try:
                recording = self._dataset.read(key)
                self._titled(key, recording.instruction)
                trajectory = self._trajectory(recording)
            except ValueError as error:
                self.skipped.append(_skip(key, error))
                continue
            count += 1
            yield trajectory, _label(recording)
        if count == 0:
            self._refuse(self.skipped)

    def rows(self) -> Iterator[Recording]:
        """The 15 Hz rows of every episode whose rows can be read; no video is opened."""
        for key in self._keys:
            try:
                yield self._dataset.read(key)
            except ValueError as error:
                _skip(key, error)

    def _titled(self, key: EpisodeKey, instruction: str) -> str:
        if not instruction and not self._choice.untitled:
            raise ValueError(
                f"episode {key.episode} of {self._folder} has an empty instruction: write one, or "
                "take such episodes as the task 'untitled' with robot.untitled=true"
            )
        return instruction

    def _refuse(self, skipped: list[Skipped]) -> None:
        reasons = "\n  ".join(f"{item.episode}: {item.reason}" for item in skipped[:3])
        split = f" of split {self._choice.split!r}" if self._choice.split else ""
        raise ValueError(
            f"{self._folder} has no usable episode{split}; expected 15 Hz joint velocities and "
            f"states and three videos for each. {len(skipped)} skipped, the first of them:\n"
            f"  {reasons}"
        )

    def _trajectory(self, recording: Recording) -> Trajectory:
        wanted = recording.num_frames
        frames = read_views(recording.views, wanted, self._height, self._width)
        rows = min(len(recording.actions), TICKS_PER_FRAME * len(frames))
        return Trajectory(
            provenance=Provenance(
                recording.key.id, "recorded", recording.task, iteration=0, seed=0
            ),
            instruction=recording.instruction,
            actions=recording.actions[: rows - 1],
            joint_position=recording.joint_position[:rows],
            gripper_position=recording.gripper_position[:rows],
            cartesian_position=recording.cartesian_position[:rows],
            frames=frames,
            ending="done",
        )


def read_episodes(
    folder: str | Path, height: int, width: int, split: str = ""
) -> Iterator[tuple[Trajectory, Label | None]]:
    """``RecordedRobot(...).episodes()`` for callers who do not ask what was skipped."""
    return RecordedRobot(folder, height, width, Choice(split)).episodes()


def _limited(keys: list[EpisodeKey], limit: int) -> list[EpisodeKey]:
    if not 0 < limit < len(keys):
        return keys
    ranked = sorted(keys, key=lambda key: hashlib.sha256(key.episode.encode()).digest())
    chosen = set(ranked[:limit])
    return [key for key in keys if key in chosen]


def _skip(key: EpisodeKey, error: ValueError) -> Skipped:
    item = Skipped(f"{key.split}/{key.episode}", str(error))
    log.info("recorded episode %s is not used: %s", item.episode, item.reason)
    return item


def _label(recording: Recording) -> Label | None:
    if recording.success is None:
        return None
    return Label(recording.key.id, recording.success, "recording")
