"""Work items under leases: what a dead worker held goes to another, and nothing is done twice."""

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from contracts.types import WorkItem


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """``waiting + leased + done`` is the number of items ever put in."""

    waiting: int
    leased: int
    done: int


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """What the pool of a task must know to keep it going."""

    counts: QueueCounts
    done: tuple[str, ...]  # in the order in which they were done
    silence_s: Mapping[str, float] = field(default_factory=dict)  # since a worker was last heard


@dataclass(slots=True)
class _Lease:
    item: WorkItem
    worker: str
    ends_s: float


class TaskQueue:
    """The imagination work of one task. One process owns it; it is no more than bookkeeping.

    A lease lasts ``lease_s`` from ``take``, or from the worker's last ``heartbeat``. Whoever finds
    a worker dead or silent calls ``release``. A queue that starts again knows no leases: the next
    heartbeat of each worker takes them anew.

    Args:
        items: what is to be done, in order.
        lease_s: seconds after which an item that is not done goes back.
        finished: ids among them that an earlier process has stored already.
        clock: monotonic seconds; the wall clock may jump.

    Raises:
        ValueError: two items share an id.
    """

    def __init__(
        self,
        items: Iterable[WorkItem],
        lease_s: float = 600.0,
        finished: Iterable[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if lease_s <= 0:
            raise ValueError(f"lease_s={lease_s} must be more than 0")
        every = list(items)
        self._known = {item.trajectory_id for item in every}
        if len(self._known) < len(every):
            raise ValueError(f"{len(every)} items share {len(self._known)} ids; make them unique")
        before = set(finished)
        self._done = {i.trajectory_id: None for i in every if i.trajectory_id in before}
        self._waiting = deque(i for i in every if i.trajectory_id not in before)
        self._leases: dict[str, _Lease] = {}
        self._heard: dict[str, float] = {}
        self._retired: set[str] = set()
        self._lease_s, self._clock = lease_s, clock
        self._sharers = 1
        self._stopped = False

    def hello(self, worker: str) -> None:
        """A worker has a place and begins to load its models."""
        self._heard[worker] = self._clock()

    def take(self, worker: str, count: int) -> list[WorkItem]:
        """Lease up to ``count`` items to ``worker``, and no more than its share of what waits.

        None when nothing waits, after ``stop``, and to a worker that is to ``retire``.
        """
        self.hello(worker)
        self.expire()
        if self._stopped or worker in self._retired:
            return []
        share = -(-len(self._waiting) // self._sharers)
        taken = [self._waiting.popleft() for _ in range(min(count, share))]
        self._lease(worker, taken)
        return taken

    def done(self, worker: str, trajectory_id: str) -> None:
        """Note that a trajectory is stored. Idempotent, and valid whoever holds its lease by now.

        Raises:
            ValueError: there was never such an item.
        """
        if trajectory_id not in self._known:
            raise ValueError(f"{worker} finished {trajectory_id!r}, which was never in this queue")
        self._heard[worker] = self._clock()
        if trajectory_id in self._done:
            return
        self._done[trajectory_id] = None
        if self._leases.pop(trajectory_id, None) is None:
            self._waiting = deque(i for i in self._waiting if i.trajectory_id != trajectory_id)

    def heartbeat(self, worker: str, held: Collection[str] = ()) -> None:
        """Renew what ``worker`` holds; ``held`` are ids that it is working on, whoever knows it."""
        self.hello(worker)
        ends = self._clock() + self._lease_s
        for lease in self._leases.values():
            if lease.worker == worker:
                lease.ends_s = ends
        if any(name not in self._leases for name in held):
            mine = [item for item in self._waiting if item.trajectory_id in held]
            self._waiting = deque(i for i in self._waiting if i.trajectory_id not in held)
            self._lease(worker, mine)

    def retire(self, worker: str) -> None:
        """Hand ``worker`` nothing any more: it ends when it has finished what it holds."""
        self._retired.add(worker)

    def share(self, sharers: int) -> None:
        """From now on so many takers share what waits, so that none is left with nothing."""
        self._sharers = max(1, sharers)

    def release(self, worker: str) -> int:
        """Put back, first in line, what a worker held that is gone. Returns how many."""
        self._heard.pop(worker, None)
        return self._put_back(lambda lease: lease.worker == worker)

    def expire(self) -> int:
        """Put back what leases that have ended held. Returns how many."""
        now = self._clock()
        return self._put_back(lambda lease: lease.ends_s <= now)

    def stop(self) -> None:
        """Hand out nothing any more; what is under way may still be reported as done."""
        self._stopped = True

    def counts(self) -> QueueCounts:
        return QueueCounts(len(self._waiting), len(self._leases), len(self._done))

    def status(self) -> QueueStatus:
        self.expire()
        now = self._clock()
        silence = {worker: now - heard for worker, heard in self._heard.items()}
        return QueueStatus(self.counts(), tuple(self._done), silence)

    def finished(self) -> bool:
        """Whether every item is done."""
        return len(self._done) == len(self._known)

    def _lease(self, worker: str, items: Iterable[WorkItem]) -> None:
        ends = self._clock() + self._lease_s
        self._leases |= {i.trajectory_id: _Lease(i, worker, ends) for i in items}

    def _put_back(self, lost: Callable[[_Lease], bool]) -> int:
        back = [lease.item for lease in self._leases.values() if lost(lease)]
        for item in back:
            del self._leases[item.trajectory_id]
        self._waiting.extendleft(reversed(back))
        return len(back)
