"""Batches of the policy and the world model: which windows, how often, with which weight."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.training import TrainConfig
from contracts.types import Label, Provenance, Verdict
from envs.fake import counting_trajectory
from learners.advantage import advantage_weights, advantages
from learners.policy import PolicyData, PolicySources, action_window
from learners.selection import Selection, accepted, held_out, real_successes
from learners.world_model import WorldModelData, WorldModelSources
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions

LOSSLESS = StoreOptions(ImageCoding("png"))
OFFSETS = (-1_000_000, -12, -8, -4, -2, -1)


def store_of(
    folder: Path, episodes: list[tuple[str, int, bool | None]], task: str = "wipe"
) -> ReplayStore:
    """(id, ticks, success) each; the i-th episode's green channel is 10 x (i + 1)."""
    store = ReplayStore.create_or_open(folder, LOSSLESS)
    for index, (name, ticks, success) in enumerate(episodes):
        made_by = Provenance(name, "real", task, iteration=1, seed=10 * (index + 1))
        label = None if success is None else Label(name, success, "simulator")
        store.add(counting_trajectory(made_by, ticks), label)
    store.close()
    return ReplayStore.open(folder, LOSSLESS)


def plan(batch: int, seed: int = 0) -> TrainConfig:
    return TrainConfig(batch=batch, seed=seed)


def everything(store: ReplayStore) -> Selection:
    return Selection(store, store.ids())


def test_window_past_the_end_stands_still_and_keeps_the_gripper():
    actions = np.arange(1, 41, dtype=np.float32).reshape(5, 8)
    window = action_window(actions, tick=3, horizon=4)
    np.testing.assert_array_equal(window[:2], actions[3:])
    np.testing.assert_array_equal(window[2:, :7], np.zeros((2, 7)))
    np.testing.assert_array_equal(window[2:, 7], [40, 40])
    np.testing.assert_array_equal(action_window(actions, 0, 3), actions[:3])
    assert actions[4, 0] == 33  # the source is untouched


def test_policy_windows_begin_at_frames_and_fit_their_picture(tmp_path):
    """12 ticks have frames at 0, 3, 6, 9, 12; nothing is left to do at 12: four windows."""
    store = store_of(tmp_path, [("a", 12, True), ("b", 14, True)])
    data = PolicyData(PolicySources(everything(store)), 15, plan(64))
    assert data.num_windows == 4 + 5
    seen = set()
    for step in range(4):
        batch = data.sample(step)
        tick = batch.joint_position[:, 0]
        np.testing.assert_array_equal(batch.images[:, 0, 0, 0, 0] * 3, tick)
        np.testing.assert_array_equal(batch.actions[:, 0, 0], tick / np.float32(1000))
        np.testing.assert_array_equal(batch.gripper_position, tick / np.float32(1000))
        np.testing.assert_array_equal(batch.weight, np.ones(64))
        assert set(batch.instructions) == {"do wipe"}
        seen |= set(zip(batch.images[:, 0, 0, 0, 1].tolist(), tick.tolist(), strict=True))
    expected = {(10, t) for t in (0, 3, 6, 9)} | {(20, t) for t in (0, 3, 6, 9, 12)}
    assert seen == expected


@pytest.mark.parametrize(("share", "real"), [(0.0, 0), (0.5, 16), (0.75, 24), (0.9, 29)])
def test_policy_batch_holds_the_real_share_exactly(tmp_path, share, real):
    """round(0.9 x 32) = 29."""
    true = store_of(tmp_path / "real", [("a", 30, True)])
    dreams = store_of(tmp_path / "imagined", [("x", 30, None), ("y", 30, None)])
    sources = PolicySources(everything(true), Selection(dreams, ["y"]), real_share=share)
    for step in range(3):
        owner = PolicyData(sources, 15, plan(32)).sample(step).images[:, 0, 0, 0, 1]
        assert np.sum(owner == 10) == real
        assert np.sum(owner == 20) == 32 - real


