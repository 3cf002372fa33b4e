"""Damaged, foreign and missing stores: one error that names the file and the way out."""

import shutil
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from contracts.types import Provenance, Trajectory, Verdict
from replay.frames import FrameCache
from replay.images import ImageCoding
from replay.schema import EPISODES
from replay.store import ReplayStore, StoreOptions

TABLES = ("episodes", "frames")


@pytest.fixture
def folder(tmp_path) -> Path:
    store = ReplayStore.create_or_open(tmp_path, StoreOptions(coding=ImageCoding("png")))
    for name in ("a", "b"):
        trajectory = Trajectory(
            Provenance(name, "real", "stack", 0, 0),
            "go",
            np.zeros((3, 8), np.float32),
            np.zeros((4, 7), np.float32),
            np.zeros(4, np.float32),
            np.zeros((4, 6), np.float32),
            np.full((2, 3, 8, 8, 3), ord(name), np.uint8),
            "done",
        )
        store.add(trajectory, None)
    store.add_verdicts([Verdict("a", 0.5, 1.0, 0)])
    store.close()
    return tmp_path


@pytest.mark.parametrize("table", ["episodes", "frames", "verdicts"])
@pytest.mark.parametrize("keep", [0, 1, 100])
def test_a_truncated_file_is_named_at_open(folder, table, keep):
    victim = max((folder / f"{table}.lance" / "data").iterdir())
    size = victim.stat().st_size
    with victim.open("r+b") as file:
        file.truncate(keep)
    for opened in (ReplayStore.open, ReplayStore.create_or_open):
        with pytest.raises(ValueError, match=f"{victim} has {keep} of {size} bytes") as caught:
            opened(folder)
        assert "Restore the folder from a backup" in str(caught.value)


def test_a_missing_file_is_named_at_open(folder):
    victim = min((folder / "frames.lance" / "data").iterdir())
    victim.unlink()
    with pytest.raises(ValueError, match=f"{victim} has 0 of"):
        ReplayStore.open(folder)


@pytest.mark.parametrize("keep", [0, 7])
def test_a_torn_manifest_is_named(folder, keep):
    newest = min((folder / "episodes.lance" / "_versions").glob("*.manifest"))
    with newest.open("r+b") as file:
        file.truncate(keep)
    with pytest.raises(ValueError, match=f"{newest} cannot be read.* If the power went, delete"):
        ReplayStore.open(folder)
    newest.unlink()  # as it says: one commit is lost, and what it held can be added again
    store = ReplayStore.create_or_open(folder)
    assert store.ids() == ["a"]
    assert store._frames.num_rows == 2
    assert (store.frames("a", [1]) == ord("a")).all()
    store.close()


def test_a_frames_manifest_that_the_power_tore_is_two_files_to_delete(folder):
    newest = {t: min((folder / f"{t}.lance" / "_versions").glob("*.manifest")) for t in TABLES}
    newest["frames"].write_bytes(b"")
    with pytest.raises(ValueError, match="If the power went, delete that file"):
        ReplayStore.create_or_open(folder)
    newest["frames"].unlink()
    with pytest.raises(
        ValueError, match=r"delete the newest file .* in .*episodes.lance/_versions"
    ):
        ReplayStore.create_or_open(folder)
    newest["episodes"].unlink()
    store = ReplayStore.create_or_open(folder)
    assert store.ids() == ["a"]
    store.close()


def test_frames_older_than_the_episodes_are_refused(folder):
    newest = min((folder / "frames.lance" / "_versions").glob("*.manifest"))
    newest.unlink()
    with pytest.raises(ValueError, match=r"frames\.lance has 2 rows, its episodes need 4"):
        ReplayStore.open(folder)


def test_frames_moved_by_another_program_are_noticed(folder):
    reader = ReplayStore.open(folder)
    frames = lance.dataset(str(folder / "frames.lance"))
    rows = frames.to_table().slice(0, 2)
    frames.delete("trajectory_id = 'a'")
    frames.insert(rows)
    reader.refresh()
    with pytest.raises(ValueError, match="row 2 of frames holds frame 0 of 'a', not 0 of 'b'"):
        reader.frames("b", [0])


@pytest.mark.parametrize(("version", "shown"), [({"schema_version": "0"}, "0"), (None, "none")])
def test_another_schema_version_is_refused(folder, version, shown):
    lance.write_dataset(
        EPISODES.with_metadata(version).empty_table(),
        str(folder / "episodes.lance"),
        mode="overwrite",
    )
    with pytest.raises(ValueError, match=f"schema_version {shown}, this code reads 1"):
        ReplayStore.open(folder)


def test_other_columns_are_refused(folder):
    other = pa.schema([pa.field("x", pa.int64())], metadata=EPISODES.metadata)
    lance.write_dataset(other.empty_table(), str(folder / "episodes.lance"), mode="overwrite")
    with pytest.raises(ValueError, match="has other columns"):
        ReplayStore.open(folder)


def test_a_folder_without_a_store_is_refused_for_reading(tmp_path):
    with pytest.raises(ValueError, match="is no replay store"):
        ReplayStore.open(tmp_path)


def test_a_url_is_refused():
    with pytest.raises(ValueError, match="every node mounts"):
        ReplayStore.create_or_open("s3://bucket/replay")


def test_cached_frames_need_no_disk(folder):
    kept, uncached = ReplayStore.open(folder), ReplayStore.open(folder, StoreOptions(cache_mb=0))
    for reader in (kept, uncached):
        reader.frames("b", [0, 1])
    shutil.rmtree(folder / "frames.lance")
    assert (kept.frames("b", [1, 0]) == ord("b")).all()
    for reader, name in ((kept, "a"), (uncached, "b")):
        with pytest.raises(ValueError, match=r"frames\.lance cannot be read"):
            reader.frames(name, [0])


def test_the_cache_drops_what_was_not_used_for_longest():
    frame = np.zeros((3, 4, 5, 3), np.uint8)  # 180 bytes
    cache = FrameCache(400)
    cache.put({1: frame, 2: frame})
    assert set(cache.get([1])) == {1}
    cache.put({3: frame})
    assert (set(cache.get([1, 2, 3])), cache.num_bytes) == ({1, 3}, 360)
    cache.put({1: frame})
    assert cache.num_bytes == 360
