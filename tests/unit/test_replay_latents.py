"""Latents beside a store: whole trajectories in, windows out, one encoder per folder."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from contracts.types import LatentFormat
from replay.latents import LatentCache

FORMAT = LatentFormat("0123abcd", 0.18215, (4, 6, 2))


def moments(frames: int, offset: float) -> np.ndarray:
    """Frame k is k + offset everywhere, its deviation -(k + offset)."""
    values = np.arange(frames, dtype=np.float32)[:, None, None, None, None] + np.float32(offset)
    return np.concatenate([values, -values], axis=1) * np.ones((1, 1, *FORMAT.shape), np.float32)


def test_windows_are_the_frames_asked_for_in_their_order(tmp_path: Path) -> None:
    writer = LatentCache.create_or_open(tmp_path, FORMAT)
    assert LatentCache.open(tmp_path, replace(FORMAT, key="other")) is None
    for number, name in enumerate(("a", "b", "c")):
        assert writer.add(name, moments(4 + number, 100 * number))
    reader = LatentCache.open(tmp_path, FORMAT)
    assert reader is not None
    assert len(reader) == 3
    assert [reader.num_frames(name) for name in "abc"] == [4, 5, 6]
    first, second = reader.windows([("c", [5, 0, 0, 2]), ("a", [3])])
    assert first[:, 0, 0, 0, 0].tolist() == [205, 200, 200, 202]
    assert first[:, 1, 3, 5, 1].tolist() == [-205, -200, -200, -202]
    assert second[:, 0, 2, 1, 1].tolist() == [3]
    writer.close()
    for name, frame in (("a", 4), ("a", -1), ("d", 0)):
        with pytest.raises(ValueError, match=rf"no latents of frame {frame} of '{name}'"):
            reader.windows([("b", [0]), (name, [frame])])


def test_a_reopened_cache_goes_on_where_it_stopped(tmp_path: Path) -> None:
    writer = LatentCache.create_or_open(tmp_path, FORMAT)
    writer.add("a", moments(4, 0))
    with pytest.raises(ValueError, match="has one writer"):
        LatentCache.create_or_open(tmp_path, FORMAT, lock_wait_s=0.1)
    writer.close()
    writer = LatentCache.create_or_open(tmp_path, FORMAT)
    assert not writer.add("a", moments(4, 50))  # what is there stays
    assert writer.add("b", moments(2, 50))
    writer.close()
    reader = LatentCache.open(tmp_path, FORMAT)
    assert reader is not None
    assert reader.windows([("a", [3])])[0][0, 0, 0, 0, 0] == 3
    with pytest.raises(ValueError, match="open for reading"):
        reader.add("c", moments(2, 0))


def test_half_precision_rounds_to_its_own_grid(tmp_path: Path) -> None:
    """1/1024 is the step of float16 between 1 and 2: 1.0003 becomes 1, 1.0007 becomes 1.0009766."""
    writer = LatentCache.create_or_open(tmp_path, FORMAT, "float16")
    values = moments(2, 0)
    values[0], values[1] = 1.0003, 1.0007
    writer.add("a", values)
    (found,) = writer.windows([("a", [0, 1])])
    assert found.dtype == np.float32
    assert np.unique(found).tolist() == [1.0, 1.0009765625]
    with pytest.raises(ValueError, match="not finite as float16"):
        writer.add("b", moments(2, 70_000))
    writer.close()
    with pytest.raises(ValueError, match="latents_dtype=float16"):
        LatentCache.create_or_open(tmp_path, FORMAT, "float32")


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"scale": 1.0}, r"scale=1\.0.*the world model makes .*scale=0\.18215"),
        ({"shape": [4, 3, 2]}, "delete the folder"),
        ({"key": "fedc"}, "delete the folder"),
    ],
)
def test_latents_of_another_scale_size_or_encoder_are_refused(
    tmp_path: Path, facts: dict, message: str
) -> None:
    LatentCache.create_or_open(tmp_path, FORMAT).close()
    path = tmp_path / f"latents-{FORMAT.key}" / "latents.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | facts))
    with pytest.raises(ValueError, match=message):
        LatentCache.open(tmp_path, FORMAT)
    path.write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        LatentCache.create_or_open(tmp_path, FORMAT)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_cannot_be_latents_is_not_stored(tmp_path: Path, bad: float) -> None:
    writer = LatentCache.create_or_open(tmp_path, FORMAT)
    values = moments(3, 0)
    values[2, 0, 1, 1, 1] = bad
    with pytest.raises(ValueError, match="latents of 'a' are not finite"):
        writer.add("a", values)
    with pytest.raises(ValueError, match="latents of 'a' are"):
        writer.add("a", moments(3, 0)[..., :1])
    with pytest.raises(ValueError, match="latents of 'a' are"):
        writer.add("a", moments(0, 0))
    assert "a" not in writer
    writer.close()
