"""How many imagination workers each task should have: arithmetic only."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Demand:
    """One task's imagination work. ``wanted`` is a person's number; None lets the room decide."""

    waiting: int  # items that nobody holds
    remaining: int  # items that are not done
    workers: int  # that it has
    item_s: float  # seconds of one worker per item, as measured; equal guesses are as good
    wanted: int | None = None


def allocate(demands: Mapping[str, Demand], room: int) -> dict[str, int]:
    """Workers that each task should have now, by name.

    A wanted number is given whether or not there is room: the caller says who waits for a place. A
    worker more than there are items left would do nothing. Tasks without a wanted number share the
    ``room`` for more workers: each place goes to the task that would take longest. Their workers
    are never taken away; a task that runs dry frees them by itself.
    """
    given = {name: _own(demand) for name, demand in demands.items()}
    free = {name: demand for name, demand in demands.items() if demand.wanted is None}
    for _ in range(max(0, room)):
        open_to = [n for n, d in free.items() if given[n] - d.workers < d.waiting]
        if not open_to:
            break
        given[max(open_to, key=lambda name: _hours(free[name], given[name]))] += 1
    return given


def _own(demand: Demand) -> int:
    if demand.wanted is None:
        return demand.workers
    return min(demand.wanted, demand.workers + demand.waiting)


def _hours(demand: Demand, workers: int) -> float:
    """How long the task still takes with so many workers; nothing is longer than for ever."""
    return demand.remaining * demand.item_s / workers if workers else float("inf")
