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
from contracts.kinematics import flange_frame, pose_features, world_model_pose
from contracts.types import ActionChunk, Observation
from models.embedded.augment import random_light
from models.embedded.layers import fresh, normal
from models.embedded.points import FEATURES, ChunkDenoiser, PointEncoder
from models.embedded.rows import in_groups, noise_of
from models.embedded.steering import Steering, chunk_mean, with_mean
from models.embedded.store import read_checkpoint, write_checkpoint
from models.embedded.windows import Inputs, Wanted, Windows
from models.embedded.words import hashed_words
from models.interfaces import Batch, PolicyBatch

_KIND = "embedded_policy"
_PROPRIO = NUM_JOINTS + 10
_HEIGHT = NUM_JOINTS + 2  # the flange's z in a row of proprio
_GROUP = 4  # rows of a forward: a robot asks for one at a time, imagination for sixteen
_LEAST_STD = 0.03  # of an action or proprio column: what hardly moves is not blown up
_PROPRIO_NOISE = 0.05  # in standard deviations; imagined poses carry the adapter's error
LIGHT = 0.08
_DRAWS = 4  # of time and noise per sample: the encoder costs more than the denoiser
_DAMPING = 1e-8  # m^2, of squared singular values; those of a usual posture are above 1e-3
_EARLIEST_TIME = 0.001  # openpi: t = Beta(1.5, 1) * 0.999 + 0.001


@dataclass(frozen=True, slots=True)
class PolicySizes:
    """Everything that fixes the shapes of the weights."""

    width: int
    layers: int
    points: int
    views: list[int]
    words: int
    horizon: int

    @classmethod
    def of(cls, cfg: PolicyConfig) -> "PolicySizes":
        sizes = cfg.embedded
        return cls(
            sizes.width, sizes.layers, sizes.points, list(sizes.views), sizes.words, cfg.horizon
        )


