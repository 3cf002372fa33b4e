"""Blocks that the embedded models share."""

import math
from collections.abc import Callable
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


class Attention(nn.Module):
    """Multi-head attention of ``x`` to a memory; projections are kept apart so the memory's keys
    and values are computed once per sampling."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.memory = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def remember(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of ``tokens``."""
        key, value = self.memory(tokens).chunk(2, dim=-1)
        return self._split(key), self._split(value)

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        mixed = functional.scaled_dot_product_attention(self._split(self.query(x)), *memory)
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class DecoderBlock(nn.Module):
    """Pre-norm transformer block: self-attention, cross-attention, feed-forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm_self, self.norm_cross = nn.LayerNorm(width), nn.LayerNorm(width)
        self.norm_ff = nn.LayerNorm(width)
        self.self_attention = Attention(width, heads)
        self.cross_attention = Attention(width, heads)
        self.feed_forward = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )

    def forward(self, x: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
        normed = self.norm_self(x)
        x = x + self.self_attention(normed, self.self_attention.remember(normed))
        x = x + self.cross_attention(self.norm_cross(x), memory)
        return x + self.feed_forward(self.norm_ff(x))


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


def grid_waves(height: int, width: int, count: int) -> Float[Tensor, "cells features"]:
    """Position features of the cells of a height x width grid, row by row, of any size."""
    y, x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.cat(
        [waves(3.0 * y.flatten(), count, 16.0), waves(3.0 * x.flatten(), count, 16.0)], -1
    )


def fresh(build: Callable[[], Net], seed: int) -> Net:
    """Call ``build()`` with weights drawn from ``seed``; the global generator is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
