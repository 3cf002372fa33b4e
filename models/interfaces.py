"""What a learner may ask of a model: batches in, per-sample losses out, a folder of weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, UInt8
from torch import Tensor, nn

from contracts.protocols import Policy, RewardModel, WorldModel
from contracts.types import Clip


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
class RewardBatch:
    clips: Sequence[Clip]
    success: Bool[np.ndarray, " batch"]


Batch = PolicyBatch | WorldModelBatch | RewardBatch


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


class TrainableWorldModel(Trainable, WorldModel, Protocol): ...


class TrainableReward(Trainable, RewardModel, Protocol): ...
