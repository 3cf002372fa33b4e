"""The work queue conserves items: each is waiting, leased or done, and done once."""

import numpy as np
import pytest

from contracts.types import StartState, WorkItem
from services.queue import QueueCounts, TaskQueue


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def item(name: str) -> WorkItem:
    frame = np.zeros((3, 2, 2, 3), np.uint8)
    start = StartState("p", 0, "count", "count", frame, np.zeros(7, np.float32), 0.0)
    return WorkItem(name, start, iteration=1, seed=0)


def names(items: list[WorkItem]) -> str:
    return "".join(i.trajectory_id for i in items)


def make(letters: str = "abcde", finished: str = "") -> tuple[TaskQueue, Clock]:
    clock = Clock()
    return TaskQueue([item(x) for x in letters], 10.0, finished, clock), clock


def test_items_go_out_in_order_and_once():
    queue, _ = make()
    assert [names(queue.take("w", 2)), names(queue.take("v", 2))] == ["ab", "cd"]
    assert [names(queue.take("w", 2)), names(queue.take("w", 2))] == ["e", ""]
    assert queue.counts() == QueueCounts(waiting=0, leased=5, done=0)


def test_what_an_earlier_process_stored_is_not_handed_out():
    queue, _ = make(finished="bdz")
    assert names(queue.take("w", 9)) == "ace"
    assert queue.counts() == QueueCounts(0, 3, 2)


def test_dead_workers_items_come_first_and_in_order():
    queue, _ = make()
    queue.take("dead", 2)
    queue.take("alive", 1)
    assert queue.release("dead") == 2
    assert names(queue.take("alive", 9)) == "abde"
    assert queue.counts() == QueueCounts(0, 5, 0)


def test_lease_ends_at_ten_seconds_of_silence():
    queue, clock = make()
    queue.take("silent", 2)
    clock.now = 9.9
    assert queue.expire() == 0
    clock.now = 10.0
    assert names(queue.take("other", 3)) == "abc"


def test_heartbeat_renews_every_lease_of_that_worker_alone():
    queue, clock = make()
    queue.take("lively", 2)
    queue.take("silent", 1)
    clock.now = 6.0
    queue.heartbeat("lively")
    clock.now = 12.0
    assert queue.expire() == 1
    assert names(queue.take("other", 1)) == "c"
    clock.now = 15.0
    queue.done("lively", "a")  # renews nothing: b stays until 16
    clock.now = 16.0
    assert queue.expire() == 1
    clock.now = 22.0
    assert queue.expire() == 1  # c of "other", taken at 12


def test_a_worker_that_came_back_does_not_keep_what_it_forgot():
    queue, clock = make("abcd")
    queue.take("w", 2)  # and dies
    clock.now = 5.0
    queue.take("w", 1)  # restarted under the same name
    clock.now = 10.0
    assert names(queue.take("v", 9)) == "abd"
    assert queue.release("w") == 1


def test_done_is_idempotent_and_valid_after_the_lease_was_lost():
    queue, clock = make("ab")
    queue.take("slow", 1)
    clock.now = 11.0
    assert names(queue.take("quick", 1)) == "a"
    queue.done("slow", "a")
    queue.done("quick", "a")
    assert queue.counts() == QueueCounts(waiting=1, leased=0, done=1)
    assert queue.status().done == ("a",)


def test_done_takes_a_requeued_item_out_of_the_line():
    queue, _ = make("ab")
    queue.take("slow", 2)
    queue.release("slow")
    queue.done("slow", "b")
    assert names(queue.take("other", 9)) == "a"
    queue.done("other", "a")
    assert queue.finished()
    assert queue.status().done == ("b", "a")


def test_stop_hands_out_nothing_but_still_counts():
    queue, _ = make()
    queue.take("w", 2)
    queue.stop()
    assert queue.take("w", 2) == []
    queue.done("w", "a")
    assert queue.counts() == QueueCounts(waiting=3, leased=1, done=1)
    assert not queue.finished()


def test_strangers_and_duplicates_are_refused():
    queue, _ = make()
    with pytest.raises(ValueError, match="never in this queue"):
        queue.done("w", "z")
    with pytest.raises(ValueError, match="2 items share 1 ids"):
        make("aa")


def test_random_life_loses_and_repeats_nothing():
    """300 random events: the counts always add up, and every id is done exactly once."""
    rng = np.random.default_rng(0)
    queue, clock = make("abcdefghijklmnopqrstuvwxyz")
    held: dict[str, list[str]] = {"u": [], "v": [], "w": []}
    done: tuple[str, ...] = ()
    for _ in range(300):
        worker = "uvw"[rng.integers(3)]
        event = rng.integers(4)
        if event == 0:
            held[worker] += [i.trajectory_id for i in queue.take(worker, int(rng.integers(1, 4)))]
        elif event == 1 and held[worker]:
            queue.done(worker, held[worker].pop())
        elif event == 2 and rng.random() < 0.2:
            queue.release(worker)
            held[worker] = []
        clock.now += float(rng.random() * 2)
        status = queue.status()
        counts = status.counts
        assert counts.waiting + counts.leased + counts.done == 26
        assert counts.done == len(set(status.done))
        assert status.done[: len(done)] == done  # what is done stays done
        done = status.done
    assert queue.finished()


def test_a_retired_worker_gets_no_more_and_may_finish():
    queue, _ = make()
    queue.take("w", 2)
    queue.retire("w")
    assert queue.take("w", 1) == []
    queue.done("w", "a")
    assert names(queue.take("v", 9)) == "cde"
    assert queue.counts() == QueueCounts(waiting=0, leased=4, done=1)


def test_takers_share_what_waits_and_the_last_item_goes_to_whoever_asks():
    queue, _ = make("abcdefgh")
    queue.share(4)
    taken = [names(queue.take(worker, 9)) for worker in "uvwxuvwx"]
    assert taken == ["ab", "cd", "e", "f", "g", "h", "", ""]


def test_a_queue_that_started_again_learns_what_its_workers_hold():
    """It knows what is stored (a) and nothing of leases; b and c must not be imagined twice."""
    queue, clock = make("abcde", finished="a")
    queue.heartbeat("w", ["b", "c"])
    assert queue.counts() == QueueCounts(waiting=2, leased=2, done=1)
    assert names(queue.take("v", 9)) == "de"
    clock.now = 9.0
    queue.heartbeat("w", ["b", "c"])
    clock.now = 10.0  # of v's leases alone
    assert names(queue.take("u", 9)) == "de"


def test_a_heartbeat_takes_nothing_away_from_another_worker():
    queue, _ = make("ab")
    queue.take("v", 1)
    queue.heartbeat("w", ["a"])
    assert queue.release("w") == 0
    assert queue.release("v") == 1


def test_silence_counts_from_the_last_word_of_each_worker():
    queue, clock = make()
    queue.hello("w")
    clock.now = 3.0
    queue.take("v", 1)
    clock.now = 7.0
    assert queue.status().silence_s == {"w": 7.0, "v": 4.0}
    queue.heartbeat("w")
    queue.done("v", "a")
    queue.release("gone")
    assert queue.status().silence_s == {"w": 0.0, "v": 0.0}
    queue.release("v")
    assert queue.status().silence_s == {"w": 0.0}
