"""Blocks that the embedded models share."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

Net = TypeVar("Net", bound=nn.Module)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions modulated by a conditioning vector (FiLM); starts as a skip."""

    def __init__(self, channels_in: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm_in = nn.GroupNorm(8, channels_in)
        self.conv_in = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.film = nn.Linear(condition, 2 * channels)
        self.norm_out = nn.GroupNorm(8, channels)
        self.conv_out = nn.Conv2d(channels, channels, 3, padding=1)
        same = channels_in == channels
        self.skip = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)
        start_at_zero(self.conv_out)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gain, offset = self.film(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.conv_in(functional.silu(self.norm_in(x)))
        hidden = functional.silu(torch.addcmul(offset, self.norm_out(hidden), 1 + gain))
        return self.skip(x) + self.conv_out(hidden)


class SpatialAttention(nn.Module):
    """Self-attention over all positions of a feature map; starts as a skip."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, channels)
        self.project = nn.Conv2d(channels, 3 * channels, 1)
        self.out = nn.Conv2d(channels, channels, 1)
        start_at_zero(self.out)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        split = self.project(self.norm(x)).view(
            batch, 3, self.heads, channels // self.heads, height * width
        )
        query, key, value = split.transpose(3, 4).unbind(1)
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return x + self.out(mixed.transpose(2, 3).reshape(x.shape))


def start_at_zero(layer: nn.Module) -> None:
    """Zero a layer's weights, so that the branch it ends contributes nothing at first."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)


def waves(
    value: Float[Tensor, "*batch"], count: int, highest: float
) -> Float[Tensor, "*batch features"]:
    """Sines and cosines of ``value`` at ``count`` angular frequencies from 1 to ``highest``."""
    step = math.log(highest) / (count - 1)
    frequency = torch.exp(step * torch.arange(count, device=value.device, dtype=torch.float32))
    angle = value[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)


def normal(
    shape: Sequence[int], generator: torch.Generator, device: torch.device
) -> Float[Tensor, "..."]:
    """Standard normal draws on ``device`` that follow from the state of the CPU ``generator``.

    Drawn where they are needed: a CPU would keep a GPU waiting. Other kinds of device draw other
    numbers.
    """
    if device.type == "cpu":
        return torch.randn(tuple(shape), generator=generator)
    seed = int(torch.randint(2**62, (1,), generator=generator))
    there = torch.Generator(device).manual_seed(seed)
    return torch.randn(tuple(shape), generator=there, device=device)


def fresh(build: Callable[[], Net], seed: int) -> Net:
    """Call ``build()`` with weights drawn from ``seed``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
