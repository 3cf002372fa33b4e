"""Who gets imagination workers: a person's number first, then whoever would take longest."""

import pytest

from services.allocation import Demand, allocate


def demand(waiting: int, workers: int = 0, wanted: int | None = None, item_s: float = 1.0):
    return Demand(waiting, waiting, workers, item_s, wanted)


def test_a_wanted_number_is_given_whether_or_not_there_is_room():
    assert allocate({"draw": demand(100, wanted=6), "stack": demand(100, 3, 2)}, 0) == {
        "draw": 6, "stack": 2,
    }  # fmt: skip


def test_no_worker_without_work():
    assert allocate({"draw": demand(2, wanted=6), "erase": demand(3)}, 8) == {"draw": 2, "erase": 3}
    finished = Demand(waiting=0, remaining=4, workers=2, item_s=1.0)
    assert allocate({"draw": finished}, 8) == {"draw": 2}


def test_room_is_shared_by_the_time_that_is_left():
    """300 and 100 seconds of work on 4 places: 3 and 1, so that both end together."""
    assert allocate({"draw": demand(300), "stack": demand(100)}, 4) == {"draw": 3, "stack": 1}
    slow = {"draw": demand(100, item_s=3.0), "stack": demand(100, item_s=1.0)}
    assert allocate(slow, 4) == {"draw": 3, "stack": 1}


def test_every_task_gets_one_before_any_gets_two():
    tasks = {"a": demand(1000), "b": demand(1), "c": demand(1)}
    assert allocate(tasks, 3) == {"a": 1, "b": 1, "c": 1}
    assert sum(allocate(tasks, 2).values()) == 2


def test_auto_takes_no_worker_away_and_adds_what_others_freed():
    tasks = {"draw": demand(10, workers=5), "stack": demand(500, workers=1)}
    assert allocate(tasks, 0) == {"draw": 5, "stack": 1}
    assert allocate(tasks, 2) == {"draw": 5, "stack": 3}


@pytest.mark.parametrize("room", [0, 1, 7, 1000])
def test_never_more_than_the_room(room):
    tasks = {"a": demand(50), "b": demand(20, item_s=9.0), "c": demand(3)}
    given = allocate(tasks, room)
    assert sum(given.values()) == min(room, 73)
