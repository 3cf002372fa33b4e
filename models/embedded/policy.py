"""A small flow-matching policy in the manner of pi0.5: images, arm and words to action chunks."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from configs.policy import PolicyConfig
from contracts.constants import ACTION_DIM, NO_VERSION, NUM_JOINTS
from contracts.kinematics import pose_features, world_model_pose
from contracts.types import ActionChunk, Observation
from models.embedded.augment import random_light, random_shift
from models.embedded.layers import DecoderBlock, fresh, grid_waves, waves
from models.embedded.rows import in_groups, noise_of
from models.embedded.store import read_checkpoint, write_checkpoint
from models.embedded.words import bag_of_words
from models.interfaces import Batch, PolicyBatch

_KIND = "embedded_policy"
_PROPRIO = NUM_JOINTS + 10
_ENCODER = (24, 48)  # channels of the first two convolutions
_GROUP = 4  # rows of a forward: a robot asks for one at a time, imagination for sixteen
_FREQUENCIES = 6  # of a cell's position
_LEAST_STD = 0.05  # of an action or proprio column: a joint that hardly moves is not blown up
_PROPRIO_NOISE = 0.05  # in standard deviations; imagined poses carry the adapter's error
_LIGHT = 0.08
_EARLIEST_TIME = 0.001  # openpi: t = Beta(1.5, 1) * 0.999 + 0.001


@dataclass(frozen=True, slots=True)
class PolicySizes:
    """Everything that fixes the shapes of the weights."""

    width: int
    layers: int
    heads: int
    views: list[int]
    words: int
    horizon: int

    @classmethod
    def of(cls, cfg: PolicyConfig) -> "PolicySizes":
        sizes = cfg.embedded
        return cls(
            sizes.width, sizes.layers, sizes.heads, list(sizes.views), sizes.words, cfg.horizon
        )


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What the policy sees, as tensors: chosen views uint8 NHWC, proprio and words float32."""

    images: UInt8[Tensor, "batch views height width 3"]
    proprio: Float[Tensor, "batch 17"]
    words: Float[Tensor, "batch words"]


