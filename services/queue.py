"""Work items under leases: what a dead worker held goes to another, and nothing is done twice."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from contracts.types import WorkItem


@dataclass(frozen=True, slots=True)
class QueueCounts:
    """``waiting + leased + done`` is the number of items ever put in."""

    waiting: int
    leased: int
    done: int


@dataclass(slots=True)
class _Lease:
    item: WorkItem
    worker: str
    ends_s: float


class TaskQueue:
    """The imagination work of one task. One process owns it; it is no more than bookkeeping.

    A lease lasts ``lease_s`` from ``take``, or from the worker's last ``heartbeat``. Choose it
    longer than a trajectory takes, or send heartbeats. Taking more renews nothing: a
    worker that died and came back under its old name does not know what it held; it calls
    ``release`` first.

    Args:
        items: what is to be done, in order.
        lease_s: seconds after which an item that is not done goes back.
        finished: ids among them that an earlier process has stored already.
        clock: monotonic seconds.

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
        self._done = self._known & set(finished)
        self._waiting = deque(i for i in every if i.trajectory_id not in self._done)
        self._leases: dict[str, _Lease] = {}
        self._fresh: list[str] = []  # done since the last drain
        self._lease_s, self._clock = lease_s, clock
        self._stopped = False

    def take(self, worker: str, count: int) -> list[WorkItem]:
        """Lease up to ``count`` items to ``worker``; none when nothing waits or after ``stop``."""
        self.expire()
        if self._stopped:
            return []
        taken = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
        ends = self._clock() + self._lease_s
        self._leases |= {i.trajectory_id: _Lease(i, worker, ends) for i in taken}
        return taken

    def done(self, worker: str, trajectory_id: str) -> None:
        """Note that a trajectory is stored. Idempotent, and valid whoever holds its lease by now.

        Raises:
            ValueError: there was never such an item.
        """
        if trajectory_id not in self._known:
            raise ValueError(f"{worker} finished {trajectory_id!r}, which was never in this queue")
        if trajectory_id in self._done:
            return
        self._done.add(trajectory_id)
        self._fresh.append(trajectory_id)
        if self._leases.pop(trajectory_id, None) is None:
            self._waiting = deque(i for i in self._waiting if i.trajectory_id != trajectory_id)

    def heartbeat(self, worker: str) -> None:
        """Renew what ``worker`` holds."""
        ends = self._clock() + self._lease_s
        for lease in self._leases.values():
            if lease.worker == worker:
                lease.ends_s = ends

    def release(self, worker: str) -> int:
        """Put back, first in line, what ``worker`` held in a life that ended. Returns how many."""
        return self._put_back(lambda lease: lease.worker == worker)

    def expire(self) -> int:
        """Put back what leases that have ended held. Returns how many."""
        now = self._clock()
        return self._put_back(lambda lease: lease.ends_s <= now)

    def drain(self) -> list[str]:
        """Ids done since the last call, in the order in which they were done."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def stop(self) -> None:
        """Hand out nothing any more; what is under way may still be reported as done."""
        self._stopped = True

    def counts(self) -> QueueCounts:
        return QueueCounts(len(self._waiting), len(self._leases), len(self._done))

    def num_done(self) -> int:
        return len(self._done)

    def finished(self) -> bool:
        """Whether every item is done."""
        return len(self._done) == len(self._known)

    def _put_back(self, lost: Callable[[_Lease], bool]) -> int:
        back = [lease.item for lease in self._leases.values() if lost(lease)]
        for item in back:
            del self._leases[item.trajectory_id]
        self._waiting.extendleft(reversed(back))
        return len(back)
