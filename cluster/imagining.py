"""The stage inside the world model: imagine N trajectories per task."""

import time
from typing import Any

import numpy as np
import ray

from actors.imagination import ImaginationStats
from cluster.context import Context, Versions
from cluster.handles import RemoteQueue, RemoteStore, answer, end, start
from cluster.processes import ImaginationProcess
from contracts.seeds import fold
from contracts.types import StartState, WorkItem
from services.progress import Bar
from services.queue import TaskQueue

POLL_S = 0.5


def work_items(run: Context, task: str, iteration: int) -> list[WorkItem]:
    """N items of one task, each from the first frame of a real episode of that task."""
    store = run.reader("real")
    rows = [row for row in store.episodes() if row.provenance.task == task]
    if not rows:
        return []
    rng = np.random.default_rng(fold(run.config.seed, "starts", iteration, task))
    order = np.concatenate(
        [
            rng.permutation(len(rows))
            for _ in range(run.config.for_task(task).imagine // len(rows) + 1)
        ]
    )
    firsts = {row.id: store.frames(row.id, [0])[0] for row in rows}
    items = []
    for k in range(run.config.for_task(task).imagine):
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
            WorkItem(name, start, iteration, fold(run.config.seed, "imagine", iteration, task, k))
        )
    return items


def imagine(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Imagine what is missing of every task's N, on that task's workers."""
    items = {task: work_items(run, task, iteration) for task in run.tasks}
    done = set(run.reader("imagined").ids())
    total = sum(len(work) for work in items.values())
    missing = {
        task: [i for i in work if i.trajectory_id not in done] for task, work in items.items()
    }
    with run.reporter.stage(f"{iteration} imagine", total, "trajectories") as bar:
        bar.at(total - sum(len(work) for work in missing.values()))
        pools = [_Pool(run, task, work, versions) for task, work in missing.items() if work]
        try:
            _watch(pools, bar, run.config.cluster.stall_timeout_s)
        finally:
            stats = [s for pool in pools for s in pool.close()]
    return {
        "trajectories": total,
        "seconds": bar.seconds,
        "net_frames": sum(s.frames for s in stats),
        "policy_s": sum(s.policy_s for s in stats),
        "world_model_s": sum(s.world_model_s for s in stats),
        "host_s": sum(s.host_s for s in stats),
        "workers": {pool.task: pool.num_workers for pool in pools},
    }


class _Pool:
    """The imagination workers of one task and the queue they pull from."""

    def __init__(self, run: Context, task: str, work: list[WorkItem], versions: Versions) -> None:
        config, cluster = run.config, run.config.cluster
        self.task = task
        self.num_workers = min(config.for_task(task).workers, len(work))
        self.queue = start(TaskQueue, work, config.imagination.lease_s, num_cpus=0)
        policy = run.checkpoints.open("policy", versions.policy)
        world_model = run.checkpoints.open("world_model", versions.world_model)
        self._workers = [
            start(
                ImaginationProcess,
                config,
                policy,
                world_model,
                num_cpus=cluster.worker_cpus,
                num_gpus=cluster.worker_gpus,
                max_restarts=-1,  # a worker that dies starts again, its call is repeated,
                max_task_retries=-1,  # and the queue hands out anew what it held
            )
            for _ in range(self.num_workers)
        ]
        self._sink = RemoteStore(run.replay, "imagined")
        self._calls = [self._call(k) for k in range(self.num_workers)]
        self._stats: dict[int, ImaginationStats] = {}

    def _call(self, index: int) -> Any:
        name = f"{self.task}-{index}"
        return self._workers[index].run.remote(name, RemoteQueue(self.queue), self._sink)

    def poll(self) -> tuple[int, bool]:
        """(trajectories done, whether that is all of them). Raises what a worker raised."""
        for index, call in enumerate(self._calls):
            if ray.wait([call], timeout=0)[0]:
                self._stats[index] = answer(call)
                if not answer(self.queue.finished.remote()):
                    self._calls[index] = self._call(index)  # a dead worker's items came back
        counts = answer(self.queue.counts.remote())
        ended = len(self._stats) == self.num_workers
        return counts.done, ended and not counts.leased + counts.waiting

    def close(self) -> list[ImaginationStats]:
        """Stop the workers; return what those counted that ended by themselves."""
        end(*self._workers, self.queue)
        return list(self._stats.values())


def _watch(pools: list[_Pool], bar: Bar, stall_timeout_s: float) -> None:
    """Draw the bar until every pool has done all of its work."""
    before = bar.done
    newest, moved = -1, time.monotonic()
    while True:
        states = [pool.poll() for pool in pools]
        now = sum(done for done, _ in states)
        if now != newest:
            newest, moved = now, time.monotonic()
            bar.at(before + now)
        if all(finished for _, finished in states):
            return
        if time.monotonic() - moved > stall_timeout_s:
            raise RuntimeError(
                f"{bar.name}: no trajectory ended for {stall_timeout_s:g} s. Look at the workers' "
                "logs in the Ray dashboard, or raise cluster.stall_timeout_s"
            )
        time.sleep(POLL_S)