def many_tasks(folder: Path, ticks: dict[str, int], seed: int = 10) -> ReplayStore:
    """One success of each task, so many ticks long; ``seed`` is their green channel."""
    store = ReplayStore.create_or_open(folder, LOSSLESS)
    for task, length in ticks.items():
        name = f"{folder.name}-{task}"
        made_by = Provenance(name, "real", task, iteration=1, seed=seed)
        store.add(counting_trajectory(made_by, length), Label(name, True, "simulator"))
    store.close()
    return ReplayStore.open(folder, LOSSLESS)


@pytest.mark.parametrize(("batch", "each"), [(30, [10]), (32, [10, 11]), (2, [0, 1])])
def test_tasks_share_a_policy_batch_equally_however_many_windows_they_have(tmp_path, batch, each):
    store = many_tasks(tmp_path / "real", {"wipe": 90, "pour": 6, "fold": 45})
    data = PolicyData(PolicySources(everything(store)), 15, plan(batch))
    often = {"do wipe": 0, "do pour": 0, "do fold": 0}
    for step in range(12):
        asked = data.sample(step).instructions
        counts = {task: asked.count(task) for task in often}
        assert set(counts.values()) <= set(each)
        assert sum(counts.values()) == batch
        often = {task: often[task] + counts[task] for task in often}
    assert min(often.values()) > 0  # what the division leaves over goes to each in turn


def test_real_share_holds_within_every_task_that_has_both_kinds(tmp_path):
    real = many_tasks(tmp_path / "real", {"wipe": 90, "pour": 6})
    dreams = many_tasks(tmp_path / "dream", {"wipe": 9, "fold": 45}, seed=20)
    both = (everything(real), everything(dreams))

    def batch(share: float) -> Counter[tuple[str, int]]:
        """How many windows of each task and kind (10: real, 20: dreamt)."""
        drawn = PolicyData(PolicySources(*both, real_share=share), 15, plan(24)).sample(0)
        return Counter(zip(drawn.instructions, drawn.images[:, 0, 0, 0, 1].tolist(), strict=True))

    mixed = {("do wipe", 10): 6, ("do wipe", 20): 2, ("do pour", 10): 8, ("do fold", 20): 8}
    assert batch(0.75) == mixed
    assert batch(0.0) == {("do wipe", 20): 12, ("do fold", 20): 12}
    assert batch(1.0) == {("do wipe", 10): 12, ("do pour", 10): 12}


@pytest.mark.parametrize("block", [1, 4, 100])
def test_rows_are_the_places_of_a_step_s_windows_among_all(tmp_path, block):
    true = store_of(tmp_path / "real", [("a", 30, True), ("b", 21, True)])
    dreams = store_of(tmp_path / "imagined", [("x", 30, None), ("y", 30, None), ("z", 9, None)])
    advantage = {"a": 0.2, "b": 0.5, "x": 0.9, "y": 0.5, "z": 0.7}
    sources = PolicySources(everything(true), everything(dreams), beta=0.5, advantage=advantage)
    data = PolicyData(sources, 15, plan(16))
    blocks = list(data.all(block))
    assert sum(len(one.weight) for one in blocks) == data.num_windows == 10 + 7 + 10 + 10 + 3
    for step in range(3):
        batch, rows = data.sample(step), data.rows(step)
        for name in ("images", "actions", "joint_position", "weight"):
            whole = np.concatenate([getattr(one, name) for one in blocks])
            np.testing.assert_array_equal(whole[rows.index.numpy()], getattr(batch, name))
        np.testing.assert_array_equal(rows.weight, batch.weight)


