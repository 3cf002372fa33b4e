"""The eye for the gripper: what it learns, when it is used, and what imagination makes of it."""

from pathlib import Path

import numpy as np
import pytest

from contracts.types import Label, Provenance, Trajectory
from learners.grip_sight import LEAST, fit_sight, grip_windows
from learners.selection import Selection
from models.adapter import FittedAdapter
from models.grip_sight import GripSight, GripWindows, SeeingAdapter, shrunk
from models.motion import MotionWindows
from replay.images import ImageCoding
from replay.store import ReplayStore, StoreOptions
from services.report_sections import sight_line

TICKS, HELD, RATE = 36, 0.6, 0.08
OPTIONS = StoreOptions(ImageCoding("png"))


def episode(name: str, seed: int, between: bool, told: bool = True) -> Trajectory:
    """A gripper that closes from tick 12 on; a bright thing ``between`` the fingers stops it.

    Where it is not ``told``, the picture shows the thing by chance.
    """
    rng = np.random.default_rng(seed)
    grip = np.zeros(TICKS + 1, np.float32)
    actions = np.zeros((TICKS, 8), np.float32)
    actions[12:, 7] = 1.0
    for tick in range(TICKS):
        end = HELD if between else 1.0
        grip[tick + 1] = min(grip[tick] + RATE * (actions[tick, 7] > 0), end)
    frames = rng.integers(0, 60, (TICKS // 3 + 1, 3, 48, 80, 3), dtype=np.uint8)
    shown = between if told else bool(rng.integers(2))
    place = slice(34, 46) if shown else slice(8, 20)
    frames[:, 2, 20:34, place] += 150
    joints = np.tile(np.array([0, -0.5, 0, -2.3, 0, 1.8, 0], np.float32), (TICKS + 1, 1))
    return Trajectory(
        Provenance(name, "real", "scoop", iteration=1, seed=seed),
        "scoop",
        actions,
        joints + rng.normal(0, 1e-3, joints.shape).astype(np.float32),
        grip,
        np.zeros((TICKS + 1, 6), np.float32),
        frames,
        "timeout",
    )


def episodes(folder: Path, count: int, told: bool = True) -> Selection:
    store = ReplayStore.create_or_open(folder, OPTIONS)
    for k in range(count):
        name = f"e{k:03d}"
        store.add(episode(name, k, k % 3 == 0, told), Label(name, k % 3 == 0, "simulator"))
    store.close()
    store = ReplayStore.open(folder, OPTIONS)
    return Selection(store, store.ids())


@pytest.fixture(scope="module")
def recorded(tmp_path_factory) -> Selection:
    return episodes(tmp_path_factory.mktemp("recorded"), 24)


@pytest.fixture(scope="module")
def eye(recorded) -> GripSight:
    sight, errors = fit_sight([recorded], None)
    assert sight is not None
    assert errors is not None
    assert errors.kind == "fitted"
    assert errors.auc > 0.95
    assert errors.loss < 0.5 * errors.blind
    return sight


def test_windows_are_the_moments_that_ask_for_closing(recorded):
    windows = grip_windows([recorded])
    # frames 0-7 begin windows of 15 ticks; from tick 0 on the command is seen within 15 ticks
    assert windows.views.shape[1:] == (48, 80, 3)
    held = np.unique(windows.stop[windows.held])
    np.testing.assert_allclose(held, HELD, atol=1e-5)
    np.testing.assert_allclose(windows.rates[0], RATE, atol=1e-3)  # not that of the stalled ones
    view = windows.views[0]
    assert view[20:34, 34:46].mean() > 150, "the wrist view of the moment itself"


def test_a_gripper_that_waits_somewhere_is_not_slow_there():
    """Where it stood most of the time it would otherwise never get past."""
    waits = np.array([0.4] * 12 + [0.45, 0.5, 0.55], np.float32)
    count = 9
    windows = MotionWindows(
        np.zeros((count, 7), np.float32),
        np.zeros((count, 7), np.float32),
        np.full(count, 0.4, np.float32),
        np.ones((count, 15, 8), np.float32),
        np.zeros((count, 15, 7), np.float32),
        np.tile(waits, (count, 1)),
        np.arange(count),
    )
    found = GripWindows.of(windows, np.zeros((count, 48, 80, 3), np.uint8))
    assert not found.held.any()
    np.testing.assert_allclose(found.rates[0], 0.05, atol=1e-5)


def closed(eye: GripSight, between: bool, seed: int) -> float:
    one = episode("new", seed, between)
    frames = one.frames[6][None]
    at, rest = slice(18, 19), np.zeros((1, 7), np.float32)
    adapter = FittedAdapter()
    adapter.fit(MotionWindows.of([episode("other", seed, not between)]))  # would be wrong
    joints, grip = SeeingAdapter(adapter, eye).predict(
        one.joint_position[at],
        rest,
        one.gripper_position[at],
        one.actions[None, 18:30],
        frames,
    )
    assert joints.shape == (1, 12, 7)
    assert (np.diff(grip[0]) >= -1e-6).all()
    return float(grip[0, -1])


def test_the_gripper_closes_as_far_as_the_picture_lets_it(eye):
    for seed in (100, 101, 102):
        assert closed(eye, True, seed) == pytest.approx(HELD, abs=0.08)
        assert closed(eye, False, seed) == pytest.approx(1.0, abs=0.05)


def test_slots_that_do_not_ask_keep_the_grip_of_the_arm(eye):
    one = episode("new", 7, between=True)
    adapter = FittedAdapter()
    adapter.fit(MotionWindows.of([one]))
    known = (one.joint_position[:1], np.zeros((1, 7), np.float32), np.full(1, 0.9, np.float32))
    opened = np.zeros((1, 12, 8), np.float32)
    mine = SeeingAdapter(adapter, eye).predict(*known, opened, one.frames[:1])
    for a, b in zip(mine, adapter.predict(*known, opened, one.frames[:1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_slot_never_depends_on_its_neighbours(eye, recorded):
    windows = grip_windows([recorded])
    together = eye.told(windows.views[:21], windows.known[:21])
    for row in (0, 7, 20):
        alone = eye.told(windows.views[row : row + 1], windows.known[row : row + 1])
        for a, b in zip(together, alone, strict=True):
            assert a[row] == b[0]


def test_what_the_picture_does_not_tell_is_not_used(tmp_path):
    sight, errors = fit_sight([episodes(tmp_path, 24, told=False)], None)
    assert errors is not None
    if errors.kind == "none":
        assert sight is None
    assert errors.loss <= errors.blind


def test_what_stands_for_droid_is_read_only_where_d_real_has_too_little(recorded, tmp_path):
    class Unread:
        folder = tmp_path

        def episodes(self, ids):
            raise AssertionError("76,000 recordings must not be read for this")

        frames_many = trajectory = episodes

    _, errors = fit_sight([recorded, Selection(Unread(), ["one"])], None)
    assert errors is not None
    with pytest.raises(AssertionError, match="76,000"):
        fit_sight([Selection(recorded.store, recorded.ids[:2]), Selection(Unread(), ["one"])], None)


def test_views_of_any_size_are_averaged_to_the_eyes(recorded):
    windows = grip_windows([recorded])
    wide = windows.views[:3].repeat(4, axis=1).repeat(4, axis=2)
    np.testing.assert_array_equal(shrunk(wide), windows.views[:3])
    assert shrunk(windows.views) is windows.views


def test_few_closings_teach_nothing(tmp_path):
    few = episodes(tmp_path, 2)
    assert len(grip_windows([few])) < 2 * LEAST
    assert fit_sight([few], None) == (None, None)


def test_a_stored_eye_sees_the_same_and_is_the_next_ones_base(eye, recorded, tmp_path):
    eye.save(tmp_path)
    windows = grip_windows([recorded])
    loaded = GripSight.load(tmp_path)
    assert loaded is not None
    for a, b in zip(
        eye.told(windows.views, windows.known),
        loaded.told(windows.views, windows.known),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    few, errors = fit_sight([Selection(recorded.store, recorded.ids[:2])], tmp_path)
    assert few is not None
    assert errors is None
    assert GripSight.load(tmp_path / "nowhere") is None
    (tmp_path / "grip_sight.safetensors").write_bytes((8).to_bytes(8, "little") + b"{}      ")
    with pytest.raises(ValueError, match="train the world model again"):
        GripSight.load(tmp_path)


def test_the_report_says_what_the_eye_is_worth():
    numbers = {
        "eye": "fitted",
        "held-up windows apart": 40.0,
        "nats per window": 0.1,
        "nats without it": 0.6,
        "AUC of held up": 0.97,
    }
    line = sight_line("v1", numbers)
    assert "40 closings" in line
    assert "AUC 0.97 (0.10 nats each, 0.60 without it); fitted to these" in line
    assert sight_line("v1", {"eye": "none"}) == ""
