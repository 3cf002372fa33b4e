"""A small action-conditioned video world model: residual EDM on linear patch latents."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor, nn

from configs.world_model import EmbeddedWorldModelConfig, WorldModelConfig
from contracts.constants import NEW_FRAMES, NO_VERSION
from contracts.kinematics import pose_features
from contracts.types import StartState
from models.embedded.denoiser import HAND, NOW, WorldModelNet, WorldModelSizes
from models.embedded.layers import fresh, normal
from models.embedded.rows import in_groups, noise_of
from models.embedded.store import read_checkpoint, stored_sizes, write_checkpoint
from models.interfaces import Batch, WorldModelBatch

_KIND = "embedded_world_model"
FIRST_FRAME = -1_000_000  # clipped to 0: the first frame of the episode, however long it is
HISTORY = (FIRST_FRAME, -12, -8, -4, -2, -1)
_LEAST_STD = 0.01


@dataclass(slots=True)
class Slot:
    """All memory of one imagined trajectory: row k of both lists is its frame k at 5 Hz.

    The current frame's pose is known when its chunk is asked for, so ``poses`` may lag by one.
    """

    seed: int
    latents: list[Float[Tensor, "components rows columns"]]
    poses: list[Float32[np.ndarray, " 7"]] = field(default_factory=list)
    chunk: int = 0


def history_rows(now: int) -> list[int]:
    """Frames of an episode that are the history of frame ``now``."""
    return [max(now + offset, 0) for offset in HISTORY]


class EmbeddedWorldModel:
    """Predicts four frames as changes of the current one, given poses of past and future.

    A window is six frames of history at ``history_offsets`` from the current one, the current one
    and the four to come. The first of the history is the episode's first frame: real and sharp
    however long the imagination, as in Ctrl-World's policy rollouts. With one sampler step the
    answer is nearly the mean of the possible futures, so what cannot be known is blurred.
    Instructions are not used.
    """

    history_offsets: tuple[int, ...] = HISTORY

    def __init__(self, cfg: WorldModelConfig, frame_size: tuple[int, int], seed: int) -> None:
        patch = cfg.embedded.patch
        if frame_size[0] % patch or frame_size[1] % patch:
            raise ValueError(
                f"views of {frame_size} pixels are no multiples of world_model.embedded.patch="
                f"{patch}: change robot.height and robot.width"
            )
        own = cfg.embedded
        self.version = NO_VERSION
        self.frame_size = frame_size
        self._cfg = own
        self._sizes = WorldModelSizes(
            list(own.channels), own.blocks, own.patch, own.latent, list(frame_size)
        )
        self._net: WorldModelNet = fresh(lambda: WorldModelNet(self._sizes), seed)

    @classmethod
    def load(cls, cfg: WorldModelConfig, folder: Path, version: int) -> "EmbeddedWorldModel":
        """The world model stored in ``folder``, for the frame size it was trained on.

        Raises:
            ValueError: sizes, kind or format differ from the config's.
        """
        height, width = stored_sizes(folder, _KIND)["frame_size"]
        model = cls(cfg, (height, width), seed=0)
        read_checkpoint(folder, _KIND, asdict(model._sizes), model._net)
        model.version = version
        return model

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Write model.safetensors and config.json; ``half`` stores float16 weights."""
        write_checkpoint(folder, _KIND, asdict(self._sizes), self._net, half)

    def module(self) -> nn.Module:
        return self._net

    @torch.no_grad()
    def fit_statistics(self, batch: Batch) -> None:
        """Fit the patch components, the wrist camera and the scales of poses, motions and
        residuals."""
        batch = _window_batch(batch)
        net = self._net
        frames = torch.from_numpy(batch.frames[:, NOW:])
        net.latents.fit(frames.flatten(0, 1))
        poses = torch.from_numpy(pose_features(batch.poses))
        motion = (poses - poses[:, NOW : NOW + 1]).flatten(0, 1)
        net.pose_mean.copy_(poses[:, NOW].mean(dim=0))
        net.pose_std.copy_(poses[:, NOW].std(dim=0).clamp_min(_LEAST_STD))
        net.motion_std.copy_(motion.square().mean(dim=0).sqrt().clamp_min(_LEAST_STD))
        hand = frames[:, :, HAND].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        net.hand_camera.fit(hand, poses[:, NOW:])
        latents = self._encode(batch.frames[:, NOW:])
        residual = latents[:, 1:] - net.carried(latents[:, 0], poses)
        net.residual_std.copy_(residual.square().mean(dim=(0, 2, 3, 4)).sqrt().clamp_min(1e-3))
        spread = latents.square().mean(dim=(0, 1, 3, 4)).sqrt()
        net.latent_std.copy_((spread * spread.max()).sqrt().clamp_min(1e-3))

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """EDM loss of each window; ln sigma is normal with the configured moments.

        Known frames get noise, and the target is the change from the *noisy* current frame, so the
        model learns to clean what it made itself. Weighting patches by how much they move was
        tried and lost 0.35 dB on held-out episodes.
        """
        batch = _window_batch(batch)
        latents = self._encode(batch.frames)
        poses = torch.from_numpy(pose_features(batch.poses)).to(latents.device)
        draws = _Draws.sample(latents, self._cfg, generator)
        scale = self._net.residual_std[:, None, None, None]
        known = latents[:, : NOW + 1]
        known = known + draws.level * scale[-1] * draws.known
        carried = self._net.carried(known[:, NOW], poses)
        target = (latents[:, NOW + 1 :] - carried) / scale
        noisy = target + draws.sigma[:, None, None, None, None] * draws.noise
        guess = self._net.denoise(noisy, draws.sigma, known, carried, poses)
        error = (guess - target).square().mean(dim=(1, 2, 3, 4))
        return error * (1 + draws.sigma**-2)

    @torch.no_grad()
    def begin(self, start: StartState, seed: int) -> Slot:
        """Encode the first frame. Raises ValueError where its size is not the model's."""
        if start.frame.shape[1:3] != self.frame_size:
            raise ValueError(
                f"a start frame of {start.frame.shape[1:3]} pixels does not fit a world model of "
                f"{self.frame_size}: set robot.height and robot.width"
            )
        latent = self._encode(start.frame[None, None])[0, 0]
        return Slot(seed, [latent])

    @torch.no_grad()
    def imagine(
        self, slots: Sequence[Slot], poses: Float32[np.ndarray, "slot 5 7"]
    ) -> UInt8[np.ndarray, "slot 4 3 height width 3"]:
        """Advance each slot by one chunk and return its four new frames.

        A slot's frames depend on its start, its poses and its seed alone, bitwise: not on the
        batch. Slots change only once all frames are there.

        Raises:
            ValueError: there are not as many rows of poses as slots.
        """
        if len(slots) != len(poses):
            raise ValueError(f"{len(slots)} slots need as many rows of poses, got {len(poses)}")
        height, width = self.frame_size
        if not slots:
            return np.zeros((0, NEW_FRAMES, 3, height, width, 3), np.uint8)
        rows = [self._inputs(slot, path) for slot, path in zip(slots, poses, strict=True)]
        new = in_groups(self._sample, *(torch.stack(column) for column in zip(*rows, strict=True)))
        frames = in_groups(
            lambda one: self._net.latents.decode(one.flatten(0, 1)).unflatten(0, one.shape[:2]), new
        )
        for slot, path, latents in zip(slots, poses, new, strict=True):
            slot.poses[len(slot.latents) - 1 :] = list(path)
            slot.latents.extend(latents.clone())
            slot.chunk += 1
        return frames.cpu().numpy()

    def _inputs(self, slot: Slot, path: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Known latents (7, C, h, w), pose features (11, 10) and noise (4, C, h, w) of a slot."""
        now = len(slot.latents) - 1
        rows = history_rows(now)
        past = [path[0] if row == now else slot.poses[row] for row in rows]
        poses = torch.from_numpy(pose_features(np.concatenate([past, path]).astype(np.float32)))
        known = torch.stack([slot.latents[row] for row in (*rows, now)])
        noise = noise_of([slot.seed, slot.chunk], (NEW_FRAMES, *known.shape[1:]))
        return known, poses.to(known.device), noise.to(known.device)

    def _sample(self, known: Tensor, poses: Tensor, noise: Tensor) -> Tensor:
        """Euler steps on a geometric ladder of noise levels that ends at zero.

        What a single step leaves of the noise it began with stays in the frames and adds up over
        chunks; an undertrained denoiser answers best from less noise than the level says.
        """
        steps, top = self._cfg.sampler_steps, self._cfg.sigma_max
        ladder = [top * (0.05 / top) ** (step / max(steps - 1, 1)) for step in range(steps)]
        x = noise * (top * self._cfg.start_noise)
        carried = self._net.carried(known[:, NOW], poses)
        for sigma, below in zip(ladder, [*ladder[1:], 0.0], strict=True):
            level = torch.full((len(x),), sigma, device=x.device)
            clean = self._net.denoise(x, level, known, carried, poses)
            x = clean + (x - clean) * (below / sigma)
        return carried + x * self._net.residual_std[:, None, None, None]

    def _encode(
        self, frames: UInt8[np.ndarray, "batch frame 3 height width 3"]
    ) -> Float[Tensor, "batch frame components rows columns"]:
        flat = torch.from_numpy(frames.reshape(-1, *frames.shape[2:]))
        latents = self._net.latents.encode(flat.to(self._net.residual_std.device))
        return latents.unflatten(0, frames.shape[:2])


@dataclass(frozen=True, slots=True)
class _Draws:
    """All randomness of one training step."""

    sigma: Float[Tensor, " batch"]
    noise: Float[Tensor, "batch 4 components rows columns"]
    level: Float[Tensor, "batch 1 1 1 1"]  # of the noise on known frames
    known: Float[Tensor, "batch 7 components rows columns"]

    @classmethod
    def sample(
        cls, latents: Tensor, cfg: EmbeddedWorldModelConfig, generator: torch.Generator
    ) -> "_Draws":
        count, _, *cell = latents.shape
        device = latents.device
        log_sigma = torch.randn(count, generator=generator) * cfg.log_sigma_std
        noise = normal((count, NEW_FRAMES, *cell), generator, device)
        level = cfg.history_noise * torch.rand(count, 1, 1, 1, 1, generator=generator)
        known = normal((count, NOW + 1, *cell), generator, device)
        sigma = (log_sigma + cfg.log_sigma_mean).exp()
        return cls(sigma.to(device), noise, level.to(device), known)


def _window_batch(batch: Batch) -> WorldModelBatch:
    if not isinstance(batch, WorldModelBatch):
        raise ValueError(f"a world model trains on WorldModelBatch, got {type(batch).__name__}")
    return batch
