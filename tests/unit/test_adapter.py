"""The pose adapter on arms whose response is known in closed form."""

from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import save_file

from models.adapter import FittedAdapter
from models.arm_model import ArmModel
from models.motion import MotionWindows, flange_errors
from models.shipped_adapter import LAYERS, ShippedAdapter
from services.report_sections import adapter_line


def windows(count: int, seed: int, episodes: int = 4) -> MotionWindows:
    """An arm that makes 0.07 rad of a unit velocity in the next tick and 0.02 in the one after,
    with a gripper that closes by 0.05 a tick until it holds something at 0.6."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 1, (count, 7))
    actions = np.concatenate([rng.uniform(-1, 1, (count, 15, 7)), np.ones((count, 15, 1))], axis=2)
    before = rng.uniform(-1, 1, (count, 1, 7))
    late = np.concatenate([before, actions[:, :-1, :7]], axis=1)
    joints = start[:, None] + np.cumsum(0.07 * actions[..., :7] + 0.02 * late, axis=1)
    grip = rng.choice([0.02, 0.32, 0.47], count)
    ticks = np.arange(1, 16)
    closed = np.minimum(grip[:, None] + 0.05 * ticks, np.maximum(grip, 0.62)[:, None])
    arrays = (start, 0.07 * before[:, 0], grip, actions, joints, closed)
    episode = np.arange(count) * episodes // count
    return MotionWindows(*(array.astype(np.float32) for array in arrays), episode)


def ask(adapter: FittedAdapter, asked: MotionWindows) -> tuple[np.ndarray, np.ndarray]:
    known = (asked.joint_position, asked.joint_motion, asked.gripper_position)
    return adapter.predict(*known, asked.actions, blank(len(asked)))


def blank(slots: int) -> np.ndarray:
    """Views that an adapter without an eye does not look at."""
    return np.zeros((slots, 3, 6, 8, 3), np.uint8)


@pytest.fixture(scope="module")
def fitted() -> FittedAdapter:
    adapter = FittedAdapter()
    adapter.fit(windows(200, seed=0))
    return adapter


def shipped_file(folder, *, gain: float):
    """Weights in Ctrl-World's layout that answer ``gain`` for every joint and tick, in its unit
    of [-1, 1] between the 1st and 99th percentile of its training data."""
    weights = {name: np.zeros(shape, np.float32) for name, shape in LAYERS.items()}
    weights["net.4.bias"] = np.full(105, gain, np.float32)
    save_file(weights, folder / "shipped.safetensors")
    return folder / "shipped.safetensors"


def test_recovers_a_linear_arm_from_its_motion(fitted):
    """Without the motion before the chunk the first tick would be off by 0.02 |v|, 10 mrad."""
    fresh = windows(40, seed=1)
    joints, _ = ask(fitted, fresh)
    still = np.abs(fresh.future_joints - fresh.joint_position[:, None])
    error = np.abs(joints - fresh.future_joints)
    assert error.mean() < 0.1 * still.mean()
    assert error[:, 0].mean() < 5e-3
    errors = fitted.errors(fresh)
    assert errors.ticks == (4, 8, 12)
    assert all(a < 0.1 * b for a, b in zip(errors.adapter, errors.no_motion, strict=True))


def test_reported_errors_are_those_on_episodes_held_out():
    """The third episode's arm turns the other way: only an arm that never saw it is that wrong."""
    data = windows(90, seed=0, episodes=3)
    odd = data.episode == 2
    data.future_joints[odd] = 2 * data.joint_position[odd, None] - data.future_joints[odd]
    adapter = FittedAdapter()
    errors = adapter.fit(data)
    assert errors.windows == 90
    assert errors.held_out == "whole episodes"
    assert errors.adapter[2] > 0.9 * errors.no_motion[2]


def test_one_episode_is_held_out_in_runs():
    errors = FittedAdapter().fit(windows(51, seed=0, episodes=1))
    assert (errors.windows, errors.held_out) == (51, "runs of windows")


def test_few_windows_choose_nothing_and_use_round_numbers():
    few = windows(8, seed=0)
    adapter = FittedAdapter()
    assert adapter.fit(few).kind == "arm model, not fitted"
    plain = ArmModel().joints(few.joint_position, few.joint_motion, few.actions)
    np.testing.assert_allclose(ask(adapter, few)[0], plain, atol=1e-6)


def test_distances_are_millimetres_and_degrees_of_the_flange():
    """A quarter turn of joint 1 of the straight arm moves the flange along a chord of its 88 mm."""
    still = np.zeros((1, 1, 7))
    turned = still.copy()
    turned[..., 0] = np.pi / 2
    away, angle = flange_errors(turned, still)[0, 0]
    assert away == pytest.approx(88 * np.sqrt(2), abs=1e-9)
    assert angle == pytest.approx(90, abs=1e-9)


def test_windows_know_the_motion_before_them():
    """Joint k of tick t stands at t^2 + k: the way of the tick before window start s is 2 s - 1."""
    ticks = np.arange(24, dtype=np.float32)
    joints = (ticks**2)[:, None] + np.arange(7, dtype=np.float32)
    item = SimpleNamespace(
        num_ticks=23,
        actions=np.tile(ticks[:23, None], 8),
        joint_position=joints,
        gripper_position=ticks / 100,
    )
    short = SimpleNamespace(**{**vars(item), "num_ticks": 14})
    found = MotionWindows.of([short, item], ticks=15, stride=3)
    assert found.episode.tolist() == [1, 1, 1]
    assert found.joint_motion[:, 3].tolist() == [0, 5, 11]
    assert found.actions[1, :, 0].tolist() == list(range(3, 18))
    assert found.future_joints[1, 0].tolist() == [16 + k for k in range(7)]
    assert len(MotionWindows.of([short])) == 0


