"""Scripted episodes of all tasks on all cores, kept decoded in one file."""

import multiprocessing
import os
import pickle
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from configs.robot import RobotConfig
from configs.run import RunConfig
from contracts.seeds import fold
from contracts.types import Label, Provenance, Trajectory
from envs.mujoco.experts import demonstrate
from envs.mujoco.robot import MujocoRobot
from learners.selection import Selection
from replay.codec import EpisodeRow

PLAY_NOISE = (0.05, 0.1, 0.2, 0.3)  # per tick; experts survive 0.02, from 0.2 on most fail
GUIDED_NOISE = (0.02, 0.05, 0.1)
INDEX = "episodes.pickle"
HELD_OUT = 20  # episodes of play per task that no model sees


@dataclass(frozen=True, slots=True)
class Request:
    """One scripted episode. ``kind``: demo (clean), guided (noise; what the expert wanted is
    recorded) or play (noise; what was executed is recorded)."""

    robot: RobotConfig
    seed: int
    kind: str
    task: str
    index: int
    noise: float

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.task}-{self.index:05d}"


class Scripted:
    """The episodes in a folder, a ``Source`` whose frames lie decoded in one file.

    Raises:
        ValueError: they have not been played to the end.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        index = folder / INDEX
        if not index.exists():
            raise ValueError(f"{folder} holds no {INDEX}: play the episodes first, `play`")
        stored: list[tuple[EpisodeRow, int]] = pickle.loads(index.read_bytes())
        self._rows = {row.id: row for row, _ in stored}
        self._begin = {row.id: begin for row, begin in stored}
        first = stored[0][0]
        total = sum(row.num_frames for row in self._rows.values())
        shape = (total, 3, first.height, first.width, 3)
        self._frames = np.memmap(folder / "frames", np.uint8, "r", shape=shape)

    @property
    def folder(self) -> Path:
        return self._folder

    def ids(self, kind: str, task: str = "", held_out: bool = False) -> list[str]:
        """Of one kind, sorted; the first of play of every task are kept out of training."""
        names = sorted(n for n in self._rows if n.startswith(f"{kind}-{task}"))
        early = [int(name.rpartition("-")[2]) < HELD_OUT for name in names]
        return [n for n, e in zip(names, early, strict=True) if kind != "play" or e == held_out]

    def successes(self, kind: str, task: str = "") -> list[str]:
        return [name for name in self.ids(kind, task) if self.label(name).success]

    def label(self, name: str) -> Label:
        label = self._rows[name].label
        assert label is not None
        return label

    def episodes(self, ids: Collection[str]) -> list[EpisodeRow]:
        return [self._rows[name] for name in ids]

    def frames_many(self, pairs: Iterable[tuple[str, Sequence[int]]]) -> list[np.ndarray]:
        return [self._frames[self._begin[name] + np.asarray(rows)] for name, rows in pairs]

    def trajectory(self, trajectory_id: str) -> Trajectory:
        row = self._rows[trajectory_id]
        states = (row.joint_position, row.gripper_position, row.cartesian_position)
        frames = self.frames_many([(trajectory_id, range(row.num_frames))])[0]
        return Trajectory(row.provenance, row.instruction, row.actions, *states, frames, row.ending)

    def select(self, ids: Sequence[str]) -> Selection:
        return Selection(self, ids)


def pool() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn"))


def requests(config: RunConfig, guided: int) -> Iterator[Request]:
    """Demonstrations, ``guided`` guided episodes and the play of every task, in turns."""
    play = max(config.for_task(task).rollouts for task in config.task)
    for k in range(max(guided, play, config.demos.per_task)):
        for task in config.task:
            for kind, count, noise in (
                ("demo", config.demos.per_task, config.demos.noise),
                ("guided", guided, GUIDED_NOISE[k % len(GUIDED_NOISE)]),
                ("play", config.for_task(task).rollouts, PLAY_NOISE[k % len(PLAY_NOISE)]),
            ):
                if k < count:
                    yield Request(config.robot, config.seed, kind, task, k, noise)


def record(wanted: Sequence[Request], folder: Path) -> Scripted:
    """Run all episodes and write their frames, then the index without which they do not count."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / INDEX).unlink(missing_ok=True)
    stored, begin, start = [], 0, time.monotonic()
    with pool() as workers, (folder / "frames").open("wb") as file:
        for row, frames in workers.map(_episode, wanted, chunksize=4):
            file.write(frames.data)
            stored.append((row, begin))
            begin += len(frames)
    partial = folder / f"{INDEX}.partial"
    partial.write_bytes(pickle.dumps(stored))
    partial.rename(folder / INDEX)
    print(f"{len(stored)} episodes, {begin} frames, {time.monotonic() - start:.0f} s", flush=True)
    return Scripted(folder)


@cache
def _robot(height: int, width: int, renderer: str) -> MujocoRobot:
    return MujocoRobot(RobotConfig(height=height, width=width, renderer=renderer))


def _episode(request: Request) -> tuple[EpisodeRow, np.ndarray]:
    seed = fold(request.seed, request.kind, request.task, request.index)
    played, success = demonstrate(
        _robot(request.robot.height, request.robot.width, request.robot.renderer),
        request.task,
        seed,
        request.noise,
        request.kind == "guided",
    )
    row = EpisodeRow(
        Provenance(request.id, "demo", request.task, 0, seed),
        played.instruction,
        played.ending,
        Label(request.id, success, "simulator"),
        len(played.frames),
        *played.frames.shape[2:4],
        played.actions,
        played.joint_position,
        played.gripper_position,
        played.cartesian_position,
    )
    return row, played.frames