def test_policy_takes_all_from_the_source_that_is_not_empty(tmp_path):
    true = store_of(tmp_path / "real", [("a", 30, True)])
    dreams = store_of(tmp_path / "imagined", [("x", 30, None), ("y", 30, None)])
    only_dreams = PolicySources(Selection(true, []), Selection(dreams, ["y"]))
    assert set(PolicyData(only_dreams, 15, plan(8)).sample(0).images[:, 0, 0, 0, 1]) == {20}
    only_real = PolicySources(everything(true), Selection(dreams, []))
    assert set(PolicyData(only_real, 15, plan(8)).sample(0).images[:, 0, 0, 0, 1]) == {10}
    with pytest.raises(ValueError, match="zero successful trajectories"):
        PolicyData(PolicySources(Selection(true, [])), 15, plan(8))


def test_batches_depend_on_seed_and_step_not_on_the_order_of_storing(tmp_path):
    ab = store_of(tmp_path / "ab", [("a", 30, True), ("b", 30, True)])
    ba = ReplayStore.create_or_open(tmp_path / "ba", LOSSLESS)
    for name in ("b", "a"):
        ba.add(ab.trajectory(name), None)
    ba.close()
    one = PolicyData(PolicySources(everything(ab)), 15, plan(16))
    two = PolicyData(PolicySources(everything(ba)), 15, plan(16))
    np.testing.assert_array_equal(one.sample(3).images, two.sample(3).images)
    np.testing.assert_array_equal(one.sample(3).actions, two.sample(3).actions)
    assert np.any(one.sample(3).images != one.sample(4).images)
    other = PolicyData(PolicySources(everything(ab)), 15, plan(16, seed=1))
    assert np.any(one.sample(3).images != other.sample(3).images)


def test_advantage_is_a_score_minus_the_mean_from_the_same_start():
    """Start s: scores 1 (real), 1, 0.5 and 0 have the mean 0.625; start t has one alone."""
    score = {"s": 1.0, "a": 1.0, "b": 0.5, "c": 0.0, "t": 0.0}
    found = advantages(score, {"s": "s", "a": "s", "b": "s", "c": "s", "t": "t"})
    assert found == {"s": 0.375, "a": 0.375, "b": -0.125, "c": -0.625, "t": 0.0}


def test_advantage_weights_are_equation_7_with_mean_one_in_each_task():
    """Task p has advantages +-0.25: exp(0.5) and exp(-0.5) at beta 0.5, over their mean 1.1276260.
    Task q's lone trajectory weighs 1, whatever its advantage."""
    advantage = {"a": 0.25, "b": -0.25, "c": 0.9}
    task = {"a": "p", "b": "p", "c": "q"}
    weights = advantage_weights(advantage, task, beta=0.5)
    assert weights["a"] == pytest.approx(1.6487213 / 1.1276260, rel=1e-5)
    assert weights["b"] == pytest.approx(0.6065307 / 1.1276260, rel=1e-5)
    assert weights["c"] == 1
    assert advantage_weights({}, task, beta=0.0) == {"a": 1.0, "b": 1.0, "c": 1.0}
    tiny = advantage_weights(advantage, task, beta=1e-4)
    assert tiny["a"] == pytest.approx(2.0)  # all the weight, and no overflow
    with pytest.raises(ValueError, match="none of c"):
        advantage_weights({"a": 1.0, "b": 1.0}, task, beta=0.5)


def test_policy_batch_carries_the_weight_of_its_trajectory(tmp_path):
    store = store_of(tmp_path, [("a", 30, True), ("b", 30, True)])
    sources = PolicySources(everything(store), beta=0.5, advantage={"a": 1.0, "b": 0.5})
    batch = PolicyData(sources, 15, plan(32)).sample(0)
    high, low = np.exp(0.5), np.exp(-0.5)
    mean = (high + low) / 2
    expected = np.where(batch.images[:, 0, 0, 0, 1] == 10, high / mean, low / mean)
    np.testing.assert_allclose(batch.weight, expected, rtol=1e-6)


def test_successes_and_accepted_are_what_may_train_the_policy(tmp_path):
    store = store_of(tmp_path, [("a", 3, True), ("b", 3, False), ("c", 3, None), ("d", 3, True)])
    assert list(real_successes(store).ids) == ["a", "d"]
    verdicts = {
        "a": Verdict("a", 0.8, 1.0, 1),  # not above 0.8
        "b": Verdict("b", 0.81, 1.0, 1),
        "c": Verdict("c", float("nan"), float("nan"), 1, "out of memory"),
    }
    assert list(accepted(store, verdicts, {"wipe": 0.8}).ids) == ["b"]


