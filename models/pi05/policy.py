"""pi0.5 on a DROID rig: observations in, chunks of joint velocities out, flow matching to train."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor

from configs.policy import PolicyConfig
from contracts.constants import ACTION_DIM, NO_VERSION, VIEWS
from contracts.types import ActionChunk, Observation
from models.interfaces import Batch, PolicyBatch
from models.lora import has_lora
from models.pi05.augmentation import augment
from models.pi05.checkpoint import WEIGHTS_FILE, read_network, write_network
from models.pi05.identity import check_identity, stats_path, write_identity
from models.pi05.network import Pi05Inputs, Pi05Network, build_network, sample_time
from models.pi05.tokenizer import build_tokenizer, tokenise_batch
from models.pi05.transforms import (
    NormStats,
    absolute_actions,
    delta_actions,
    fit_statistics,
    images_to_float,
    pad_last,
    positions_from_velocity,
    read_norm_stats,
    resize_with_pad,
    velocity_from_positions,
    write_norm_stats,
)

WRIST = VIEWS.index("wrist")


@dataclass(frozen=True, slots=True)
class RawInputs:
    """Observations in columns, as the robot gave them."""

    images: UInt8[np.ndarray, "batch 3 height width 3"]
    joint_position: Float32[np.ndarray, "batch 7"]
    gripper_position: Float32[np.ndarray, " batch"]
    instructions: Sequence[str]

    @property
    def state(self) -> Float32[np.ndarray, "batch 8"]:
        return np.concatenate([self.joint_position, self.gripper_position[:, None]], axis=1)


class Pi05Policy:
    """A ``TrainablePolicy``: sees one exterior and the wrist view; the third slot of pi0.5, which
    is masked on DROID, is left out (exact: masked tokens are never read)."""

    def __init__(self, cfg: PolicyConfig, seed: int, network: Pi05Network | None = None) -> None:
        """``network`` replaces the fresh weights that ``seed`` draws."""
        self.version = NO_VERSION
        self.cfg = cfg
        self.network = network if network is not None else build_network(cfg.pi05, seed)
        self.stats: NormStats | None = None
        self._tokenizer = build_tokenizer(cfg.pi05)

    @classmethod
    def load(cls, cfg: PolicyConfig, folder: Path, version: int) -> "Pi05Policy":
        """Read a folder in openpi's layout, by ``save``, openpi or lerobot.

        Raises:
            ValueError: a file is missing, a tensor does not fit the config, or the weights were
                made for other sizes, another tokenizer or another action space.
        """
        check_identity(cfg.pi05, build_tokenizer(cfg.pi05).name, folder)
        with torch.device("meta"):
            network = Pi05Network(cfg.pi05)
        read_network(network, folder / WEIGHTS_FILE)
        policy = cls(cfg, seed=0, network=network)
        policy.stats = read_norm_stats(stats_path(cfg.pi05, folder), ACTION_DIM)
        policy.version = version
        return policy

    def save(self, folder: Path) -> None:
        """Write model.safetensors, assets/<asset_id>/norm_stats.json and what they mean.

        The action expert's dead ``lm_head`` is left out; ``export_openpi`` adds it.
        """
        self._write(folder, expert_head=False)

    def export_openpi(self, folder: Path) -> None:
        """Write a folder that stock openpi serves: ``save`` and the dead ``lm_head`` it wants."""
        self._write(folder, expert_head=True)

    def _write(self, folder: Path, expert_head: bool) -> None:
        write_norm_stats(stats_path(self.cfg.pi05, folder), self._stats())
        write_network(self.network, folder / WEIGHTS_FILE, expert_head)
        write_identity(self.cfg.pi05, self._tokenizer.name, folder)

    def module(self) -> Pi05Network:
        """The network; with ``policy.pi05.lora_rank`` it has adapters from the first call on."""
        if self.cfg.pi05.lora_rank and not has_lora(self.network):
            self.network.adapt(self.cfg.pi05, self.cfg.train.seed)
        return self.network

    def fit_statistics(self, batch: Batch) -> None:
        """Take quantiles of states and actions; see ``transforms.fit_statistics``."""
        batch = _policy_batch(batch)
        actions = self._to_model_space(batch).reshape(-1, ACTION_DIM)
        self.stats = NormStats(fit_statistics(_raw(batch).state), fit_statistics(actions))

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Mean squared velocity error of each sample, over the horizon and all 32 coordinates.

        Padding coordinates and the repeated tail of an episode count, as in openpi. Images are
        augmented while the network is in training mode. ``generator`` lives on the CPU.
        """
        batch = _policy_batch(batch)
        raw, device = _raw(batch), self._device
        actions = self._stats().actions.normalise(self._to_model_space(batch))
        padded = pad_last(actions, self.cfg.pi05.action_dim).astype(np.float32)
        time = sample_time(len(padded), generator).to(device)
        noise = torch.randn(padded.shape, generator=generator).to(device)
        inputs = self._inputs(raw, generator if self._augments else None)
        error = self.network(inputs, torch.from_numpy(padded).to(device), noise, time)
        return error.mean((1, 2))

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """Sample one chunk per observation from noise drawn by its own seed.

        Actions are not clipped: envs/safety.py decides what the arm may do.
        """
        return self.act_from_noise(observations, [self._noise(seed) for seed in seeds])

    def act_from_noise(
        self,
        observations: Sequence[Observation],
        noise: Sequence[Float32[np.ndarray, "horizon dim"]],
    ) -> list[ActionChunk]:
        """``act`` from given noise, in normalised and padded coordinates.

        On a CPU rows run one by one, so the bits of a row do not depend on its companions; a GPU
        runs them together and rows agree to rounding.
        """
        if not observations:
            return []
        rows = 1 if self._device.type == "cpu" else len(observations)
        chunks: list[ActionChunk] = []
        for start in range(0, len(observations), rows):
            part = slice(start, start + rows)
            actions = self._sample(observations[part], np.stack(noise[part]))
            chunks += [ActionChunk(row, self.version) for row in actions]
        return chunks

    def _sample(
        self,
        observations: Sequence[Observation],
        noise: Float32[np.ndarray, "batch horizon dim"],
    ) -> Float32[np.ndarray, "batch horizon 8"]:
        raw = RawInputs(
            np.stack([seen.images for seen in observations]),
            np.stack([seen.state.joint_position for seen in observations]),
            np.array([seen.state.gripper_position for seen in observations], np.float32),
            [seen.instruction for seen in observations],
        )
        start = torch.from_numpy(noise).to(self._device)
        low = self.cfg.pi05.dtype == "bfloat16"
        with torch.no_grad(), torch.autocast(self._device.type, torch.bfloat16, enabled=low):
            padded = self.network.sample(self._inputs(raw, None), start, self.cfg.flow_steps)
        actions = self._stats().actions.unnormalise(padded.cpu().numpy())[..., :ACTION_DIM]
        if self.cfg.pi05.action_space == "joint_position":
            positions = absolute_actions(actions, raw.joint_position)
            actions = velocity_from_positions(positions, raw.joint_position)
        return actions.astype(np.float32)

    def _to_model_space(self, batch: PolicyBatch) -> Float[np.ndarray, "batch horizon 8"]:
        """Joint velocities as the network knows them, before normalisation."""
        if self.cfg.pi05.action_space == "joint_velocity":
            return batch.actions
        positions = positions_from_velocity(batch.actions, batch.joint_position)
        return delta_actions(positions, batch.joint_position)

    def _inputs(self, raw: RawInputs, generator: torch.Generator | None) -> Pi05Inputs:
        """Two image slots, augmented when there is a generator, and the prompt."""
        cfg = self.cfg.pi05
        state = self._stats().state.normalise(raw.state)
        tokens, mask = tokenise_batch(self._tokenizer, raw.instructions, state, cfg.max_token_len)
        views = raw.images[:, [cfg.exterior_view, WRIST]]
        resized = np.stack(
            [[resize_with_pad(view, cfg.image_size) for view in row] for row in views]
        )
        images = torch.from_numpy(images_to_float(resized)).to(self._device)
        if generator is not None:
            images = augment(images, generator)
        return Pi05Inputs(
            images,
            torch.ones(images.shape[:2], dtype=torch.bool, device=self._device),
            torch.from_numpy(tokens).to(self._device),
            torch.from_numpy(mask).to(self._device),
        )

    def _noise(self, seed: int) -> Float32[np.ndarray, "horizon dim"]:
        generator = torch.Generator().manual_seed(seed)
        shape = (self.cfg.horizon, self.cfg.pi05.action_dim)
        return (self.cfg.noise * torch.randn(shape, generator=generator)).numpy()

    @property
    def _augments(self) -> bool:
        return self.cfg.pi05.augment and self.network.training

    @property
    def _device(self) -> torch.device:
        return self.network.action_in_proj.weight.device

    def _stats(self) -> NormStats:
        if self.stats is None:
            raise ValueError(
                "pi0.5 has no normalisation yet: call fit_statistics, or load a checkpoint"
            )
        return self.stats


def _policy_batch(batch: Batch) -> PolicyBatch:
    if not isinstance(batch, PolicyBatch):
        raise ValueError(f"a policy trains on PolicyBatch, got {type(batch).__name__}")
    return batch


def _raw(batch: PolicyBatch) -> RawInputs:
    return RawInputs(batch.images, batch.joint_position, batch.gripper_position, batch.instructions)