class FlowPolicyNet(nn.Module):
    """Velocity field over action chunks; all normalisation constants are its buffers."""

    action_mean: Tensor
    action_std: Tensor
    proprio_mean: Tensor
    proprio_std: Tensor

    def __init__(self, sizes: PolicySizes) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(PointEncoder(sizes.words, sizes.points) for _ in sizes.views)
        seen = len(sizes.views) * sizes.points * FEATURES
        chunk = sizes.horizon * ACTION_DIM
        self.velocity = ChunkDenoiser(
            seen + _PROPRIO + sizes.words, chunk, sizes.width, sizes.layers
        )
        for name, size in (("action", ACTION_DIM), ("proprio", _PROPRIO)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def look(self, images: Tensor, proprio: Tensor, words: Tensor) -> Float[Tensor, "batch seen"]:
        """What the encoders find in centred images (batch, views, 3, H, W)."""
        height = proprio[:, _HEIGHT]
        found = [
            encoder(images[:, view], words, height) for view, encoder in enumerate(self.encoders)
        ]
        return torch.cat(found, dim=1)

    def context(self, seen: Tensor, proprio: Tensor, words: Tensor) -> Float[Tensor, "batch width"]:
        """All that the denoiser goes by."""
        return self.velocity.seen(torch.cat([seen, proprio, words], dim=1))


class EmbeddedPolicy:
    """Flow matching with t = 1 noise and t = 0 data (openpi's convention) on a few views.

    It sees the chosen views, joint angles, gripper and flange pose, and the instruction's words,
    and thinks in velocities of the flange and the elbow, which are the same wherever the arm is;
    actions are joint velocities (``contracts.kinematics.flange_frame`` at the chunk's beginning).
    Not a small pi0.5: no language model, no pretrained weights.
    """

    def __init__(self, cfg: PolicyConfig, seed: int) -> None:
        self.version = NO_VERSION
        self._cfg = cfg
        self._sizes = PolicySizes.of(cfg)
        self._net: FlowPolicyNet = fresh(lambda: FlowPolicyNet(self._sizes), seed)
        self.steering: Steering | None = None  # chooses the noise, where there is one

    @classmethod
    def load(cls, cfg: PolicyConfig, folder: Path, version: int) -> "EmbeddedPolicy":
        """The policy stored in ``folder``. Raises ValueError where sizes or format differ."""
        policy = cls(cfg, seed=0)
        read_checkpoint(folder, _KIND, asdict(policy._sizes), policy._net)
        policy._net.encoders.requires_grad_(not cfg.embedded.freeze_encoder)
        policy.steering = Steering.load(folder)
        policy.version = version
        return policy

    @property
    def frozen(self) -> bool:
        """Whether only what acts on what is seen learns."""
        return not any(p.requires_grad for p in self._net.encoders.parameters())

    def look(self, images: Tensor, proprio: Tensor, words: Tensor) -> Float[Tensor, "batch seen"]:
        """What the encoders find in centred images."""
        return self._net.look(images, proprio, words)

    def see_like(self, other: "EmbeddedPolicy") -> None:
        """Take over the encoders and normalisation of ``other``, and train the encoders no more."""
        own = self._net.state_dict()
        for name, tensor in other._net.state_dict().items():
            if not name.startswith("velocity."):
                own[name].copy_(tensor)
        self._net.encoders.requires_grad_(False)

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write model.safetensors and config.json; ``half`` stores float16 weights."""
        write_checkpoint(folder, _KIND, asdict(self._sizes), self._net, half)
        if self.steering is not None:
            self.steering.save(folder)

    def module(self) -> nn.Module:
        return self._net

    def fit_statistics(self, batch: Batch) -> None:
        """Set mean and standard deviation of actions and proprio."""
        batch = _policy_batch(batch)
        rows = _of_flange(batch.joint_position, batch.actions).reshape(-1, ACTION_DIM)
        proprio = _proprio(batch.joint_position, batch.gripper_position)
        _set_moments(self._net.action_mean, self._net.action_std, rows)
        _set_moments(self._net.proprio_mean, self._net.proprio_std, proprio)

    def prepare(self, batch: Batch) -> Windows:
        """A batch as what the loss needs of it, on the device of the weights."""
        batch = _policy_batch(batch)
        inputs = self._inputs(
            torch.from_numpy(batch.images[:, self._sizes.views]),
            batch.joint_position,
            batch.gripper_position,
            batch.instructions,
        )
        actions = torch.from_numpy(_of_flange(batch.joint_position, batch.actions))
        return Windows(*inputs, self._normalise(actions.to(self._device)))

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Mean squared error of the velocity ``noise - actions`` at four random times per sample.

        Images change in light and proprio gets noise. Images are not shifted: two pixels are two
        centimetres on the table, and the action would stay the same.
        Source: openpi ``models/pi0.py`` compute_loss; paper Eq. 4.
        """
        return self.loss_of(self.prepare(batch), generator)

    def loss_of(self, windows: Windows, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """The loss of windows that are prepared."""
        light = random_light(centred(windows.images), LIGHT, generator)
        seen = self._net.look(light, windows.proprio, windows.words)
        return self.loss_seen(seen, windows.without_images(), generator)

    def loss_seen(
        self, seen: Float[Tensor, "batch seen"], wanted: Wanted, generator: torch.Generator
    ) -> Float[Tensor, " batch"]:
        """The loss where the encoders have looked already."""
        jitter = normal(wanted.proprio.shape, generator, seen.device)
        proprio = wanted.proprio + _PROPRIO_NOISE * jitter
        context = self._net.context(seen, proprio, wanted.words)
        actions = wanted.actions.repeat(_DRAWS, 1, 1)
        time, noise = sample_flow(len(actions), actions.shape[1:], generator)
        time, noise = time.to(seen.device), noise.to(seen.device)
        at = time[:, None, None]
        noisy = at * noise + (1 - at) * actions
        velocity = self._net.velocity(noisy, time, context.repeat(_DRAWS, 1))
        error = (velocity - (noise - actions)).square().mean(dim=(1, 2))
        return error.view(_DRAWS, -1).mean(dim=0)

    @torch.no_grad()
    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """One chunk per observation; row i depends on observation i and seed i alone, bitwise.

        Where a joint would be faster than 1 the whole arm is slower, which keeps the flange on its
        way; the gripper is clipped to [0, 1].

        Raises:
            ValueError: there are not as many seeds as observations.
        """
        if len(observations) != len(seeds):
            raise ValueError(f"{len(observations)} observations need as many seeds: {len(seeds)}")
        if not observations:
            return []
        states = [item.state for item in observations]
        joints = np.stack([state.joint_position for state in states])
        views = self._sizes.views
        inputs = self._inputs(
            torch.from_numpy(np.stack([item.images[views] for item in observations])),
            joints,
            np.array([state.gripper_position for state in states], np.float32),
            [item.instruction for item in observations],
        )
        noise = self._noise(seeds)
        actions = in_groups(self._sample, *inputs, noise, size=_GROUP).cpu().numpy()
        return [ActionChunk(row, self.version) for row in _of_joints(joints, actions)]

    @torch.no_grad()
    def choices(
        self, batch: PolicyBatch, seeds: Sequence[int]
    ) -> tuple[Float[Tensor, "batch features"], Float[Tensor, "batch dim"]]:
        """What the policy went by when it decided with these seeds, and the mean of its noise."""
        windows = self.prepare(batch)
        seen = self._net.look(centred(windows.images), windows.proprio, windows.words)
        features = torch.cat([seen, windows.proprio, windows.words], dim=1)
        own = chunk_mean(self._noise(seeds))
        return features, own if self.steering is None else self.steering(features, own)

    def _noise(self, seeds: Sequence[int]) -> Float[Tensor, "batch horizon 8"]:
        shape = (self._sizes.horizon, ACTION_DIM)
        noise = torch.stack([noise_of([seed], shape) for seed in seeds])
        return (self._cfg.noise * noise).to(self._device)

    def _sample(
        self, images: Tensor, proprio: Tensor, words: Tensor, noise: Tensor
    ) -> Float[Tensor, "group horizon 8"]:
        """Euler steps from noise at t = 1 to actions of the flange at t = 0."""
        seen = self._net.look(centred(images), proprio, words)
        context = self._net.context(seen, proprio, words)
        if self.steering is not None:
            features = torch.cat([seen, proprio, words], dim=1)
            noise = with_mean(noise, self.steering(features, chunk_mean(noise)))
        actions, steps = noise, self._cfg.flow_steps
        for step in range(steps):
            time = torch.full((len(noise),), 1 - step / steps, device=noise.device)
            actions = actions - self._net.velocity(actions, time, context) / steps
        return actions * self._net.action_std + self._net.action_mean

    @property
    def _device(self) -> torch.device:
        return self._net.action_mean.device

    def _normalise(self, actions: Tensor) -> Tensor:
        return (actions - self._net.action_mean) / self._net.action_std

    def _inputs(
        self, images: Tensor, joints: np.ndarray, gripper: np.ndarray, instructions: Sequence[str]
    ) -> Inputs:
        proprio = torch.from_numpy(_proprio(joints, gripper))
        normalised = (proprio.to(self._device) - self._net.proprio_mean) / self._net.proprio_std
        words = hashed_words(instructions, self._sizes.words).to(self._device)
        return Inputs(images.to(self._device), normalised, words)


def sample_flow(
    count: int, shape: Sequence[int], generator: torch.Generator
) -> tuple[Float[Tensor, " count"], Float[Tensor, "count horizon dim"]]:
    """Times Beta(1.5, 1) in (0.001, 1], by inverting the CDF t^1.5, and standard normal noise."""
    uniform = torch.rand(count, generator=generator)
    time = uniform.pow(2 / 3) * (1 - _EARLIEST_TIME) + _EARLIEST_TIME
    return time, torch.randn((count, *shape), generator=generator)


def _of_flange(
    joints: Float32[np.ndarray, "batch 7"], actions: Float32[np.ndarray, "batch horizon 8"]
) -> Float32[np.ndarray, "batch horizon 8"]:
    """Joint velocities as those of flange and elbow, seen from the posture at the beginning."""
    moved = np.einsum("bij,btj->bti", flange_frame(joints), actions[..., :NUM_JOINTS])
    return np.concatenate([moved, actions[..., NUM_JOINTS:]], axis=-1).astype(np.float32)


def _of_joints(
    joints: Float32[np.ndarray, "batch 7"], actions: Float32[np.ndarray, "batch horizon 8"]
) -> Float32[np.ndarray, "batch horizon 8"]:
    """The inverse of ``_of_flange``, with no joint faster than 1 and the gripper in [0, 1].

    Least squares with a little damping: at a singular posture, where no joint velocity gives what
    is wanted, the arm does what it can.
    """
    frame = flange_frame(joints)
    across = frame.swapaxes(1, 2)
    moved = across @ actions[..., :NUM_JOINTS].swapaxes(1, 2).astype(np.float64)
    velocity = np.linalg.solve(across @ frame + _DAMPING * np.eye(NUM_JOINTS), moved)
    velocity = velocity.swapaxes(1, 2)
    velocity /= np.maximum(np.abs(velocity).max(axis=-1, keepdims=True), 1.0)
    gripper = actions[..., NUM_JOINTS:].clip(0.0, 1.0)
    return np.concatenate([velocity, gripper], axis=-1).astype(np.float32)


def _proprio(
    joints: Float32[np.ndarray, "batch 7"], gripper: Float32[np.ndarray, " batch"]
) -> Float32[np.ndarray, "batch 17"]:
    """Joint angles, then flange position, two rotation columns and the gripper."""
    return np.concatenate([joints, pose_features(world_model_pose(joints, gripper))], axis=1)


def centred(images: UInt8[Tensor, "batch views height width 3"]) -> Tensor:
    return images.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _set_moments(mean: Tensor, std: Tensor, rows: np.ndarray) -> None:
    mean.copy_(torch.from_numpy(rows.mean(axis=0, dtype=np.float64)))
    std.copy_(torch.from_numpy(rows.std(axis=0, dtype=np.float64)).clamp_min(_LEAST_STD))


def _policy_batch(batch: Batch) -> PolicyBatch:
    if not isinstance(batch, PolicyBatch):
        raise ValueError(f"a policy trains on PolicyBatch, got {type(batch).__name__}")
    return batch
