"""What is to be imagined, and the process that hands it out. It needs no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from configs.run import RunConfig
from contracts.constants import NEW_FRAMES
from contracts.seeds import fold
from contracts.types import WorkItem
from replay.store import ReplayStore
from services.queue import TaskQueue


def work_items(config: RunConfig, real: Path, task: str, iteration: int) -> list[WorkItem]:
    """N items of one task, as many from each of its real episodes: from the first frame, or, for
    ``imagination.later_starts`` of them, from where the policy took another decision.

    A function of the config and the store of real episodes, which do not change meanwhile.
    """
    store = ReplayStore.open(real)
    rows = [row for row in store.episodes() if row.provenance.task == task]
    if not rows:
        return []
    count = config.for_task(task).imagine
    rng = np.random.default_rng(fold(config.seed, "starts", iteration, task))
    order = np.concatenate([rng.permutation(len(rows)) for _ in range(count // len(rows) + 1)])
    later = rng.random(count) < config.imagination.later_starts
    picked = [rows[int(index)] for index in order[:count]]
    starts = [
        (row.id, _decision(rng, row.num_frames) if is_later else 0)
        for row, is_later in zip(picked, later, strict=True)
    ]
    different = sorted(set(starts))
    read = store.frames_many([(name, [frame]) for name, frame in different])
    pictures = dict(zip(different, read, strict=True))
    return [
        WorkItem(
            f"imagined-{iteration}-{task}-{k:05d}",
            row.start(where[1], pictures[where][0]),
            iteration,
            fold(config.seed, "imagine", iteration, task, k),
        )
        for k, (row, where) in enumerate(zip(picked, starts, strict=True))
    ]


def _decision(rng: np.random.Generator, num_frames: int) -> int:
    """A frame in the first half of an episode at which a chunk ended; 0 of one that has none.

    Behind that a success is nearly done and a failure is mostly lost.
    """
    decisions = np.arange(NEW_FRAMES, num_frames // 2 + 1, NEW_FRAMES)
    return int(rng.choice(decisions)) if len(decisions) else 0


class QueueProcess(TaskQueue):
    """The queue of one task. When it starts again it knows from the store what is done; its workers
    tell it what they hold. ``items()`` returns the same whenever it starts."""

    def __init__(
        self, items: Callable[[], Sequence[WorkItem]], lease_s: float, store: Path
    ) -> None:
        super().__init__(items(), lease_s, finished=ReplayStore.open(store).ids())
