"""A small video classifier that judges whether a clip shows its instruction completed."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from configs.reward import RewardConfig
from contracts.constants import NO_VERSION, VIEWS
from contracts.types import Clip, Score
from models.embedded.augment import random_blur, random_light, random_shift
from models.embedded.layers import fresh, normal
from models.embedded.rows import in_groups
from models.embedded.store import read_checkpoint, write_checkpoint
from models.embedded.words import hashed_words
from models.interfaces import Batch, RewardBatch

_KIND = "embedded_reward"
_LAST = 3  # frames of the ending
_SEEN = 2 + _LAST  # first, middle, and the ending
_GRID = (3, 5)  # cells that a view is pooled to, whatever its size
_LIGHT, _NOISE = 0.08, 0.04


@dataclass(frozen=True, slots=True)
class RewardSizes:
    """Everything that fixes the shapes of the weights."""

    width: int
    words: int


class RewardNet(nn.Module):
    """Frames to features by view, instruction as a gate, two logits: yes and no."""

    pixel_mean: Tensor

    def __init__(self, sizes: RewardSizes) -> None:
        super().__init__()
        width = sizes.width
        self.convolutions = nn.Sequential(
            nn.Conv2d(3, 16, 5, stride=2, padding=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(32, 48, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(_GRID),
        )
        cells = 48 * _GRID[0] * _GRID[1]
        self.views = nn.ModuleList(nn.Linear(cells, width) for _ in VIEWS)
        frame = len(VIEWS) * width
        self.gate = nn.Linear(sizes.words, 2 * frame, bias=False)
        self.head = nn.Sequential(
            nn.Linear(4 * frame + sizes.words, 64), nn.SiLU(), nn.Linear(64, 2)
        )
        self.register_buffer("pixel_mean", torch.zeros(3))
        # Strong gates from the start: two instructions that ask opposite things of the same frames
        # differ by an exclusive or, and small gates never leave its saddle point.
        nn.init.normal_(self.gate.weight)

    def forward(
        self,
        frames: Float[Tensor, "batch 15 3 height width"],
        words: Float[Tensor, "batch words"],
    ) -> Float[Tensor, "batch 2"]:
        """Logits of yes and no. ``frames``: 5 moments of 3 views, moment by moment."""
        batch = len(frames)
        cells = self.convolutions(frames.flatten(0, 1) - self.pixel_mean[:, None, None])
        by_view = cells.flatten(1).view(batch, _SEEN, len(VIEWS), -1)
        parts = [layer(by_view[:, :, index]) for index, layer in enumerate(self.views)]
        gain, offset = self.gate(words)[:, None].chunk(2, dim=-1)
        moments = functional.silu(torch.cat(parts, dim=-1) * (1 + gain) + offset)
        first, middle, ending = moments[:, 0], moments[:, 1], moments[:, 2:].mean(dim=1)
        summary = torch.cat([first, middle, ending, ending - first, words], dim=-1)
        return self.head(summary)


class EmbeddedReward:
    """Looks at a clip's first and middle frame and its last three, in all views.

    Two logits, softmax; so ``mass`` is one. Trained from scratch on labels: it knows nothing but
    the tasks it has seen, unlike the vision-language model it stands for.
    """

    def __init__(self, cfg: RewardConfig, seed: int) -> None:
        self.version = NO_VERSION
        self._sizes = RewardSizes(cfg.embedded.width, cfg.embedded.words)
        self._net: RewardNet = fresh(lambda: RewardNet(self._sizes), seed)

    @classmethod
    def load(cls, cfg: RewardConfig, folder: Path, version: int) -> "EmbeddedReward":
        """The model stored in ``folder``. Raises ValueError where sizes or format differ."""
        model = cls(cfg, seed=0)
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
        """Set the mean colour."""
        batch = _reward_batch(batch)
        means = [_moments(clip).mean(axis=(0, 1, 2), dtype=np.float64) for clip in batch.clips]
        self._net.pixel_mean.copy_(torch.from_numpy(np.mean(means, axis=0)) / 127.5 - 1)

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Cross-entropy of the answer, on shifted, relit, noisy and half of the time blurred clips:
        the judged clips are imagined, and imagined frames are smeared."""
        batch = _reward_batch(batch)
        frames, words = self._inputs(batch.clips)
        pixels = max(1, frames.shape[2] // 24)
        moved = random_shift(frames.flatten(0, 1), pixels, generator).view_as(frames)
        seen = random_light(random_blur(_centred(moved), generator), _LIGHT, generator)
        noise = normal(seen.shape, generator, seen.device)
        logits = self._net(seen + _NOISE * noise, words)
        answers = torch.from_numpy(~batch.success).long().to(logits.device)
        return functional.cross_entropy(logits, answers, reduction="none")

    @torch.no_grad()
    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """P('yes') of each clip, in order; a clip's score never depends on its batch."""
        if not clips:
            return []
        frames, words = self._inputs(clips)
        logits = in_groups(
            lambda part, said: self._net(_centred(part), said), frames, words, size=1
        )
        return [Score(p_yes=float(row[0]), mass=1.0) for row in logits.double().softmax(dim=1)]

    def _inputs(
        self, clips: Sequence[Clip]
    ) -> tuple[UInt8[Tensor, "batch 15 height width 3"], Float[Tensor, "batch words"]]:
        device = self._net.pixel_mean.device
        frames = torch.from_numpy(np.stack([_moments(clip) for clip in clips]))
        words = hashed_words([clip.instruction for clip in clips], self._sizes.words)
        return frames.to(device), words.to(device)


def _moments(clip: Clip) -> UInt8[np.ndarray, "15 height width 3"]:
    """First, middle and last three frames of all views; a short clip repeats its first ones."""
    last = len(clip.frames) - 1
    ending = [max(last - back, 0) for back in reversed(range(_LAST))]
    chosen = clip.frames[[0, last // 2, *ending]]
    return chosen.reshape(-1, *chosen.shape[2:])


def _centred(frames: UInt8[Tensor, "batch frames height width 3"]) -> Tensor:
    return frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1


def _reward_batch(batch: Batch) -> RewardBatch:
    if not isinstance(batch, RewardBatch):
        raise ValueError(f"a reward model trains on RewardBatch, got {type(batch).__name__}")
    return batch