def test_holdout_keeps_every_episode_on_its_side_while_the_store_grows():
    """Share 0.25 of 4000 ids: 1000 +- 27 (one standard deviation)."""
    names = [f"real-{i}" for i in range(4000)]
    kept, out = held_out(names, 0.25)
    assert sorted(kept + out) == sorted(names)
    assert abs(len(out) - 1000) < 110
    early_kept, early_out = held_out(names[:50], 0.25)
    assert set(early_kept) <= set(kept)
    assert set(early_out) <= set(out)


def test_world_model_window_indices_are_history_now_and_four_ahead(tmp_path):
    """Current frame 13 of an episode: first frame, then 1, 5, 9, 11, 12 | 13 | 14 .. 17."""
    store = store_of(tmp_path, [("a", 60, None)])  # frames 0 .. 20
    data = WorldModelData(WorldModelSources(everything(store)), OFFSETS, 1.0, plan(256))
    assert data.num_windows == 17  # current frames 0 .. 16
    batch = data.sample(0)
    rows = {tuple(row) for row in batch.frames[:, :, 0, 0, 0, 0].tolist()}
    assert (0, 1, 5, 9, 11, 12, 13, 14, 15, 16, 17) in rows
    assert (0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4) in rows
    assert (0, 0, 0, 1, 3, 4, 5, 6, 7, 8, 9) in rows
    assert (0, 4, 8, 12, 14, 15, 16, 17, 18, 19, 20) in rows
    assert max(row[-1] for row in rows) == 20
    # poses belong to the frames: x = tick / 100 = 3 x frame / 100, gripper = tick / 1000
    frame = batch.frames[:, :, 0, 0, 0, 0].astype(np.float32)
    np.testing.assert_allclose(batch.poses[:, :, 0], 3 * frame / 100, rtol=1e-6)
    np.testing.assert_allclose(batch.poses[:, :, 6], 3 * frame / 1000, rtol=1e-6)
    assert data.frame_size == (16, 16)


def test_world_model_batch_is_half_real_and_half_droid_with_weight_lambda(tmp_path):
    real = store_of(tmp_path / "real", [("a", 30, False)])
    demos = store_of(tmp_path / "demos", [("x", 3, None), ("y", 30, True)])
    sources = WorldModelSources(everything(real), everything(demos))
    batch = WorldModelData(sources, OFFSETS, 0.25, plan(9)).sample(2)
    owner = batch.frames[:, 0, 0, 0, 0, 1]
    assert sorted(owner.tolist()) == [10] * 5 + [20] * 4  # x is too short for a window
    np.testing.assert_array_equal(batch.weight, np.where(owner == 10, 1, 0.25))


def test_world_model_with_one_source_alone_weighs_it_fully(tmp_path):
    real = store_of(tmp_path / "real", [("a", 30, False)])
    demos = store_of(tmp_path / "demos", [("x", 30, None), ("y", 30, True)])
    without = WorldModelData(
        WorldModelSources(everything(real), everything(demos)), OFFSETS, 0.0, plan(8)
    ).sample(0)
    assert set(without.frames[:, 0, 0, 0, 0, 1]) == {10}
    base = WorldModelData(
        WorldModelSources(Selection(real, []), everything(demos)), OFFSETS, 0.25, plan(64)
    ).sample(0)
    assert set(base.frames[:, 0, 0, 0, 0, 1]) == {10, 20}
    assert set(base.weight) == {1.0}
    short = store_of(tmp_path / "short", [("s", 11, None)])  # 4 frames
    with pytest.raises(ValueError, match="none of 1 trajectories has 5 frames"):
        WorldModelData(WorldModelSources(everything(short)), OFFSETS, 1.0, plan(8))
