"""What a learner may ask of a model: batches in, per-sample losses out, a folder of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from torch import Tensor, nn

from contracts.protocols import Policy, RewardModel, WorldModel
from contracts.types import Clip, LatentFormat


@dataclass(frozen=True, slots=True)
class PolicyBatch:
    """Windows of successful trajectories. ``weight`` is 1, or exp(A / beta) of Eq. 7."""

    images: UInt8[np.ndarray, "batch 3 height width 3"]
    joint_position: Float32[np.ndarray, "batch 7"]
    gripper_position: Float32[np.ndarray, " batch"]
    instructions: Sequence[str]
    actions: Float32[np.ndarray, "batch horizon 8"]  # past the end: zero velocity, last gripper
    weight: Float32[np.ndarray, " batch"]


@dataclass(frozen=True, slots=True)
class WorldModelBatch:
    """Windows of 11 frames: 6 of history, the current one, 4 to predict."""

    frames: UInt8[np.ndarray, "batch 11 3 height width 3"]
    poses: Float32[np.ndarray, "batch 11 7"]  # measured flange pose and gripper, not normalised
    instructions: Sequence[str]
    weight: Float32[np.ndarray, " batch"]  # 1 for D_real, lambda for D_DROID (Eq. 2)


@dataclass(frozen=True, slots=True)
class LatentBatch:
    """The windows of a ``WorldModelBatch`` whose frames a frozen encoder has seen before.

    ``moments`` are mean and standard deviation of each frame's latent, scaled to unit variance.
    """

    moments: Float32[np.ndarray, "batch 11 2 channels rows columns"]
    poses: Float32[np.ndarray, "batch 11 7"]
    instructions: Sequence[str]
    weight: Float32[np.ndarray, " batch"]


@dataclass(frozen=True, slots=True)
class RewardBatch:
    clips: Sequence[Clip]
    success: Bool[np.ndarray, " batch"]


@dataclass(frozen=True, slots=True)
class Rows:
    """Which rows a step learns from, of data that its ``Trainable`` keeps on the device."""

    index: Int64[Tensor, " batch"]
    weight: Float32[np.ndarray, " batch"] | float = 1.0


Batch = PolicyBatch | WorldModelBatch | LatentBatch | RewardBatch | Rows


@runtime_checkable
class Trainable(Protocol):
    """A model that a learner can train. ``version`` is set by whoever publishes it."""

    version: int

    def module(self) -> nn.Module:
        """What the optimiser sees; parameters with requires_grad are trained."""
        ...

    def fit_statistics(self, batch: Batch) -> None:
        """Set normalisation from a large batch. Called once, before a base model is trained."""
        ...

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Per-sample loss, not yet weighted. All randomness comes from ``generator`` (CPU)."""
        ...

    def save(self, folder: Path) -> None:
        """Write weights (safetensors) and everything needed to load them; the folder exists."""
        ...


class TrainablePolicy(Trainable, Policy, Protocol): ...


@runtime_checkable
class TrainableWorldModel(Trainable, WorldModel, Protocol):
    """``history_offsets`` are the six history frames of a training window: 5 Hz frames from the
    current one, at most 0. ``frame_size`` is (height, width) of a view in pixels."""

    history_offsets: tuple[int, ...]
    frame_size: tuple[int, int]


@runtime_checkable
class Spaced(Protocol):
    """A world model that is trained on windows of several spacings, all equally likely:
    ``window_offsets`` are the 11 frames of each, in 5 Hz frames from the current one."""

    window_offsets: tuple[tuple[int, ...], ...]


@runtime_checkable
class LatentCoder(Protocol):
    """A world model behind a frozen image encoder: what that says of a frame can be stored."""

    def latent_format(self) -> LatentFormat: ...

    def latent_moments(
        self, frames: UInt8[np.ndarray, "frame 3 height width 3"]
    ) -> Float32[np.ndarray, "frame 2 channels rows columns"]:
        """Mean and standard deviation, scaled, of every frame."""
        ...


class TrainableReward(Trainable, RewardModel, Protocol): ...
