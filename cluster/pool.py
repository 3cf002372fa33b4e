"""The imagination workers of one task: started, replaced, retired; and the queue they pull from."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

import ray

from actors.dream import Ending
from actors.imagination import ImaginationSettings, ImaginationStats, Models
from cluster.context import Context
from cluster.handles import LOSSES, RemoteQueue, RemoteStore, answer, end, service, start, who_died
from cluster.processes import ImaginationProcess
from cluster.work import QueueProcess
from contracts.errors import StoppedError
from contracts.types import Clip, Score, WorkItem
from services.allocation import Demand
from services.queue import QueueStatus

State = Literal["starting", "working", "idle"]
STATES: tuple[State, ...] = ("starting", "working", "idle")


@dataclass
class _Worker:
    name: str
    actor: Any
    call: Any  # what it is doing; None: nothing, because its queue handed out nothing
    born_s: float
    heard: bool = False  # it has found a place
    retired: bool = False
    stats: ImaginationStats = field(default_factory=ImaginationStats)

    @property
    def state(self) -> State:
        if self.call is None:
            return "idle"
        return "working" if self.heard else "starting"


class TaskPool:
    """The workers of one task. ``step`` brings their number to what is wanted and replaces those
    that died or went silent, up to ``cluster.max_failures`` in a row without a trajectory.

    Ray restarts none of them: a worker that hangs must be replaced as well as one that dies, and
    one that dies for ever must end the stage.

    ``items()`` and ``build()`` are called in the processes that need what they return. With a
    ``judge`` a trajectory ends where its goal is reached.
    """

    def __init__(
        self,
        run: Context,
        task: str,
        items: Callable[[], Sequence[WorkItem]],
        build: Callable[[], Models],
        lost: Callable[[str], None],
        judge: Callable[[Clip], Future[Score]] | None = None,
    ) -> None:
        self.task = task
        self._config, self._build = run.config, build
        numbers = run.config.imagination
        alpha, num_frames = run.config.for_task(task).alpha, run.config.reward.num_frames
        self._settings = ImaginationSettings(
            numbers.slots,
            numbers.max_chunks,
            numbers.groups,
            Ending(judge, alpha, num_frames) if judge is not None else None,
        )
        lease_s = run.config.imagination.lease_s
        store = run.store_folder("imagined")
        queue = start(QueueProcess, items, lease_s, store, **service())
        self._process, self.queue = queue, RemoteQueue(queue)
        self._sink, self._lost = RemoteStore(run.replay, "imagined"), lost
        self._workers: list[_Worker] = []
        self._numbered = 0
        self._gone: list[ImaginationStats] = []
        self._stopped = False
        self._wanted, self.most = 0, 0  # workers, now and at most so far
        self.deaths, self._told, self._in_a_row, self._spent_s = 0, 0, 0, 0.0
        self._began = time.monotonic()
        self.status: QueueStatus = self.queue.status()
        self._before = len(self.status.done)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do, or handed out any more, and nobody works."""
        counts = self.status.counts
        return not (counts.leased or self._waiting or self.calls)

    @property
    def _waiting(self) -> int:
        """Items that a worker could still get."""
        return 0 if self._stopped else self.status.counts.waiting

    @property
    def calls(self) -> list[Any]:
        return [worker.call for worker in self._workers if worker.call is not None]

    @property
    def placed(self) -> int:
        """Workers that hold their share of a node."""
        return sum(worker.heard for worker in self._workers)

    @property
    def starting(self) -> int:
        return sum(worker.state == "starting" for worker in self._workers)

    def demand(self, wanted: int | None) -> Demand:
        counts = self.status.counts
        done = len(self.status.done) - self._before
        each = self.worker_seconds / done if done else 1.0
        workers = sum(not worker.retired for worker in self._workers)
        return Demand(self._waiting, self._waiting + counts.leased, workers, each, wanted)

    def look(self) -> None:
        """See who ended, died or went silent; replace nobody yet.

        Raises:
            StoppedError: too many workers died in a row. Others: what one of them raised.
        """
        self._collect()
        before = len(self.status.done)
        self.status = self.queue.status()
        if len(self.status.done) > before:
            self._in_a_row = 0
        limit = self._config.imagination.lease_s
        for worker in list(self._workers):
            silence = self.status.silence_s.get(worker.name)
            worker.heard = worker.heard or silence is not None
            if worker.call is not None and silence is not None and silence > limit:
                self._lose(worker, f"was silent for {silence:.0f} s")

    def resize(self, count: int) -> bool:
        """Have ``count`` workers: start some, or let the newest finish what they hold and end.
        True when the number changed."""
        self._wanted, self.most = count, max(self.most, count)
        active = [worker for worker in self._workers if not worker.retired]
        self.queue.share(max(1, count) * self._config.imagination.groups)
        for worker in active[count:]:
            worker.retired = True
            self.queue.retire(worker.name)
        for worker in active[:count]:
            if worker.call is None and self._waiting:
                worker.call = worker.actor.run.remote(self._sink)
        for _ in range(count - len(active)):
            self._begin()
        for worker in [w for w in self._workers if w.retired and w.call is None]:
            self._dismiss(worker)
        return count != len(active)

    def stop(self) -> None:
        """Hand out nothing more; what is under way is finished."""
        self._stopped = True
        self.queue.stop()  # again each time: a queue that died has forgotten it

    def close(self) -> list[ImaginationStats]:
        """End every process; what those counted that ended by themselves."""
        for worker in list(self._workers):
            self._dismiss(worker)
        end(self._process)
        return self._gone

    @property
    def worker_seconds(self) -> float:
        """Seconds that workers have had a place, summed over them."""
        now = time.monotonic()
        return self._spent_s + sum(now - worker.born_s for worker in self._workers if worker.heard)

    def numbers(self) -> dict[str, float]:
        """What people watch, as plain numbers."""
        counts, now = self.status.counts, time.monotonic()
        made = counts.done - self._before
        seconds = max(now - self._began, 1e-9)
        states = [worker.state for worker in self._workers]
        return {
            "wanted": self._wanted,
            **{state: states.count(state) for state in STATES},
            "waiting": counts.waiting,
            "leased": counts.leased,
            "done": counts.done,
            "lost": self.deaths,
            "trajectories_per_hour": 3600 * made / seconds,
        }

    def new_deaths(self) -> int:
        """Workers lost since this was last asked."""
        new, self._told = self.deaths - self._told, self.deaths
        return new

    def silence_s(self) -> dict[str, float]:
        """Seconds since each working worker was last heard."""
        silent = self.status.silence_s
        return {w.name: silent[w.name] for w in self._workers if w.name in silent and w.call}

    def _begin(self) -> None:
        cluster = self._config.cluster
        name = f"{self.task}-{self._numbered}"
        self._numbered += 1
        actor = start(
            ImaginationProcess,
            name,
            self._settings,
            self._build,
            self.queue,
            num_cpus=cluster.worker_cpus,
            num_gpus=cluster.worker_gpus,
            max_restarts=0,
        )
        call = actor.run.remote(self._sink)
        self._workers.append(_Worker(name, actor, call, time.monotonic()))

    def _collect(self) -> None:
        for worker in [w for w in self._workers if w.call is not None]:
            if not ray.wait([worker.call], timeout=0)[0]:
                continue
            try:
                worker.stats = answer(worker.call)
                worker.call = None
            except LOSSES as error:
                self._lose(worker, who_died(error))

    def _lose(self, worker: _Worker, how: str) -> None:
        """A worker that is dead or hangs: its work goes back, its place is free."""
        self._dismiss(worker)
        self.queue.release(worker.name)
        self.deaths += 1
        self._in_a_row += 1
        if self._in_a_row > self._config.cluster.max_failures:
            raise StoppedError(
                f"imagination of {self.task}: {self._in_a_row} workers in a row were lost without "
                f"finishing a trajectory; the last one, {worker.name}: {how}. Look at its log in "
                "the Ray dashboard; if memory ran out, lower imagination.slots or raise "
                "cluster.worker_gpus; if it only needs longer, raise imagination.lease_s. What is "
                "stored is kept; the same command continues"
            )
        self._lost(f"imagination worker {worker.name}: {how}; its work goes to another")

    def _dismiss(self, worker: _Worker) -> None:
        end(worker.actor)
        self._workers.remove(worker)
        self._gone.append(worker.stats)
        if worker.heard:
            self._spent_s += time.monotonic() - worker.born_s
