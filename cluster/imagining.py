"""The stage inside the world model: imagine N trajectories per task and score them as they come."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import ray

from cluster.context import Context, Versions
from cluster.nodes import room_for_workers, what_there_is
from cluster.pool import TaskPool
from cluster.processes import dreamers
from cluster.scoring import Scorer, keep, unscored
from cluster.work import work_items
from contracts.constants import NEW_FRAMES
from contracts.errors import StoppedError
from contracts.metrics import (
    HEARTBEAT_AGE,
    LEASED,
    QUEUE_DEPTH,
    REWARD_P_YES,
    VERDICTS,
    WORKER_RESTARTS,
    WORKERS,
)
from contracts.types import Verdict, WorkItem
from services.allocation import allocate
from services.board import Board
from services.progress import Bar

POLL_S = 0.5


def imagine(run: Context, iteration: int, versions: Versions) -> dict[str, Any]:
    """Imagine what is missing of every task's N, on that task's workers, and score it.

    A task with ``accept`` ends early: when that many of its first trajectories are accepted.
    """
    real = run.store_folder("real")
    makers = {task: partial(work_items, run.config, real, task, iteration) for task in run.tasks}
    names = {task: [item.trajectory_id for item in make()] for task, make in makers.items()}
    total = sum(map(len, names.values()))
    with run.reporter.stage(f"{iteration} imagine", total, "trajectories") as bar:
        stage = _Stage(run, iteration, versions, bar)
        try:
            stage.begin({task: (ids, makers[task]) for task, ids in names.items() if ids})
            seconds = stage.work()
        finally:
            result = stage.close()
    return {"trajectories": total, "seconds": seconds} | result


@dataclass
class _Task:
    """One task of the stage; ``verdicts`` are those of the version that scores now."""

    ids: list[str]
    pool: TaskPool | None  # None: everything was there before
    accept: int
    alpha: float
    known: set[str]  # stored and given to the scorer
    verdicts: dict[str, Verdict] = field(default_factory=dict)

    def enough(self) -> bool:
        return self.accept > 0 and len(first_accepted(self)) == self.accept

    def counts(self) -> dict[str, int]:
        found = list(self.verdicts.values())
        errors = sum(bool(verdict.error) for verdict in found)
        accepted = sum(verdict.accepted(self.alpha) for verdict in found)
        rejected = len(found) - accepted - errors
        return {"accepted": accepted, "rejected": rejected, "errors": errors}


def first_accepted(task: _Task) -> list[str]:
    """The first ``accept`` accepted ids, in the order of the work and not of the workers: who was
    quicker must not decide what the policy learns from. Ends at the first one without a verdict."""
    found: list[str] = []
    for name in task.ids:
        if len(found) == task.accept or name not in task.verdicts:
            break
        if task.verdicts[name].accepted(task.alpha):
            found.append(name)
    return found


class _Stage:
    """The pools of all tasks, the scorer, and what is shown of them."""

    def __init__(self, run: Context, iteration: int, versions: Versions, bar: Bar) -> None:
        self._run, self._iteration, self._versions, self._bar = run, iteration, versions, bar
        self._scorer = Scorer(run, versions.reward)
        self._board = Board(run.folder)
        self._tasks: dict[str, _Task] = {}
        self._names: dict[str, str] = {}  # trajectory -> task
        self._heard: dict[str, set[str]] = {}  # task -> workers whose silence is shown
        self._moved, self._newest = time.monotonic(), -1
        self._said_waiting = False

    def begin(self, work: dict[str, tuple[list[str], Callable[[], list[WorkItem]]]]) -> None:
        """``work``: of each task the ids of its items, and what makes the items."""
        run, versions = self._run, self._versions
        store = run.reader("imagined")
        stored = set(store.ids())
        scored = store.verdicts(reward_version=versions.reward)
        build = partial(
            dreamers,
            run.config,
            run.checkpoints.open("policy", versions.policy),
            run.checkpoints.open("world_model", versions.world_model),
        )
        for name, (ids, make) in work.items():
            numbers = run.config.for_task(name)
            verdicts = {i: scored[i] for i in ids if i in scored and not scored[i].error}
            before = {i for i in ids if i in stored}
            task = _Task(ids, None, numbers.accept, numbers.alpha, before, verdicts)
            self._tasks[name] = task
            self._names |= dict.fromkeys(ids, name)
            self._scorer.want(("imagined", i) for i in ids if i in before and i not in verdicts)
            if len(before) < len(ids) and not task.enough():
                judge = self._scorer.judge if run.config.imagination.end_at_success else None
                task.pool = TaskPool(run, name, make, build, self._bar.lost, judge)
        self._scorer.want(unscored(run, "real", run.reader("real").ids(), versions.reward))
        self._bar.begin_with(sum(len(task.known) for task in self._tasks.values()))

    @property
    def _pools(self) -> dict[str, TaskPool]:
        return {name: task.pool for name, task in self._tasks.items() if task.pool is not None}

    def work(self) -> float:
        """Until every task has all of its trajectories, or as many accepted as it wants, and all of
        them are scored. Returns the seconds that imagination took."""
        seconds = 0.0
        while True:
            for pool in self._pools.values():
                pool.look()
            self._score()
            self._resize()
            self._show()
            if all(pool.finished for pool in self._pools.values()):
                seconds = seconds or self._bar.seconds
                if not self._scorer.pending:
                    return seconds
            self._check_progress()
            calls = [call for pool in self._pools.values() for call in pool.calls]
            ray.wait(calls, timeout=POLL_S) if calls else time.sleep(POLL_S)

    def close(self) -> dict[str, Any]:
        """End all processes; what was counted."""
        stats = [one for pool in self._pools.values() for one in pool.close()]
        self._scorer.close()
        self._board.end(self._iteration, self._table())
        return {
            "net_frames": sum(s.frames for s in stats),
            "policy_s": sum(s.policy_s for s in stats),
            "world_model_s": sum(s.world_model_s for s in stats),
            "host_s": sum(s.host_s for s in stats),
            "wait_s": sum(s.wait_s for s in stats),
            "worker_s": sum(pool.worker_seconds for pool in self._pools.values()),
            "workers": {name: pool.most for name, pool in self._pools.items()},
            "deaths": {name: pool.deaths for name, pool in self._pools.items() if pool.deaths},
        }

    def _score(self) -> None:
        """Hand what was stored to the scorer, keep what came out, end tasks that have enough."""
        for task in self._tasks.values():
            if task.pool is None:
                continue
            fresh = [name for name in task.pool.status.done if name not in task.known]
            task.known.update(fresh)
            self._scorer.want(("imagined", name) for name in fresh)
        for verdict in keep(self._run, self._versions.reward, self._scorer.ended()):
            self._moved = time.monotonic()
            if verdict.trajectory_id in self._names:
                self._count(self._names[verdict.trajectory_id], verdict)
        for task in self._tasks.values():
            if task.pool is not None and task.enough():
                task.pool.stop()

    def _count(self, name: str, verdict: Verdict) -> None:
        task, meter = self._tasks[name], self._run.reporter.meter
        task.verdicts[verdict.trajectory_id] = verdict
        accepted = verdict.accepted(task.alpha)
        outcome = "error" if verdict.error else "accepted" if accepted else "rejected"
        meter.count(VERDICTS, task=name, outcome=outcome)
        if not verdict.error:
            meter.observe(REWARD_P_YES, verdict.p_yes, task=name)

    def _wanted(self) -> dict[str, int | None]:
        """Workers per task as configured, or as asked for since; None: as there is room."""
        asked = self._board.wishes()
        counts = {
            name: asked.get(name, self._run.config.for_task(name).workers) for name in self._pools
        }
        return {name: None if n == "auto" else int(n) for name, n in counts.items()}

    def _resize(self) -> None:
        wanted = self._wanted()
        demands = {name: pool.demand(wanted[name]) for name, pool in self._pools.items()}
        working = sum(demand.workers for demand in demands.values())
        room = 0
        if None in wanted.values() and not any(pool.starting for pool in self._pools.values()):
            room = room_for_workers(self._run.config, working)
        for name, count in allocate(demands, room).items():
            if self._pools[name].resize(count):
                self._moved = time.monotonic()
        cluster, placed = self._run.config.cluster, sum(p.placed for p in self._pools.values())
        self._bar.hold(placed * cluster.worker_gpus + cluster.scorer_gpus)

    def _show(self) -> None:
        table = self._table()
        self._bar.at(sum(int(row["done"]) for row in table.values()))
        self._bar.by_task(table)
        self._board.show(self._iteration, table)
        meter = self._run.reporter.meter
        for name, pool in self._pools.items():
            row = table[name]
            meter.set(QUEUE_DEPTH, row["waiting"], task=name)
            meter.set(LEASED, row["leased"], task=name)
            for state in ("wanted", "starting", "working", "idle", "lost"):
                meter.set(WORKERS, row[state], task=name, state=state)
            silence = pool.silence_s()
            gone = self._heard.get(name, set()) - silence.keys()  # a gauge keeps its last value
            for worker, seconds in (silence | dict.fromkeys(gone, 0.0)).items():
                meter.set(HEARTBEAT_AGE, seconds, task=name, worker=worker)
            self._heard[name] = set(silence)
            meter.count(WORKER_RESTARTS, pool.new_deaths(), task=name)

    def _table(self) -> dict[str, dict[str, float]]:
        return {name: self._row(task) for name, task in self._tasks.items()}

    def _row(self, task: _Task) -> dict[str, float]:
        if task.pool is None:
            return {"done": len(task.known), **task.counts()}
        row = task.pool.numbers() | task.counts()
        frames = self._run.config.imagination.max_chunks * NEW_FRAMES
        row["net_frames_per_s"] = row["trajectories_per_hour"] * frames / 3600
        gpus = self._run.config.cluster.worker_gpus
        if gpus and row["accepted"]:
            spent = gpus * task.pool.worker_seconds
            row["gpu_s_per_accepted"] = spent / row["accepted"]
        return row

    def _check_progress(self) -> None:
        """Say who waits for a place; end a stage in which nothing moves.

        Raises:
            StoppedError: it names what the cluster has.
        """
        done = self._bar.done
        if done != self._newest:
            self._newest, self._moved = done, time.monotonic()
        cluster, pools = self._run.config.cluster, self._pools.values()
        still = time.monotonic() - self._moved
        waiting = {pool.task: pool.starting for pool in pools if pool.starting}
        if waiting and not any(pool.placed for pool in pools) and still > cluster.start_timeout_s:
            raise StoppedError(
                f"{self._bar.name}: no imagination worker found a place for "
                f"{cluster.start_timeout_s:g} s. {what_there_is(self._run.config)}"
            )
        if waiting and still > cluster.start_timeout_s and not self._said_waiting:
            self._said_waiting = True
            names = ", ".join(f"{count} of {task}" for task, count in waiting.items())
            self._run.reporter.say(
                f"  workers still wait for a place: {names}. {what_there_is(self._run.config)}"
            )
        if still > cluster.stall_timeout_s:
            raise self._run.stall(self._bar, "look at the workers' logs in Ray's dashboard").error()
