"""A 2-D UNet over stacked views whose channels hold the frames."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from models.embedded.layers import ResidualBlock, SpatialAttention, start_at_zero


@dataclass(frozen=True, slots=True)
class UNetSizes:
    """Shapes of a ``UNet``: ``known`` and ``noisy`` channels enter, ``noisy`` ones leave."""

    past: int  # channels of old frames, seen through a 1 x 1 convolution
    present: int  # channels of the current frame and of the frames in the making, 3 x 3
    out: int
    channels: tuple[int, ...]  # of each level; every level halves the grid
    blocks: int  # residual blocks per level, on the way down and on the way up
    condition: int
    grid: tuple[int, int]


class UNet(nn.Module):
    """Down, attention at the coarsest level, up; every block is modulated by the condition.

    Cameras do not move between frames, so a learned map per cell tells where in which view it is.
    """

    def __init__(self, sizes: UNetSizes) -> None:
        super().__init__()
        widths, condition = sizes.channels, sizes.condition
        self.past = nn.Conv2d(sizes.past, widths[0], 1)
        self.present = nn.Conv2d(sizes.present, widths[0], 3, padding=1)
        self.place = nn.Parameter(0.02 * torch.randn(1, widths[0], *sizes.grid))
        self.down = nn.ModuleList(
            _Level(before, width, sizes.blocks, condition)
            for before, width in zip((widths[0], *widths), widths, strict=False)
        )
        self.middle = nn.ModuleList(SpatialAttention(widths[-1], heads=4) for _ in range(2))
        self.bottom = ResidualBlock(widths[-1], widths[-1], condition)
        pairs = list(zip(widths[1:], widths[:-1], strict=True))[::-1]
        self.lift = nn.ModuleList(nn.Conv2d(low, high, 1) for low, high in pairs)
        self.up = nn.ModuleList(
            _Level(2 * high, high, sizes.blocks, condition) for _, high in pairs
        )
        self.norm = nn.GroupNorm(8, widths[0])
        self.out = nn.Conv2d(widths[0], sizes.out, 3, padding=1)
        start_at_zero(self.out)

    def forward(
        self,
        past: Float[Tensor, "batch past rows columns"],
        present: Float[Tensor, "batch present rows columns"],
        condition: Float[Tensor, "batch condition"],
    ) -> Float[Tensor, "batch out rows columns"]:
        x = self.past(past) + self.present(present) + self.place
        skips = []
        for depth, level in enumerate(self.down):
            x = level(x if depth == 0 else functional.avg_pool2d(x, 2, ceil_mode=True), condition)
            skips.append(x)
        x = self.middle[1](self.bottom(self.middle[0](x), condition))
        skips.pop()
        for lift, level in zip(self.lift, self.up, strict=True):
            skip = skips.pop()
            wide = functional.interpolate(lift(x), size=skip.shape[-2:], mode="nearest")
            x = level(torch.cat([wide, skip], dim=1), condition)
        return self.out(functional.silu(self.norm(x)))


class _Level(nn.Module):
    """Residual blocks of one resolution."""

    def __init__(self, before: int, width: int, blocks: int, condition: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            ResidualBlock(before if index == 0 else width, width, condition)
            for index in range(blocks)
        )

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, condition)
        return x
