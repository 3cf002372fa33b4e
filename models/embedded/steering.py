"""What chooses the noise of a policy that stays as it is (DSRL)."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

FILE = "steering.safetensors"  # beside the weights of the policy that is steered
_LOG_STD = (-20.0, 2.0)  # Stable-Baselines3's bounds


class Steering(nn.Module):
    """A squashed Gaussian over the mean of a chunk's noise, in units in which a policy that nobody
    steers has a standard normal.

    A chunk's noise has 15 x 8 numbers, too many to choose from some hundred decisions, and repeated
    noise is none that the policy was trained with. Its mean over the chunk has 8, what is around
    the mean stays random, and every rollout of the unsteered policy tells what its own led to.

    Source: Wagenmaker et al. 2025 (arXiv 2506.15799), who choose one noise and repeat it.
    """

    bound: Tensor

    def __init__(self, features: int, dim: int, width: int, bound: float) -> None:
        super().__init__()
        self.hidden = nn.Sequential(
            nn.Linear(features, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.mean, self.log_std = nn.Linear(width, dim), nn.Linear(width, dim)
        self.register_buffer("bound", torch.tensor(bound))

    def forward(
        self, features: Float[Tensor, "batch features"], own: Float[Tensor, "batch dim"]
    ) -> Float[Tensor, "batch dim"]:
        """The mean to take instead of ``own``, which serves as the Gaussian's draw."""
        hidden = self.hidden(features)
        spread = self.log_std(hidden).clamp(*_LOG_STD).exp()
        return self.bound * torch.tanh(self.mean(hidden) + spread * own)

    def save(self, folder: Path) -> None:
        save_file(
            {name: t.cpu().contiguous() for name, t in self.state_dict().items()}, folder / FILE
        )

    @classmethod
    def load(cls, folder: Path) -> "Steering | None":
        """The one in ``folder``; None where nobody steers."""
        if not (folder / FILE).exists():
            return None
        stored = load_file(folder / FILE)
        (width, features), dim = stored["hidden.0.weight"].shape, len(stored["mean.bias"])
        found = cls(features, dim, width, 1.0)
        found.load_state_dict(stored)
        return found.requires_grad_(False)


def chunk_mean(noise: Float[Tensor, "batch horizon dim"]) -> Float[Tensor, "batch dim"]:
    """Mean over the chunk, scaled to unit variance."""
    return noise.mean(dim=1) * math.sqrt(noise.shape[1])


def with_mean(
    noise: Float[Tensor, "batch horizon dim"], mean: Float[Tensor, "batch dim"]
) -> Float[Tensor, "batch horizon dim"]:
    """The same noise around another scaled mean."""
    gap = (mean - chunk_mean(noise)) / math.sqrt(noise.shape[1])
    return noise + gap[:, None]
