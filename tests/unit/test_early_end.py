"""Imagination that ends where the judge says twice that the goal is reached, however fast it is."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pytest

from actors.dream import Ending
from actors.imagination import ImaginationSettings, ImaginationWorker, Models
from contracts.types import Clip, Score, Trajectory
from replay.store import clip_indices
from services.queue import TaskQueue
from tests.unit.test_imagination import Echo, Integrator, NoisyPolicy, Shelf, items, kinematics

CHUNKS = 6


def goal(clip: Clip) -> float:
    """Dream k reaches its goal in chunk k + 1, and looks so ever after; dream 3 never does."""
    seed, chunk = (int(value) for value in clip.frames[-1, 0, 0, 0, :2])
    return 0.9 if seed != 3 and chunk >= seed else 0.1


@dataclass
class Judge:
    """Answers after ``delay_s``, in threads of its own; keeps what it was asked."""

    p_yes: Callable[[Clip], float] = goal
    delay_s: float = 0.0
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    clips: list[Clip] = field(default_factory=list)

    def __call__(self, clip: Clip) -> Future[Score]:
        self.clips.append(clip)
        return self.pool.submit(self._answer, clip)

    def _answer(self, clip: Clip) -> Score:
        threading.Event().wait(self.delay_s * float(np.random.default_rng().uniform(0.5, 1)))
        return Score(self.p_yes(clip), 1.0)


def dream(judge: Judge | None, count: int = 5, groups: int = 1) -> dict[str, Trajectory]:
    shelf, queue = Shelf(), TaskQueue(items(count))
    ending = Ending(judge, alpha=0.8, num_frames=4) if judge else None
    settings = ImaginationSettings(3, CHUNKS, groups, ending)
    models = Models(NoisyPolicy(), Echo(), Integrator(), kinematics)
    ImaginationWorker(models, settings).run("w", queue, shelf)
    assert queue.finished()
    return shelf.stored


def test_a_trajectory_ends_one_chunk_after_the_one_that_reaches_its_goal():
    """Dream 4 reaches it in chunk 5 and is confirmed by the last one, 3 never."""
    found, whole = dream(Judge()), dream(None)
    assert {name: one.num_ticks // 12 for name, one in found.items()} == {
        "dream-0": 2, "dream-1": 3, "dream-2": 4, "dream-3": CHUNKS, "dream-4": CHUNKS,
    }  # fmt: skip
    for name, one in found.items():
        chunks = one.num_ticks // 12
        assert one.ending == ("timeout" if name == "dream-3" else "done")
        for part, rows in (
            ("actions", 12 * chunks), ("joint_position", 12 * chunks + 1),
            ("gripper_position", 12 * chunks + 1), ("cartesian_position", 12 * chunks + 1),
            ("frames", 4 * chunks + 1),
        ):  # fmt: skip
            np.testing.assert_array_equal(getattr(one, part), getattr(whole[name], part)[:rows])


@pytest.mark.parametrize("groups", [1, 3])
def test_slow_and_disorderly_answers_change_no_trajectory(groups):
    quick, slow = dream(Judge()), dream(Judge(delay_s=0.02), groups=groups)
    assert quick.keys() == slow.keys()
    for name, one in quick.items():
        assert one.ending == slow[name].ending
        np.testing.assert_array_equal(one.actions, slow[name].actions)
        np.testing.assert_array_equal(one.frames, slow[name].frames)


def test_the_judge_is_asked_as_the_stored_trajectory_would_be():
    judge = Judge()
    found = dream(judge, count=3)
    for one in found.values():
        picks = clip_indices(len(one.frames), 4)
        asked = [clip for clip in judge.clips if clip.frame_index == picks]
        assert any((clip.frames == one.frames[list(picks)]).all() for clip in asked)
    assert {clip.instruction for clip in judge.clips} == {"wipe the board"}


def test_a_judge_that_fails_ends_nothing():
    def fails(clip: Clip) -> float:
        raise OSError("out of memory")

    found = dream(Judge(fails))
    assert {one.num_ticks for one in found.values()} == {12 * CHUNKS}


def test_a_score_of_alpha_is_not_above_it():
    found = dream(Judge(lambda clip: 0.8))
    assert {one.ending for one in found.values()} == {"timeout"}


@pytest.mark.parametrize(("yes", "chunks"), [({1}, CHUNKS), ({0, 2, 4}, CHUNKS), ({1, 3, 4}, 5)])
def test_a_success_that_is_seen_for_a_moment_ends_nothing(yes, chunks):
    found = dream(Judge(lambda clip: 0.9 if clip.frames[-1, 0, 0, 0, 1] in yes else 0.0, 0.01))
    assert {one.num_ticks for one in found.values()} == {12 * chunks}
