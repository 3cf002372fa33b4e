"""Ctrl-World as a trainable world model: windows to losses, slots to imagined frames."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from torch import Tensor
from transformers import CLIPTokenizer

from configs.world_model import WorldModelConfig
from contracts.constants import NEW_FRAMES, NO_VERSION
from contracts.seeds import fold
from contracts.types import LatentFormat, StartState
from models.ctrl_world.autoencoder import decode, encode, encoder_checksum, posterior
from models.ctrl_world.checkpoint import load_state, read_state, save_safetensors
from models.ctrl_world.diffusion import (
    Conditions,
    Sampler,
    TrainingDraws,
    sample,
    training_loss,
)
from models.ctrl_world.history import (
    PoseRange,
    history_offsets,
    history_positions,
    pose_table,
    upstream_offsets,
)
from models.ctrl_world.latents import (
    LATENT_SCALE,
    NUM_VIEWS,
    check_frame_size,
    draw,
    latent_shape,
    to_uint8,
)
from models.ctrl_world.network import TEXT_TOKENS, CtrlWorldNetwork
from models.interfaces import Batch, LatentBatch, WorldModelBatch

WEIGHTS = "model.safetensors"
SETTINGS = "world_model.json"
STATISTICS = "stat.json"  # upstream's name and keys
PUBLISHED_SIZE = (192, 320)
Windows = WorldModelBatch | LatentBatch


@dataclass(slots=True)
class Slot:
    """All memory of one imagined trajectory. Entry k of both lists is the frame before chunk k;
    a pose is known when its chunk is asked for."""

    seed: int
    instruction: str
    latents: list[Float[Tensor, "4 rows columns"]]
    poses: list[Float[np.ndarray, " 7"]] = field(default_factory=list)

    def remember(self, poses: Float[np.ndarray, "5 7"], latents: Float[Tensor, "5 4 r c"]) -> None:
        """Append a finished chunk: the pose it began at and the latent it ended with."""
        self.poses.append(poses[0])
        self.latents.append(latents[-1].clone())  # not a view that keeps all five frames


class CtrlWorldModel:
    """Implements ``TrainableWorldModel`` and ``LatentCoder``.

    ``history_offsets`` are the 5 Hz offsets of the six history frames from the current frame in a
    training window (-1000000: the episode's first frame). They follow from
    ``cfg.ctrl_world.history_ids``, so training sees what imagining sees; with
    ``cfg.ctrl_world.windows="upstream"`` it sees ``window_offsets`` instead.

    Its VAE is frozen: with random weights latents mean little, so losses and frames of an
    untrained VAE exercise the machinery and judge nothing.

    Raises:
        ValueError: ``frame_size`` (height, width) does not suit the UNet; says one that does.
    """

    def __init__(self, cfg: WorldModelConfig, frame_size: tuple[int, int], seed: int) -> None:
        check_frame_size(*frame_size)
        self.cfg = cfg.ctrl_world
        self.frame_size = frame_size
        self.version = NO_VERSION
        self.pose_range = PoseRange()
        self.history_offsets = history_offsets(self.cfg.history_ids)
        self.window_offsets = (
            upstream_offsets()
            if self.cfg.windows == "upstream"
            else ((*self.history_offsets, *range(1 + NEW_FRAMES)),)
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.network = CtrlWorldNetwork(self.cfg)
        self._tokenizer = (
            CLIPTokenizer.from_pretrained(self.cfg.tokenizer) if self.cfg.tokenizer else None
        )

    def module(self) -> CtrlWorldNetwork:
        """UNet and action encoder train; VAE and text encoder ride along, frozen."""
        return self.network

    @property
    def device(self) -> torch.device:
        return self.network.unet.device

    def fit_statistics(self, batch: Batch) -> None:
        """Normalise poses by this batch's percentiles instead of DROID's published ones."""
        self.pose_range = PoseRange.fit(_windows(batch).poses)

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """EDM loss of each window. Frames are encoded here, with the frozen VAE; stored moments
        take the place of that, and the same draws make the same latents of them.

        Raises:
            ValueError: a batch of another kind, or stored latents of another size.
        """
        windows = _windows(batch)
        return self.latent_loss(self.latents(windows, generator), windows, generator)

    def latents(
        self, windows: Windows, generator: torch.Generator
    ) -> Float[Tensor, "batch window 4 rows columns"]:
        """A sample of each frame's posterior, scaled.

        Frames are encoded one window at a time, so memory does not grow with the batch.
        """
        if isinstance(windows, LatentBatch):
            moments = torch.from_numpy(windows.moments).to(self.device)
        else:
            moments = torch.stack(
                [
                    posterior(self.network.vae, torch.from_numpy(window).to(self.device))
                    for window in windows.frames
                ]
            )
        count, window, _, *shape = moments.shape
        if tuple(shape) != latent_shape(*self.frame_size):
            raise ValueError(
                f"latents of {tuple(shape)} do not fit views of {self.frame_size} pixels, which "
                f"are {latent_shape(*self.frame_size)}: set robot.height and robot.width"
            )
        noise = torch.randn((count, window, *shape), generator=generator)
        return draw(moments, noise.to(self.device))

    def latent_format(self) -> LatentFormat:
        """What stored latents must agree with to stand for this VAE's."""
        key = encoder_checksum(self.network.vae)
        return LatentFormat(key, LATENT_SCALE, latent_shape(*self.frame_size))

    def latent_moments(
        self, frames: UInt8[np.ndarray, "frame 3 height width 3"]
    ) -> Float32[np.ndarray, "frame 2 4 rows columns"]:
        """Scaled mean and standard deviation of the posterior of each frame."""
        pixels = torch.from_numpy(frames).to(self.device)
        return posterior(self.network.vae, pixels).cpu().numpy()

    def latent_loss(
        self,
        latents: Float[Tensor, "batch window 4 rows columns"],
        windows: Windows,
        generator: torch.Generator,
    ) -> Float[Tensor, " batch"]:
        """``loss`` of given latents; of the windows, poses and instructions are read."""
        draws = TrainingDraws.sample(tuple(latents.shape), generator).to(self.device)
        poses = torch.from_numpy(self.pose_range.normalise(windows.poses)).to(self.device)
        context = self.network.context(poses, self._embed(windows.instructions))
        return training_loss(self.network, latents, context, draws)

    @torch.no_grad()
    def begin(self, start: StartState, seed: int) -> Slot:
        """Encode the first frame; the posterior's draw comes from ``seed``.

        Raises:
            ValueError: the frame has another size than the model.
        """
        if start.frame.shape[1:3] != self.frame_size:
            raise ValueError(
                f"a start frame of {start.frame.shape[1:3]} pixels does not fit a world model of "
                f"{self.frame_size}: set robot.height and robot.width"
            )
        frame = torch.from_numpy(start.frame).to(self.device)[None]
        latent = encode(self.network.vae, frame, self._noise(seed, 0, 1))[0]
        return Slot(seed, start.instruction, [latent])

    @torch.no_grad()
    def imagine(
        self, slots: Sequence[Slot], poses: Float32[np.ndarray, "slot 5 7"]
    ) -> UInt8[np.ndarray, "slot 4 3 height width 3"]:
        """Advance each slot by one chunk and return its four new frames.

        ``cfg.ctrl_world.batch_slots`` at a time. By default one: the full-size UNet fills a GPU
        with one clip and its guidance twin (ten trajectories take ten times as long, upstream
        issue 15), and kernels that never see another batch size give a slot the same bits in any
        company. More share kernels, which small models need to fill a GPU: every slot keeps its
        own noise and state, but its last bits depend on how many are computed together. Slots
        change only once all frames are there.

        Raises:
            ValueError: there are not as many rows of poses as slots.
        """
        if len(slots) != len(poses):
            raise ValueError(f"{len(slots)} slots need as many rows of poses, got {len(poses)}")
        chunks = [latents for group in self._groups(slots, poses) for latents in group]
        frames = np.empty((len(slots), NEW_FRAMES, NUM_VIEWS, *self.frame_size, 3), np.uint8)
        for row, latents in zip(frames, chunks, strict=True):
            images = to_uint8(decode(self.network.vae, latents, self.cfg.official_decode))
            row[:] = images[1:].cpu().numpy()
        for slot, path, latents in zip(slots, poses, chunks, strict=True):
            slot.remember(path, latents)
        return frames

    @torch.no_grad()
    def predict(
        self,
        slots: Sequence[Slot],
        poses: Float[np.ndarray, "slot future 7"],
        noise: Float[Tensor, "slot future 4 rows columns"],
    ) -> Float[Tensor, "slot future 4 rows columns"]:
        """One chunk of each slot from unit ``noise``, in one batch; slots stay as they are.

        Returns scaled latents of the current frame, generated anew, and those after it. History
        stays in latents: it is never decoded and encoded again.
        """
        ids = self.cfg.history_ids
        tables = [
            self.pose_range.normalise(pose_table([*slot.poses, path[0]], ids, path))
            for slot, path in zip(slots, poses, strict=True)
        ]
        past = [[s.latents[at] for at in history_positions(len(s.latents), ids)] for s in slots]
        with torch.autocast(self.device.type, torch.bfloat16, self.cfg.dtype == "bfloat16"):
            context = self.network.context(
                torch.from_numpy(np.stack(tables)).to(self.device),
                self._embed([slot.instruction for slot in slots]),
            )
            given = Conditions(
                torch.stack([torch.stack(frames) for frames in past]).to(self.device),
                torch.stack([slot.latents[-1] for slot in slots]).to(self.device),
                context,
            )
            sampler = Sampler(self.cfg.sampler_steps, self.cfg.guidance)
            return sample(self.network, given, noise.to(self.device), sampler)

    def _groups(
        self, slots: Sequence[Slot], poses: Float32[np.ndarray, "slot 5 7"]
    ) -> Iterator[Float[Tensor, "group 5 4 rows columns"]]:
        """Chunks of ``batch_slots`` slots at a time."""
        for first in range(0, len(slots), self.cfg.batch_slots):
            group = slots[first : first + self.cfg.batch_slots]
            noises = [self._noise(slot.seed, len(slot.latents), 1 + NEW_FRAMES) for slot in group]
            yield self.predict(group, poses[first : first + len(group)], torch.stack(noises))

    def _noise(self, seed: int, chunk: int, frames: int) -> Float[Tensor, "frames 4 rows columns"]:
        """One chunk's randomness, whoever computes it, in whatever company; 0 is the encoding."""
        generator = torch.Generator().manual_seed(fold(seed, "ctrl_world", chunk))
        shape = (frames, *latent_shape(*self.frame_size))
        return torch.randn(shape, generator=generator).to(self.device)

    def _embed(self, instructions: Sequence[str]) -> Float[Tensor, "batch projection"] | None:
        """CLIP's embedding of each instruction; None without a tokenizer. "" is an instruction."""
        if self._tokenizer is None:
            return None
        tokens = self._tokenizer(
            list(instructions),
            padding="max_length",
            max_length=TEXT_TOKENS,
            truncation=True,
            return_tensors="pt",
        )
        with torch.no_grad():
            return self.network.embed_text(tokens["input_ids"].to(self.device))

    def save(self, folder: Path) -> None:
        """Weights under published names, upstream's stat.json, and the frame size."""
        save_safetensors(self.network, folder / WEIGHTS)
        low, high = self.pose_range.low, self.pose_range.high
        (folder / STATISTICS).write_text(json.dumps({"state_01": low, "state_99": high}))
        (folder / SETTINGS).write_text(json.dumps({"frame_size": self.frame_size}))

    @classmethod
    def load(cls, cfg: WorldModelConfig, folder: Path, version: int) -> "CtrlWorldModel":
        """Load what ``save`` wrote, or a folder with the published ``.pt`` alone.

        The latter gets the published frame size and pose statistics.

        Raises:
            ValueError: no weights, several ``.pt`` files, or weights of other widths.
        """
        settings, statistics = folder / SETTINGS, folder / STATISTICS
        size = PUBLISHED_SIZE
        if settings.is_file():
            height, width = json.loads(settings.read_text())["frame_size"]
            size = (height, width)
        model = cls(cfg, size, seed=0)
        load_state(model.network, read_state(weights_file(folder)))
        if statistics.is_file():
            stat = json.loads(statistics.read_text())
            model.pose_range = PoseRange(tuple(stat["state_01"]), tuple(stat["state_99"]))
        model.version = version
        return model


def _windows(batch: Batch) -> Windows:
    if not isinstance(batch, Windows):
        raise ValueError(f"a world model trains on WorldModelBatch, got {type(batch).__name__}")
    return batch


def weights_file(folder: Path) -> Path:
    """The one file of weights in ``folder``; raises ValueError where there is none or several."""
    if (folder / WEIGHTS).is_file():
        return folder / WEIGHTS
    found = sorted(folder.glob("*.pt"))
    if len(found) != 1:
        raise ValueError(
            f"{folder} holds no {WEIGHTS} and {len(found)} .pt files; "
            "set world_model.checkpoint to a folder with one checkpoint"
        )
    return found[0]
