"""Where imagined trajectories begin."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from actors.dream import Dream
from cluster.work import work_items
from configs.run import ImaginationConfig, RunConfig, TaskConfig, TaskOverrides
from contracts.types import Provenance, WorkItem
from envs.fake import counting_trajectory
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions

LOSSLESS = StoreOptions(ImageCoding("png"))
TICKS = {"a": 30, "b": 120, "c": 14}  # 11, 41 and 5 frames
DECISIONS = {"a": {4}, "b": {4, 8, 12, 16, 20}, "c": {0}}  # of the first half; c has none


@pytest.fixture
def real(tmp_path) -> Path:
    store = ReplayStore.create_or_open(tmp_path, LOSSLESS)
    for seed, (name, ticks) in enumerate(TICKS.items()):
        store.add(counting_trajectory(Provenance(name, "real", "book", 1, seed), ticks), None)
    store.add(counting_trajectory(Provenance("d", "real", "draw", 1, 9), 30), None)
    store.close()
    return tmp_path


def items(real: Path, later: float, count: int = 300) -> list[WorkItem]:
    config = RunConfig(
        each_task=TaskConfig(imagine=count),
        task={"book": TaskOverrides()},
        imagination=ImaginationConfig(later_starts=later),
    )
    return work_items(config, real, "book", iteration=1)


def test_by_default_all_begin_at_first_frames_of_the_task_s_episodes_in_equal_parts(real):
    found = items(real, later=0.0)
    assert Counter(item.start.parent for item in found) == {"a": 100, "b": 100, "c": 100}
    assert {item.start.parent_frame for item in found} == {0}
    assert all((item.start.joint_motion == 0).all() for item in found)
    assert len({item.seed for item in found}) == len({i.trajectory_id for i in found}) == 300


@pytest.mark.parametrize("later", [0.5, 1.0])
def test_later_starts_are_decisions_of_the_first_half_and_know_how_the_arm_moves(real, later):
    found = items(real, later)
    where: dict[str, set[int]] = {"a": set(), "b": set(), "c": set()}
    for item in found:
        start, tick = item.start, 3 * item.start.parent_frame
        where[start.parent].add(start.parent_frame)
        assert start.frame[0, 0, 0].tolist() == [start.parent_frame, "abc".index(start.parent), 0]
        assert start.joint_position[0] == tick
        assert start.gripper_position == pytest.approx(tick / 1000)
        assert start.joint_motion[0] == (1 if tick else 0)  # one rad per tick in these episodes
    first = set() if later == 1 else {0}
    assert where == {name: frames | first for name, frames in DECISIONS.items()}
    longer = [item.start.parent_frame > 0 for item in found if item.start.parent == "b"]
    assert np.mean(longer) == pytest.approx(later, abs=0.15)  # 3 standard deviations of 100


def test_a_share_of_later_starts_leaves_parents_and_seeds_as_they_were(real):
    plain, mixed = items(real, 0.0), items(real, 0.5)
    assert [i.start.parent for i in plain] == [i.start.parent for i in mixed]
    assert [i.seed for i in plain] == [i.seed for i in mixed]
    again = items(real, 0.5)
    assert [i.start.parent_frame for i in mixed] == [i.start.parent_frame for i in again]


def test_the_first_chunk_is_predicted_from_the_arm_s_motion_before_the_start(real):
    item = next(i for i in items(real, 1.0) if i.start.parent == "b")
    at = item.start.joint_position[None]
    dream = Dream(item, None, [], [at], [np.zeros(1, np.float32)], [np.zeros((1, 6), np.float32)])
    np.testing.assert_array_equal(dream.joint_motion(), [1, 0, 0, 0, 0, 0, 0])
    still = replace(item, start=replace(item.start, joint_motion=np.zeros(7, np.float32)))
    assert not replace(dream, item=still).joint_motion().any()
    dream.joints.append(np.outer(np.arange(12), np.full(7, 0.5)).astype(np.float32))
    dream.actions.append(np.zeros((12, 8), np.float32))
    np.testing.assert_array_equal(dream.joint_motion(), np.full(7, 0.5))
