"""Rows and images of the store: exact where they promise it, bounded where not, strict at entry."""

import math
import re

import numpy as np
import pyarrow as pa
import pytest

from contracts.types import Label, Provenance, Trajectory, Verdict
from replay.codec import (
    check_trajectory,
    check_verdict,
    episode_table,
    frames_table,
    read_episodes,
    read_verdicts,
    verdicts_table,
)
from replay.images import ImageCoding, decode, encode

HEIGHT, WIDTH = 24, 16


def make(seed: int, ticks: int, name: str = "t") -> Trajectory:
    rng = np.random.default_rng(seed)
    rows = ticks + 1
    return Trajectory(
        provenance=Provenance(name, "imagined", "stack", 2, 2**62 + seed, 3, 4, "parent", 5),
        instruction="lift the «cup»",
        actions=rng.normal(size=(ticks, 8)).astype(np.float32),
        joint_position=rng.normal(size=(rows, 7)).astype(np.float32),
        gripper_position=rng.random(rows, np.float32),
        cartesian_position=rng.normal(size=(rows, 6)).astype(np.float32),
        frames=rng.integers(0, 256, (ticks // 3 + 1, 3, HEIGHT, WIDTH, 3), np.uint8),
        ending="timeout",
    )


def corrupt(name: str, value: object) -> Trajectory:
    """A trajectory as a process without shape checks could build it."""
    trajectory = make(0, 6)
    object.__setattr__(trajectory, name, value)
    return trajectory


@pytest.mark.parametrize("ticks", [0, 1, 2, 3, 11, 40])
def test_png_rows_give_back_every_bit(ticks):
    trajectory = make(ticks, ticks)
    label = Label("t", False, "human", "Ada")
    (row,) = read_episodes(episode_table(trajectory, label, 7))
    assert (row.provenance, row.label) == (trajectory.provenance, label)
    assert (row.instruction, row.ending) == ("lift the «cup»", "timeout")
    assert (row.height, row.width, row.num_ticks) == (HEIGHT, WIDTH, ticks)
    for name in ("actions", "joint_position", "gripper_position", "cartesian_position", "poses"):
        np.testing.assert_array_equal(getattr(row, name), getattr(trajectory, name))
    images = frames_table(trajectory, ImageCoding("png"))["image"].to_pylist()
    np.testing.assert_array_equal(np.stack([decode(i) for i in images]), trajectory.frames)


def test_rows_of_several_episodes_are_not_mixed():
    trajectories = [make(n, n, f"t{n}") for n in (5, 0, 9)]
    table = pa.concat_tables([episode_table(t, None, 0) for t in trajectories])
    for row, trajectory in zip(read_episodes(table), trajectories, strict=True):
        assert row.label is None
        np.testing.assert_array_equal(row.actions, trajectory.actions)
        np.testing.assert_array_equal(row.gripper_position, trajectory.gripper_position)


def test_arrays_of_a_row_may_be_changed_by_their_owner():
    table = episode_table(make(1, 3), None, 0)
    (row,) = read_episodes(table)
    row.actions[:] = 0
    (again,) = read_episodes(table)
    np.testing.assert_array_equal(again.actions, make(1, 3).actions)


def test_jpeg_keeps_plain_colours_of_each_view_apart():
    """One colour per view: only the DC coefficient is coded. Step 2 at quality 95 is 1/8 level of
    the mean; rounding to and from YCbCr adds less than 2. Views that shared a block would differ
    by tens."""
    colours = np.array([[250, 10, 30], [0, 90, 255], [128, 128, 7]], np.uint8)
    frame = np.broadcast_to(colours[:, None, None], (3, HEIGHT, WIDTH, 3))
    seen = decode(encode(frame, ImageCoding("jpeg"))).astype(int)
    assert np.abs(seen - frame).max() <= 2


def test_jpeg_of_a_smooth_frame_is_within_three_levels_on_average():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    view = np.stack([8 * y, 12 * x, 100 + 3 * y + 3 * x], axis=-1).astype(np.uint8)
    frame = np.stack([view, view[::-1], view[:, ::-1]])
    error = np.abs(decode(encode(frame, ImageCoding("jpeg", 95))).astype(int) - frame)
    rough = np.abs(decode(encode(frame, ImageCoding("jpeg", 10))).astype(int) - frame)
    assert error.mean() < 3 < rough.mean()


@pytest.mark.parametrize("form", ["jpeg", "png"])
def test_equal_frames_give_equal_bytes(form):
    frame = make(3, 0).frames[0]
    assert encode(frame, ImageCoding(form)) == encode(frame.copy(), ImageCoding(form))


@pytest.mark.parametrize("form", ["jpeg", "png"])
@pytest.mark.parametrize("keep", [0.0, 0.1, 0.6])
def test_a_cut_image_is_an_error(form, keep):
    blob = encode(make(3, 0).frames[0], ImageCoding(form))
    with pytest.raises(ValueError, match="not a whole JPEG or PNG"):
        decode(blob[: int(keep * len(blob))])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("actions", np.zeros((6, 8)), "actions is float64 (6, 8); store float32 (6, 8)"),
        ("actions", np.zeros((6, 7), np.float32), "actions is float32 (6, 7)"),
        ("joint_position", np.zeros((6, 7), np.float32), "store float32 (7, 7)"),
        ("gripper_position", np.zeros((7, 1), np.float32), "store float32 (7,)"),
        ("cartesian_position", np.zeros((7, 7), np.float32), "store float32 (7, 6)"),
        ("frames", np.zeros((3, 3, 8, 8, 3), np.float32), "dtype float32"),
        ("frames", np.zeros((2, 3, 8, 8, 3), np.uint8), "2 frames"),
        ("frames", np.zeros((3, 2, 8, 8, 3), np.uint8), "(3, 2, 8, 8, 3)"),
        ("frames", np.zeros((3, 3, 0, 8, 3), np.uint8), "(3, 3, 0, 8, 3)"),
        ("frames", np.zeros((3, 8, 8, 3), np.uint8), "(3, 8, 8, 3)"),
        ("gripper_position", np.array([0, 0, np.nan, 0, 0, 0, 0], np.float32), "row 2 is not fin"),
        ("provenance", Provenance("", "real", "stack", 0, 0), "trajectory_id is empty"),
        ("provenance", Provenance("t", "real", "stack", 0, 2**64), "does not fit 64 bits"),
    ],
)
def test_what_does_not_fit_the_format_is_refused(name, value, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_trajectory(corrupt(name, value), None)


def test_the_label_of_another_trajectory_is_refused():
    with pytest.raises(ValueError, match="label of 'other' came with 't'"):
        check_trajectory(make(0, 3), Label("other", True, "human"))


def test_verdicts_come_back_exactly_and_keep_their_nan():
    written = [Verdict("a", 1 / 3, 0.99, 4), Verdict("b", math.nan, math.nan, 4, "out of memory")]
    first, second = read_verdicts(verdicts_table(written))
    assert first == written[0]
    assert (second.trajectory_id, second.error) == ("b", "out of memory")
    assert math.isnan(second.p_yes)


@pytest.mark.parametrize(("p_yes", "error"), [(1.1, ""), (-0.1, ""), (math.nan, ""), (0.5, "no")])
def test_a_score_that_is_none_is_refused(p_yes, error):
    with pytest.raises(ValueError, match="p_yes"):
        check_verdict(Verdict("a", p_yes, 1.0, 0, error))