class FlowPolicyNet(nn.Module):
    """Velocity field over action chunks; all normalisation constants are its buffers."""

    action_mean: Tensor
    action_std: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, sizes: PolicySizes) -> None:
        super().__init__()
        width = sizes.width
        self.encoders = nn.ModuleList(_encoder(width) for _ in sizes.views)
        self.cell = nn.Linear(4 * _FREQUENCIES, width)
        self.view = nn.Parameter(0.02 * torch.randn(len(sizes.views), width))
        self.proprio = nn.Sequential(nn.Linear(_PROPRIO, width), nn.GELU(), nn.Linear(width, width))
        self.words = nn.Linear(sizes.words, width, bias=False)
        self.context_norm = nn.LayerNorm(width)
        self.action = nn.Linear(ACTION_DIM, width)
        self.tick = nn.Parameter(0.02 * torch.randn(sizes.horizon, width))
        self.time = nn.Sequential(nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(DecoderBlock(width, sizes.heads) for _ in range(sizes.layers))
        self.out_norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, ACTION_DIM)
        for name, size in (("action", ACTION_DIM), ("proprio", _PROPRIO)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def context(
        self, images: Tensor, proprio: Tensor, words: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of every block from centred images (batch, views, 3, H, W)."""
        tokens = [self.proprio(proprio)[:, None], self.words(words)[:, None]]
        for index, encoder in enumerate(self.encoders):
            cells = encoder(images[:, index])
            where = grid_waves(cells.shape[-2], cells.shape[-1], _FREQUENCIES).to(cells.device)
            place = self.cell(where) + self.view[index]
            tokens.append(cells.flatten(2).transpose(1, 2) + place)
        joined = self.context_norm(torch.cat(tokens, dim=1))
        return [block.cross_attention.remember(joined) for block in self._blocks()]

    def velocity(
        self, actions: Tensor, time: Tensor, context: list[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """d actions / dt at ``time`` (1 is noise, 0 is data), all normalised."""
        embedded = self.time(waves(time, 32, 1000.0))
        hidden = self.action(actions) + self.tick + embedded[:, None]
        for block, memory in zip(self._blocks(), context, strict=True):
            hidden = block(hidden, memory)
        return self.out(self.out_norm(hidden))

    def _blocks(self) -> list[DecoderBlock]:
        return [block for block in self.blocks if isinstance(block, DecoderBlock)]


def _encoder(width: int) -> nn.Sequential:
    """Convolutions of total stride 8; 48 x 80 pixels become 6 x 10 cells."""
    first, second = _ENCODER
    return nn.Sequential(
        nn.Conv2d(3, first, 5, stride=2, padding=2),
        nn.ReLU(),
        nn.Conv2d(first, second, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(second, width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, width, 1),
    )


class EmbeddedPolicy:
    """Flow matching with t = 1 noise and t = 0 data (openpi's convention) on a few views.

    It sees the chosen views, joint angles, gripper and flange pose, and the instruction's words.
    Not a small pi0.5: no language model, no pretrained weights.
    """

    def __init__(self, cfg: PolicyConfig, seed: int) -> None:
        self.version = NO_VERSION
        self._cfg = cfg
        self._sizes = PolicySizes.of(cfg)
        self._net: FlowPolicyNet = fresh(lambda: FlowPolicyNet(self._sizes), seed)

    @classmethod
    def load(cls, cfg: PolicyConfig, folder: Path, version: int) -> "EmbeddedPolicy":
        """The policy stored in ``folder``. Raises ValueError where sizes or format differ."""
        policy = cls(cfg, seed=0)
        read_checkpoint(folder, _KIND, asdict(policy._sizes), policy._net)
        policy.version = version
        return policy

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write model.safetensors and config.json; ``half`` stores float16 weights."""
        write_checkpoint(folder, _KIND, asdict(self._sizes), self._net, half)

    def module(self) -> nn.Module:
        return self._net

    def fit_statistics(self, batch: Batch) -> None:
        """Set mean and standard deviation of actions and proprio."""
        batch = _policy_batch(batch)
        rows = batch.actions.reshape(-1, ACTION_DIM)
        proprio = _proprio(batch.joint_position, batch.gripper_position)
        _set_moments(self._net.action_mean, self._net.action_std, rows)
        _set_moments(self._net.proprio_mean, self._net.proprio_std, proprio)

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Mean squared error of the velocity ``noise - actions`` at one random time per sample.

        Images are shifted by up to 1/24 of their height and change in light; proprio gets noise.
        Source: openpi ``models/pi0.py`` compute_loss; paper Eq. 4.
        """
        batch = _policy_batch(batch)
        images = torch.from_numpy(batch.images[:, self._sizes.views])
        pixels = max(1, images.shape[2] // 24)
        moved = random_shift(images.flatten(0, 1), pixels, generator).view_as(images)
        inputs = self._inputs(
            moved, batch.joint_position, batch.gripper_position, batch.instructions
        )
        count = len(batch.actions)
        light = random_light(_centred(inputs.images), _LIGHT, generator)
        jitter = torch.randn(inputs.proprio.shape, generator=generator).to(light.device)
        time, noise = sample_flow(count, (self._sizes.horizon, ACTION_DIM), generator)
        time, noise = time.to(light.device), noise.to(light.device)
        actions = self._normalise(torch.from_numpy(batch.actions).to(light.device))
        at = time[:, None, None]
        context = self._net.context(light, inputs.proprio + _PROPRIO_NOISE * jitter, inputs.words)
        velocity = self._net.velocity(at * noise + (1 - at) * actions, time, context)
        return (velocity - (noise - actions)).square().mean(dim=(1, 2))

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation; row i depends on observation i and seed i alone, bitwise.

        Velocities are clipped to [-1, 1], the gripper to [0, 1].

        Raises:
            ValueError: there are not as many seeds as observations.
        """
        if len(observations) != len(seeds):
            raise ValueError(f"{len(observations)} observations need as many seeds: {len(seeds)}")
        if not observations:
            return []
        states = [item.state for item in observations]
        views = self._sizes.views
        inputs = self._inputs(
            torch.from_numpy(np.stack([item.images[views] for item in observations])),
            np.stack([state.joint_position for state in states]),
            np.array([state.gripper_position for state in states], np.float32),
            [item.instruction for item in observations],
        )
        shape = (self._sizes.horizon, ACTION_DIM)
        noise = torch.stack([noise_of([seed], shape) for seed in seeds]).to(self._device)
        rows = (inputs.images, inputs.proprio, inputs.words, noise)
        actions = in_groups(self._sample, *rows, size=_GROUP).cpu().numpy()
        return [ActionChunk(row, self.version) for row in actions]

    def _sample(
        self, images: Tensor, proprio: Tensor, words: Tensor, noise: Tensor
    ) -> Float[Tensor, "group horizon 8"]:
        """Euler steps from noise at t = 1 to actions at t = 0."""
        context = self._net.context(_centred(images), proprio, words)
        actions, steps = noise, self._cfg.flow_steps
        for step in range(steps):
            time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
            actions = actions - self._net.velocity(actions, time, context) / steps
        actions = actions * self._net.action_std + self._net.action_mean
        low = torch.tensor([-1.0] * NUM_JOINTS + [0.0], device=actions.device)
        return actions.clamp(low, torch.ones_like(low))

    @property
    def _device(self) -> torch.device:
        return self._net.tick.device

    def _normalise(self, actions: Tensor) -> Tensor:
        return (actions - self._net.action_mean) / self._net.action_std

    def _inputs(
        self, images: Tensor, joints: np.ndarray, gripper: np.ndarray, instructions: Sequence[str]
    ) -> _Inputs:
        proprio = torch.from_numpy(_proprio(joints, gripper))
        normalised = (proprio.to(self._device) - self._net.proprio_mean) / self._net.proprio_std
        words = bag_of_words(instructions, self._sizes.words).to(self._device)
        return _Inputs(images.to(self._device), normalised, words)


def sample_flow(
    count: int, shape: tuple[int, int], generator: torch.Generator
) -> tuple[Float[Tensor, " count"], Float[Tensor, "count horizon dim"]]:
    """Times Beta(1.5, 1) in (0.001, 1], by inverting the CDF t^1.5, and standard normal noise."""
    uniform = torch.rand(count, generator=generator)
    time = uniform.pow(2 / 3) * (1 - _EARLIEST_TIME) + _EARLIEST_TIME
    return time, torch.randn((count, *shape), generator=generator)


def _proprio(
    joints: Float32[np.ndarray, "batch 7"], gripper: Float32[np.ndarray, " batch"]
) -> Float32[np.ndarray, "batch 17"]:
    """Joint angles, then flange position, two rotation columns and the gripper."""
    return np.concatenate([joints, pose_features(world_model_pose(joints, gripper))], axis=1)


def _centred(images: UInt8[Tensor, "batch views height width 3"]) -> Tensor:
    return images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _set_moments(mean: Tensor, std: Tensor, rows: np.ndarray) -> None:
    mean.copy_(torch.from_numpy(rows.mean(axis=0, dtype=np.float64)))
    std.copy_(torch.from_numpy(rows.std(axis=0, dtype=np.float64)).clamp_min(_LEAST_STD))


def _policy_batch(batch: Batch) -> PolicyBatch:
    if not isinstance(batch, PolicyBatch):
        raise ValueError(f"a policy trains on PolicyBatch, got {type(batch).__name__}")
    return batch
