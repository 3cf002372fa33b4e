"""What is to be imagined, and the process that hands it out. It needs no torch."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from configs.run import RunConfig
from contracts.seeds import fold
from contracts.types import StartState, WorkItem
from replay.store import ReplayStore
from services.queue import TaskQueue


def work_items(config: RunConfig, real: Path, task: str, iteration: int) -> list[WorkItem]:
    """N items of one task, each from the first frame of a real episode of that task.

    A function of the config and the store of real episodes, which do not change meanwhile.
    """
    store = ReplayStore.open(real)
    rows = [row for row in store.episodes() if row.provenance.task == task]
    if not rows:
        return []
    rng = np.random.default_rng(fold(config.seed, "starts", iteration, task))
    order = np.concatenate(
        [rng.permutation(len(rows)) for _ in range(config.for_task(task).imagine // len(rows) + 1)]
    )
    firsts = {row.id: store.frames(row.id, [0])[0] for row in rows}
    items = []
    for k in range(config.for_task(task).imagine):
        row = rows[int(order[k])]
        start = StartState(
            parent=row.id,
            parent_frame=0,
            task=task,
            instruction=row.instruction,
            frame=firsts[row.id],
            joint_position=row.joint_position[0],
            gripper_position=float(row.gripper_position[0]),
        )
        name = f"imagined-{iteration}-{task}-{k:05d}"
        items.append(
            WorkItem(name, start, iteration, fold(config.seed, "imagine", iteration, task, k))
        )
    return items


class QueueProcess(TaskQueue):
    """The queue of one task. When it starts again it knows from the store what is done; its workers
    tell it what they hold. ``items()`` returns the same whenever it starts."""

    def __init__(
        self, items: Callable[[], Sequence[WorkItem]], lease_s: float, store: Path
    ) -> None:
        super().__init__(items(), lease_s, finished=ReplayStore.open(store).ids())