def test_a_tick_depends_on_the_actions_up_to_it_only(fitted):
    base = windows(3, seed=3)
    known = (base.joint_position, base.joint_motion, np.full(3, 0.02, np.float32))
    later = base.actions.copy()
    later[:, 6:] *= -1
    first, second = (fitted.predict(*known, a, blank(3)) for a in (base.actions, later))
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before[:, :6], after[:, :6])
        assert np.abs(before[:, 6:] - after[:, 6:]).min(axis=1).max() > 0
    short = fitted.predict(*known, base.actions[:, :6], blank(3))
    np.testing.assert_array_equal(short[0], first[0][:, :6])


def test_a_slot_does_not_depend_on_its_neighbours(fitted, tmp_path):
    mixed = FittedAdapter(ShippedAdapter(shipped_file(tmp_path, gain=0.1)))
    mixed.fit(windows(51, seed=0, episodes=2))
    batch = windows(5, seed=6)
    for adapter in (fitted, mixed):
        together = ask(adapter, batch)
        for row in range(5):
            alone = ask(adapter, batch.take(np.array([row])))
            for a, b in zip(together, alone, strict=True):
                np.testing.assert_array_equal(a[row : row + 1], b)


def test_the_shipped_adapter_is_used_where_it_knows_better(tmp_path):
    """An arm that does what the shipped adapter says, whatever it is asked, plus the motion it is
    in: no model of an arm explains that, the shipped adapter and one number per tick do."""
    shipped = ShippedAdapter(shipped_file(tmp_path, gain=0.4))
    data = windows(80, seed=0)
    told = shipped.joints(data.joint_position, data.actions)
    first = data.joint_motion - (told[:, 0] - data.joint_position)
    weight = np.linspace(1.0, 2.0, 15)[:, None]
    data.future_joints[:] = told + weight * first[:, None]
    adapter = FittedAdapter(shipped)
    errors = adapter.fit(data)
    assert errors.kind == "Ctrl-World's adapter"
    assert errors.adapter[2] < 0.01
    adapter.save(tmp_path)
    (tmp_path / "shipped.safetensors").unlink()
    np.testing.assert_allclose(
        ask(FittedAdapter.load(tmp_path), data)[0], data.future_joints, atol=1e-5
    )


def test_the_gripper_closes_at_its_rate_and_stalls_on_the_object(fitted):
    start, rest = np.full(1, 0.1, np.float32), np.zeros((1, 7), np.float32)
    close = np.ones((1, 15, 8), np.float32)
    _, grip = fitted.predict(rest, rest, start, close, blank(1))
    np.testing.assert_allclose(grip[0, :9], 0.1 + 0.05 * np.arange(1, 10), atol=0.02)
    assert abs(grip[0, -1] - 0.62) < 0.05
    held = close.copy()
    held[..., 7] = 0.1
    np.testing.assert_allclose(fitted.predict(rest, rest, start, held, blank(1))[1], 0.1, atol=1e-6)


def test_loading_gives_the_same_adapter(fitted, tmp_path):
    fitted.save(tmp_path)
    fresh = windows(5, seed=4)
    pairs = zip(ask(fitted, fresh), ask(FittedAdapter.load(tmp_path), fresh), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_array_equal(mine, theirs)


def test_fitting_twice_gives_the_same_adapter():
    one, two = FittedAdapter(), FittedAdapter()
    data = windows(51, seed=0, episodes=2)
    assert one.fit(data) == two.fit(data)
    np.testing.assert_array_equal(ask(one, data)[0], ask(two, data)[0])


def test_the_report_says_how_far_off_it_is():
    numbers = {
        f"{what} mm at {tick} ticks": float(mm)
        for what, base in (("adapter", 1), ("no motion", 10))
        for tick, mm in ((4, base), (12, 3 * base))
    }
    line = adapter_line(
        "v2", numbers | {"adapter": "arm model", "adapter held out": "whole episodes"}
    )
    assert "world model v2 (arm model)" in line
    assert "1.0 / 3.0 mm off after 4 / 12 ticks" in line
    assert "10.0 / 30.0 mm off" in line
    assert adapter_line("v2", {}) == ""


def test_refusals_say_what_to_do(fitted, tmp_path):
    fresh = windows(2, seed=5)
    known = (fresh.joint_position, fresh.joint_motion, fresh.gripper_position)
    with pytest.raises(ValueError, match="16 ticks asked"):
        fitted.predict(*known, np.zeros((2, 16, 8), np.float32), blank(2))
    with pytest.raises(ValueError, match="call fit"):
        ask(FittedAdapter(), fresh)
    with pytest.raises(ValueError, match="record more"):
        FittedAdapter().fit(MotionWindows.of([]))
    with pytest.raises(ValueError, match="not found"):
        FittedAdapter.load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        ShippedAdapter(tmp_path / "none.safetensors")
    broken = {name: np.full(shape, np.nan, np.float32) for name, shape in LAYERS.items()}
    save_file(broken, tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="not finite"):
        ShippedAdapter(tmp_path / "adapter.safetensors")
    with pytest.raises(ValueError, match="train the world model again"):
        FittedAdapter.load(tmp_path)
    with pytest.raises(ValueError, match="takes 1 to 15 ticks"):
        ShippedAdapter(shipped_file(tmp_path, gain=0.0)).joints(known[0], fresh.actions[:, :0])
