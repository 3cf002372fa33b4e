"""Ctrl-World's joint-velocity adapter and kinematics against the repository's own outputs."""

import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from contracts.kinematics import flange_pose, flange_transform
from models.shipped_adapter import ShippedAdapter

pytestmark = pytest.mark.parity
PARITY = Path(os.environ.get("PARITY_DIR", Path(__file__).parents[2] / "../shared/parity"))
FIXTURE = PARITY / "ctrl_world_tiny"
BLANK = np.zeros((1, 3, 6, 8, 3), np.uint8)  # upstream looks at no frame either
CASES = ("e1", "e2", "e3_pi0", "e4_grip", "e5_fast")  # e3_pi0, e5_fast: ten ticks


@pytest.fixture(scope="module")
def tensors() -> dict[str, np.ndarray]:
    return load_file(FIXTURE / "cases.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_joints_after_each_tick_equal_upstreams(tensors, case):
    adapter = ShippedAdapter(FIXTURE / "adapter.safetensors")
    joints = tensors[f"e.{case}.joints"].astype(np.float32)
    actions = tensors[f"e.{case}.policy_actions"].astype(np.float32)
    reached, grip = adapter.predict(
        joints[None, :7], np.zeros((1, 7), np.float32), joints[None, 7], actions[None], BLANK
    )
    expected = tensors[f"e.{case}.adapter_out"][: len(actions)]
    np.testing.assert_allclose(reached[0], expected, atol=2e-6)
    np.testing.assert_allclose(grip[0], np.clip(actions[:, 7], 0, 1), atol=1e-7)


def test_the_gripper_stops_at_the_tasks_ceiling(tensors):
    adapter = ShippedAdapter(FIXTURE / "adapter.safetensors", gripper_max=0.3)
    actions = np.zeros((1, 15, 8), np.float32)
    actions[0, :, 7] = np.linspace(-0.2, 1, 15)
    rest = np.zeros((1, 7), np.float32)
    _, grip = adapter.predict(rest, rest, np.zeros(1, np.float32), actions, BLANK)
    assert grip.min() == 0.0
    assert grip.max() == np.float32(0.3)


def test_kinematics_equal_upstreams(tensors):
    joints = tensors["e.fk.joints"]
    np.testing.assert_allclose(flange_transform(joints), tensors["e.fk.T"], atol=1e-12)
    np.testing.assert_allclose(flange_pose(joints), tensors["e.fk.pose"], atol=1e-9)
