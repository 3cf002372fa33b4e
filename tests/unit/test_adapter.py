"""The pose adapter on arms whose response is known in closed form."""

import numpy as np
import pytest

from models.adapter import FittedAdapter, MotionWindows, ShippedAdapter


def windows(count: int, seed: int) -> MotionWindows:
    """An arm that makes 0.07 rad of a unit velocity in the next tick and 0.02 in the one after,
    with a gripper that closes by 0.05 a tick until it holds something at 0.6."""
    rng = np.random.default_rng(seed)
    start = rng.uniform(-1, 1, (count, 7))
    actions = np.concatenate([rng.uniform(-1, 1, (count, 15, 7)), np.ones((count, 15, 1))], axis=2)
    late = np.concatenate([np.zeros((count, 1, 7)), actions[:, :-1, :7]], axis=1)
    joints = start[:, None] + np.cumsum(0.07 * actions[..., :7] + 0.02 * late, axis=1)
    grip = rng.choice([0.02, 0.32, 0.47], count)
    ticks = np.arange(1, 16)
    closed = np.minimum(grip[:, None] + 0.05 * ticks, np.maximum(grip, 0.62)[:, None])
    arrays = (start, grip, actions, joints, closed)
    return MotionWindows(*(array.astype(np.float32) for array in arrays))


@pytest.fixture(scope="module")
def fitted() -> FittedAdapter:
    adapter = FittedAdapter()
    adapter.fit(windows(300, seed=0))
    return adapter


def test_recovers_a_linear_arm(fitted):
    fresh = windows(40, seed=1)
    joints, _ = fitted.predict(fresh.joint_position, fresh.gripper_position, fresh.actions)
    still = np.abs(fresh.future_joints - fresh.joint_position[:, None])
    error = np.abs(joints - fresh.future_joints)
    assert error.mean() < 0.03 * still.mean()
    errors = fitted.errors(fresh)
    assert errors.ticks == (4, 8, 12)
    assert all(a < 0.05 * b for a, b in zip(errors.adapter, errors.no_motion, strict=True))


def test_errors_are_millimetres_of_the_flange():
    adapter = FittedAdapter()
    adapter.fit(windows(60, seed=0))
    turned = windows(1, seed=2)
    zero = np.zeros((1, 15, 7), np.float32)
    zero[..., 0] = np.deg2rad(90)
    start = np.zeros((1, 7), np.float32)
    quarter = MotionWindows(
        start, turned.gripper_position, turned.actions, zero, turned.future_gripper
    )
    assert adapter.errors(quarter).no_motion[0] == pytest.approx(88 * np.sqrt(2), abs=1e-3)


def test_a_tick_depends_on_the_actions_up_to_it_only(fitted):
    base = windows(3, seed=3)
    later = base.actions.copy()
    later[:, 6:] *= -1
    first = fitted.predict(base.joint_position, base.gripper_position, base.actions)
    second = fitted.predict(base.joint_position, base.gripper_position, later)
    for before, after in zip(first, second, strict=True):
        np.testing.assert_array_equal(before[:, :6], after[:, :6])
        assert np.abs(before[:, 6:] - after[:, 6:]).min(axis=1).max() > 0
    short = fitted.predict(base.joint_position, base.gripper_position, base.actions[:, :6])
    np.testing.assert_array_equal(short[0], first[0][:, :6])


def test_the_gripper_closes_at_its_rate_and_stalls_on_the_object(fitted):
    start = np.full(1, 0.1, np.float32)
    close = np.ones((1, 15, 8), np.float32)
    _, grip = fitted.predict(np.zeros((1, 7), np.float32), start, close)
    np.testing.assert_allclose(grip[0, :9], 0.1 + 0.05 * np.arange(1, 10), atol=0.02)
    assert abs(grip[0, -1] - 0.62) < 0.05
    held = close.copy()
    held[..., 7] = 0.1
    np.testing.assert_allclose(
        fitted.predict(np.zeros((1, 7), np.float32), start, held)[1], 0.1, atol=1e-6
    )


def test_fitting_twice_and_loading_give_the_same_adapter(fitted, tmp_path):
    again = FittedAdapter()
    again.fit(windows(300, seed=0))
    fitted.save(tmp_path)
    fresh = windows(5, seed=4)
    arguments = (fresh.joint_position, fresh.gripper_position, fresh.actions)
    for other in (again, FittedAdapter.load(tmp_path)):
        for mine, theirs in zip(fitted.predict(*arguments), other.predict(*arguments), strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_refusals_say_what_to_do(fitted, tmp_path):
    fresh = windows(2, seed=5)
    long = np.zeros((2, 16, 8), np.float32)
    with pytest.raises(ValueError, match="16 ticks asked"):
        fitted.predict(fresh.joint_position, fresh.gripper_position, long)
    with pytest.raises(ValueError, match="call fit"):
        FittedAdapter().predict(fresh.joint_position, fresh.gripper_position, fresh.actions)
    with pytest.raises(ValueError, match="record more"):
        FittedAdapter().fit(fresh)
    with pytest.raises(ValueError, match="not found"):
        FittedAdapter.load(tmp_path)
    with pytest.raises(ValueError, match="does not exist"):
        ShippedAdapter(tmp_path / "none.safetensors")
