"""The store counts: what was acknowledged is there once, in order, and readable from elsewhere."""

import math
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from contracts.types import Label, Provenance, Trajectory, Verdict
from replay.codec import frames_table
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions, clip_indices
from replay.tables import Upkeep

ROOT = Path(__file__).resolve().parents[2]
LOSSLESS = StoreOptions(coding=ImageCoding("png"), lock_wait_s=0.0)


def make(name: str, seed: int = 0, ticks: int = 10, **provenance: object) -> Trajectory:
    rng = np.random.default_rng(seed)
    source = {"origin": "real", "task": "stack", "iteration": 0} | provenance
    return Trajectory(
        provenance=Provenance(trajectory_id=name, seed=seed, **source),
        instruction=f"do {name}",
        actions=rng.normal(size=(ticks, 8)).astype(np.float32),
        joint_position=rng.normal(size=(ticks + 1, 7)).astype(np.float32),
        gripper_position=rng.random(ticks + 1, np.float32),
        cartesian_position=rng.normal(size=(ticks + 1, 6)).astype(np.float32),
        frames=rng.integers(0, 256, (ticks // 3 + 1, 3, 8, 16, 3), np.uint8),
        ending="done",
    )


def assert_equal(one: Trajectory, other: Trajectory) -> None:
    for name in ("provenance", "instruction", "ending"):
        assert getattr(one, name) == getattr(other, name)
    for name in ("actions", "joint_position", "gripper_position", "cartesian_position", "frames"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def store(tmp_path):
    store = ReplayStore.create_or_open(tmp_path / "store", LOSSLESS)
    yield store
    store.close()


def test_random_trajectories_come_back_bit_exact_and_in_order(store, tmp_path):
    rng = np.random.default_rng(5)
    names = [f"t-{k}" for k in rng.permutation(12)]
    written = {n: make(n, seed, int(rng.integers(0, 50))) for seed, n in enumerate(names)}
    for trajectory in written.values():
        assert store.add(trajectory, None)
    reader = ReplayStore.open(tmp_path / "store", LOSSLESS)
    assert store.ids() == reader.ids() == names
    for name in rng.permutation(names):
        assert_equal(reader.trajectory(str(name)), written[name])
        assert_equal(store.trajectory(str(name)), written[name])


def test_a_second_add_of_an_id_changes_nothing(store):
    assert store.add(make("a", seed=1), Label("a", True, "human", "Ada"))
    version, size = store.version, store.bytes_on_disk()
    assert not store.add(make("a", seed=2), Label("a", False, "human"))
    assert (store.version, store.bytes_on_disk(), len(store)) == (version, size, 1)
    assert_equal(store.trajectory("a"), make("a", seed=1))
    assert store.label("a") == Label("a", True, "human", "Ada")


def test_ids_survive_reopening_and_still_refuse_repeats(store, tmp_path):
    store.add(make("a"), None)
    store.close()
    again = ReplayStore.create_or_open(tmp_path / "store", LOSSLESS)
    assert not again.add(make("a"), None)
    assert again.add(make("b"), None)
    assert again.ids() == ["a", "b"]
    again.close()


def test_ids_are_narrowed_by_origin_task_and_iteration(store):
    store.add(make("a", task="book"), None)
    store.add(make("b", origin="imagined"), None)
    store.add(make("c", iteration=1), None)
    store.add(make("d", task="book", iteration=1), None)
    assert store.ids(task="book") == ["a", "d"]
    assert store.ids(origin="imagined") == ["b"]
    assert store.ids(task="book", iteration=1) == ["d"]
    assert store.ids(origin="real", iteration=0) == ["a"]
    assert store.ids(origin="demo") == []


def test_frames_come_in_the_order_asked_for_cached_or_not(store, tmp_path):
    written = {name: make(name, seed, 30) for seed, name in enumerate("abc")}
    for trajectory in written.values():
        store.add(trajectory, None)
    pairs = [("c", [10, 0, 0]), ("a", [3]), ("c", [9, 10]), ("b", range(2, 7))]
    for cache_mb, threads in ((0, 1), (64, 2)):
        options = StoreOptions(cache_mb=cache_mb, decode_threads=threads)
        reader = ReplayStore.open(tmp_path / "store", options)
        for _ in range(2):
            for (name, indices), frames in zip(pairs, reader.frames_many(pairs), strict=True):
                np.testing.assert_array_equal(frames, written[name].frames[list(indices)])
                frames[:] = 0  # the caller's own; the cache must not see it
        reader.close()


def test_episodes_give_everything_but_frames(store):
    for seed, name in enumerate("abc"):
        store.add(make(name, seed, 4 + seed), Label(name, seed == 1, "simulator"))
    assert [row.id for row in store.episodes()] == ["a", "b", "c"]
    rows = store.episodes(["c", "a"])
    assert [(row.id, row.num_ticks, row.num_frames) for row in rows] == [("c", 6, 3), ("a", 4, 2)]
    np.testing.assert_array_equal(rows[0].poses, make("c", 2, 6).poses)
    assert [row.label.success for row in store.episodes()] == [False, True, False]
    assert store.episodes([]) == []


def test_frames_without_an_episode_are_swept_at_open(store, tmp_path):
    """The crash that the commit order allows for: killed between the two tables."""
    store.add(make("a", 1), None)
    store._frames.append(frames_table(make("lost'; --", 2), ImageCoding("png")))
    store.close()
    reader = ReplayStore.open(tmp_path / "store")
    assert (reader.ids(), reader._frames.num_rows) == (["a"], 8)
    again = ReplayStore.create_or_open(tmp_path / "store", LOSSLESS)
    assert (again.ids(), again._frames.num_rows) == (["a"], 4)
    assert again.add(make("lost'; --", 3), None)
    assert again.add(make("b", 4), None)
    assert reader.refresh() == 2
    for name, seed in (("a", 1), ("lost'; --", 3), ("b", 4)):
        assert_equal(reader.trajectory(name), make(name, seed))
    again.close()


def test_an_add_that_failed_half_way_leaves_room_for_the_next(store):
    class FullDisk:
        """An episodes table that cannot be written, as on a full disk."""

        def __init__(self, table):
            self.table = table

        def append(self, rows):
            raise OSError("No space left on device")

    store.add(make("a", 1), None)
    whole = store._episodes
    store._episodes = FullDisk(whole)
    with pytest.raises(OSError, match="No space left"):
        store.add(make("b", 2), None)
    store._episodes = whole
    assert store.ids() == ["a"]
    assert store.add(make("b", 3), None)
    assert store._frames.num_rows == 8
    assert_equal(store.trajectory("b"), make("b", 3))


def test_an_add_that_failed_after_its_commit_is_kept(store):
    class LateFailure:
        """Commits, then fails, as an upkeep that runs out of disk would."""

        def __init__(self, table):
            self.table = table

        def append(self, rows):
            self.table.append(rows)
            raise OSError("No space left on device")

    whole = store._episodes
    store._episodes = LateFailure(whole)
    with pytest.raises(OSError, match="No space left"):
        store.add(make("a", 1), None)
    store._episodes = whole
    assert store.add(make("b", 2), None)
    assert not store.add(make("a", 3), None)
    assert_equal(store.trajectory("a"), make("a", 1))
    assert_equal(store.trajectory("b"), make("b", 2))


def test_a_reader_sees_new_rows_after_refresh_only(store, tmp_path):
    reader = ReplayStore.open(tmp_path / "store")
    store.add(make("a", 1), None)
    store.add_verdicts([Verdict("a", 0.75, 1.0, 0)])
    assert (reader.ids(), reader.verdicts()) == ([], {})
    assert reader.refresh() == 1
    assert (reader.ids(), reader.refresh()) == (["a"], 0)
    assert reader.verdicts() == {"a": Verdict("a", 0.75, 1.0, 0)}
    assert_equal(reader.trajectory("a"), make("a", 1))


def test_upkeep_merges_files_and_keeps_every_row_and_reader(tmp_path):
    options = StoreOptions(
        coding=ImageCoding("png"), cache_mb=0, upkeep=Upkeep(5, 16, timedelta(0))
    )
    writer = ReplayStore.create_or_open(tmp_path, options)
    writer.add(make("t0", 0, 11), None)
    reader = ReplayStore.open(tmp_path, options)
    for seed in range(1, 23):
        writer.add(make(f"t{seed}", seed, 11), None)
    # 4 frames each: the first 20 in at most 5 files of 16 rows or more, the last 3 still apart
    assert len(list((tmp_path / "frames.lance" / "data").iterdir())) <= 8
    assert reader.ids() == ["t0"]
    assert_equal(reader.trajectory("t0"), make("t0", 0, 11))  # its first file is gone
    assert reader.refresh() == 22
    for store in (reader, writer):
        for seed in range(23):
            assert_equal(store.trajectory(f"t{seed}"), make(f"t{seed}", seed, 11))
    writer.close()


@pytest.mark.parametrize(
    ("frames", "num_frames", "expected"),
    [
        (16, 16, tuple(range(16))),
        (31, 16, tuple(range(0, 31, 2))),
        (40, 5, (0, 10, 20, 29, 39)),  # 9.75, 19.5, 29.25: half to even
        (3, 5, (0, 0, 1, 2, 2)),  # 0.5 and 1.5: half to even
        (1, 4, (0, 0, 0, 0)),
        (9, 2, (0, 8)),
        (9, 1, (8,)),
    ],
)
def test_clip_indices_by_hand(frames, num_frames, expected):
    assert clip_indices(frames, num_frames) == expected


def test_a_clip_shows_its_frames(store):
    trajectory = make("a", 4, 26)  # 9 frames
    store.add(trajectory, None)
    clip = store.clip("a", 3)
    assert (clip.frame_index, clip.instruction) == ((0, 4, 8), "do a")
    np.testing.assert_array_equal(clip.frames, trajectory.frames[[0, 4, 8]])
    with pytest.raises(ValueError, match="a clip of 0 frames"):
        store.clip("a", 0)


def test_the_latest_reward_version_wins_and_older_ones_stay(store):
    for name in "abc":
        store.add(make(name), None)
    store.add_verdicts([Verdict("a", 0.1, 1.0, 2), Verdict("b", 0.2, 1.0, 1)])
    store.add_verdicts([Verdict("a", 0.3, 1.0, 1), Verdict("b", math.nan, 0.0, 3, "timed out")])
    store.add_verdicts([Verdict("b", 0.4, 1.0, 3)])
    store.add_verdicts([])
    assert {k: v.p_yes for k, v in store.verdicts().items()} == {"a": 0.1, "b": 0.4}
    assert {k: v.p_yes for k, v in store.verdicts(1).items()} == {"a": 0.3, "b": 0.2}
    assert store.verdicts(7) == {}


def test_verdicts_of_strangers_are_refused(store):
    store.add(make("a"), None)
    with pytest.raises(ValueError, match="no trajectory 'x'"):
        store.add_verdicts([Verdict("a", 0.5, 1.0, 0), Verdict("x", 0.5, 1.0, 0)])
    assert store.verdicts() == {}


def test_unknown_ids_and_frames_are_named(store):
    store.add(make("a", ticks=8), None)
    with pytest.raises(ValueError, match=r"no trajectory 'b' among 1 .* refresh"):
        store.trajectory("b")
    for index in (3, -1):
        with pytest.raises(ValueError, match=rf"frame {index} of 'a' is not in 0\.\.2"):
            store.frames("a", [0, index])
    with pytest.raises(ValueError, match="zero frame indices"):
        store.frames("a", [])


def test_there_is_one_writer(store, tmp_path):
    with pytest.raises(ValueError, match="being written by process"):
        ReplayStore.create_or_open(tmp_path / "store", LOSSLESS)
    reader = ReplayStore.open(tmp_path / "store")
    with pytest.raises(ValueError, match="open for reading"):
        reader.add(make("a"), None)
    store.close()
    ReplayStore.create_or_open(tmp_path / "store", LOSSLESS).close()
    with pytest.raises(ValueError, match="open for reading"):
        store.add(make("a"), None)


WRITER = """
import sys
import numpy as np
from contracts.types import Provenance, Trajectory
from replay.store import ReplayStore
store = ReplayStore.create_or_open(sys.argv[1])
for k in range(int(sys.argv[2]), int(sys.argv[3])):
    store.add(Trajectory(
        Provenance(f"t{k}", "real", "stack", 0, k), "go", np.full((6, 8), k, np.float32),
        np.full((7, 7), k, np.float32), np.zeros(7, np.float32), np.zeros((7, 6), np.float32),
        np.full((3, 3, 8, 8, 3), k % 256, np.uint8), "done"), None)
    sys.stdout.write(f"t{k}\\n")
    sys.stdout.flush()
"""


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path):
    """Ids on its stdout are acknowledged. SIGKILL lands anywhere, also between the two tables."""
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen([*command, "0", "100000"], cwd=ROOT, stdout=subprocess.PIPE) as writer:
        acknowledged = [writer.stdout.readline().decode().strip() for _ in range(8)]
        reader = ReplayStore.open(tmp_path)
        assert reader.ids()[:8] == acknowledged
        writer.kill()
        acknowledged += writer.stdout.read().decode().split()
    subprocess.run([*command, "0", str(len(acknowledged) + 3)], cwd=ROOT, check=True, timeout=60)
    reader.refresh()
    count = len(acknowledged) + 3
    assert reader.ids() == [f"t{k}" for k in range(count)]
    assert reader._frames.num_rows == 3 * count
    for k, frames in enumerate(reader.frames_many([(name, [2]) for name in reader.ids()])):
        assert np.abs(frames.astype(int) - k % 256).max() <= 2  # jpeg of one colour
        assert reader.episodes([f"t{k}"])[0].actions[0, 0] == k
