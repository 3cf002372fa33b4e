"""Streaming percentiles and moments against numpy's, which see all rows at once."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from envs.recorded.robot import RecordedRobot
from replay.quantiles import moments, quantiles
from services.buffer_statistics import policy_statistics, world_model_statistics

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))
AT = (0.0, 0.01, 0.1, 0.37, 0.5, 0.9, 0.99, 1.0)


def portions(rows: np.ndarray, size: int):
    return lambda: (rows[first : first + size] for first in range(0, len(rows), size))


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 1), (5, 2), (1003, 100), (1003, 5000)])
def test_percentiles_are_numpy_s(count, size):
    rows = np.random.default_rng(count).normal(size=(count, 6)).astype(np.float32)
    rows[:, 1] = -0.0  # constant
    rows[:, 2] = np.round(2 * rows[:, 2])  # ties, on both sides of 0
    rows[:, 3] *= np.float32(1e30)
    rows[:, 4] *= np.float32(1e-40)  # denormal
    rows[:, 5] = -np.abs(rows[:, 5])
    expected = np.quantile(rows.astype(np.float64), AT, axis=0)
    found = quantiles(portions(rows, size), AT)
    np.testing.assert_allclose(found, expected, rtol=1e-14, atol=0)


def test_order_and_portions_do_not_matter():
    rows = np.random.default_rng(0).normal(size=(301, 2)).astype(np.float32)
    shuffled = np.random.default_rng(1).permutation(rows)
    np.testing.assert_array_equal(
        quantiles(portions(rows, 7), AT), quantiles(portions(shuffled, 50), AT)
    )


def test_moments_are_numpy_s_far_from_zero():
    rows = (1000 + np.random.default_rng(0).normal(size=(997, 3))).astype(np.float32)
    found = moments(portions(rows, 10))
    exact = rows.astype(np.float64)
    assert found.count == 997
    np.testing.assert_allclose(found.mean, exact.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(found.std, exact.std(axis=0), rtol=1e-9)
    np.testing.assert_array_equal([found.low, found.high], [exact.min(axis=0), exact.max(axis=0)])


def test_nothing_and_nan_are_refused():
    empty = np.zeros((0, 2), np.float32)
    for of in (moments, lambda rows: quantiles(rows, AT)):
        with pytest.raises(ValueError, match="zero rows"):
            of(lambda: [empty])
    with pytest.raises(ValueError, match="NaN"):
        quantiles(lambda: [np.array([[1.0], [np.nan]], np.float32)], AT)


@pytest.mark.shared
def test_statistics_of_real_recordings_are_numpy_s():
    robot = RecordedRobot(SAMPLE, 16, 32)
    contents = [json.loads(file.read_text()) for file in sorted(SAMPLE.glob("annotation/*/*.json"))]
    contents = [said for said in contents if "action.joint_velocity" in said]
    states = np.concatenate([np.array(said["states"], np.float32) for said in contents])
    stat = world_model_statistics(robot.rows)
    low, high = np.quantile(states.astype(np.float64), (0.01, 0.99), axis=0)
    np.testing.assert_allclose([stat["state_01"], stat["state_99"]], [low, high], rtol=1e-14)
    velocity = np.concatenate([np.array(said["action.joint_velocity"]) for said in contents])
    norm = policy_statistics(robot.rows)["norm_stats"]["actions"]
    for name, expected in (
        ("q01", np.quantile(velocity.astype(np.float32), 0.01, axis=0)),
        ("q99", np.quantile(velocity.astype(np.float32), 0.99, axis=0)),
        ("mean", velocity.mean(axis=0)),
        ("std", velocity.std(axis=0)),
    ):
        np.testing.assert_allclose(norm[name][:7], expected, rtol=1e-5, atol=1e-7)
