"""Ctrl-World's own adapter: a small MLP from joint velocities to joint angles."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, UInt8
from safetensors.numpy import load_file

from contracts.constants import NUM_JOINTS
from models.motion import TICKS

# Ctrl-World's adapter: layer shapes and the 1st and 99th percentiles of its training data.
LAYERS = {
    "net.0.weight": (512, 112),
    "net.0.bias": (512,),
    "net.2.weight": (512, 512),
    "net.2.bias": (512,),
    "net.4.weight": (105, 512),
    "net.4.bias": (105,),
}
_VELOCITY_RANGE = (
    np.array([-0.4077107, -0.79047304, -0.47850373, -0.8666644, -0.6729502, -0.5602032, -0.692411]),
    np.array([0.4900636, 0.7259861, 0.45910007, 0.79220384, 0.69864315, 0.648198, 0.810115]),
)
_WAY_RANGE = (  # rad since the chunk began
    np.array([-0.2801219, -0.397792, -0.22935797, -0.3351759, -0.42025003, -0.36825255, -0.450706]),
    np.array([0.2827909, 0.42184818, 0.33529875, 0.35958457, 0.375613, 0.44463825, 0.4697690]),
)


class ShippedAdapter:
    """Ctrl-World's adapter for pi0.5-DROID: an MLP from joints and 15 velocities to 15 joint rows.

    The gripper reaches its command at once, at most ``gripper_max``: upstream imitates an object in
    the hand by such a ceiling per task. Source: Ctrl-World ``models/action_adapter`` (4c713d1).
    """

    def __init__(self, path: Path, gripper_max: float = 1.0) -> None:
        """Read ``path``, safetensors with net.0/2/4.weight and .bias.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        if not path.is_file():
            raise ValueError(f"world_model.adapter_path={path} does not exist")
        self.weights = _checked(load_file(path), path)
        self._gripper_max = gripper_max

    @classmethod
    def of(cls, weights: Mapping[str, np.ndarray], path: Path) -> "ShippedAdapter":
        """From arrays that were read from ``path``; others among them are left alone."""
        self = cls.__new__(cls)
        self.weights, self._gripper_max = _checked(weights, path), 1.0
        return self

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        joint_motion: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
        frames: UInt8[np.ndarray, "slot 3 height width 3"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles [rad] and gripper after each tick. ``joint_motion`` and
        ``frames`` are not looked at.

        Chunks shorter than 15 ticks are continued with their last action, as upstream does for
        pi0's ten. Raises ValueError for longer ones.
        """
        joints = self.joints(joint_position, actions)
        grip = np.clip(actions[..., 7], 0.0, self._gripper_max)
        return joints.astype(np.float32), grip.astype(np.float32)

    def joints(
        self,
        start: Float32[np.ndarray, "slot 7"],
        actions: Float32[np.ndarray, "slot ticks 8"],
    ) -> Float64[np.ndarray, "slot ticks 7"]:
        """Joint angles [rad] after each tick. Raises ValueError for more than 15 ticks."""
        count, ticks, _ = actions.shape
        if not 1 <= ticks <= TICKS:
            raise ValueError(f"Ctrl-World's adapter takes 1 to {TICKS} ticks, got {ticks}")
        rows = np.minimum(np.arange(TICKS), ticks - 1)
        velocity = _to_unit(actions[:, rows, :NUM_JOINTS].astype(np.float64), *_VELOCITY_RANGE)
        hidden = np.concatenate([start, velocity.reshape(count, -1)], axis=1)
        for layer in ("net.0", "net.2"):
            hidden = self._linear(layer, hidden)
            hidden = hidden / (1.0 + np.exp(-hidden))
        unit = self._linear("net.4", hidden).reshape(count, TICKS, NUM_JOINTS)
        low, high = _WAY_RANGE
        return (start[:, None] + (unit + 1) / 2 * (high - low) + low)[:, :ticks]

    def _linear(self, layer: str, x: np.ndarray) -> np.ndarray:
        """Row by row, so that a slot's result does not depend on its neighbours."""
        weight, bias = self.weights[f"{layer}.weight"], self.weights[f"{layer}.bias"]
        return (x[:, None] @ weight.T)[:, 0] + bias


def _checked(weights: Mapping[str, np.ndarray], path: Path) -> dict[str, np.ndarray]:
    shapes = {name: weights[name].shape for name in LAYERS if name in weights}
    if shapes != LAYERS:
        raise ValueError(
            f"world_model.adapter_path={path} is not Ctrl-World's adapter: "
            f"{shapes or sorted(weights)[:6]}"
        )
    if not all(np.isfinite(weights[name]).all() for name in LAYERS):
        raise ValueError(f"world_model.adapter_path={path} has weights that are not finite")
    return {name: weights[name].astype(np.float64) for name in LAYERS}


def _to_unit(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[low, high] to [-1, 1], without clipping."""
    return 2 * (values - low) / (high - low + 1e-8) - 1
