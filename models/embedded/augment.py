"""Random changes of training images; every draw comes from the generator that is passed in."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional


def random_shift(
    images: UInt8[Tensor, "batch height width 3"], pixels: int, generator: torch.Generator
) -> UInt8[Tensor, "batch height width 3"]:
    """Move each image by up to ``pixels`` rows and columns; the border is repeated."""
    count, height, width, _ = images.shape
    by = torch.randint(-pixels, pixels + 1, (2, count, 1), generator=generator)
    row = (torch.arange(height) + by[0]).clamp(0, height - 1).to(images.device)
    column = (torch.arange(width) + by[1]).clamp(0, width - 1).to(images.device)
    sample = torch.arange(count, device=images.device)[:, None, None]
    return images[sample, row[:, :, None], column[:, None, :]]


def random_light(
    images: Float[Tensor, "batch ..."], strength: float, generator: torch.Generator
) -> Float[Tensor, "batch ..."]:
    """Scale contrast and add brightness, per sample; ``images`` are centred on zero."""
    shape = (2, len(images), *[1] * (images.ndim - 1))
    draw = strength * torch.randn(shape, generator=generator)
    gain, offset = draw.to(images.device)
    return images * (1 + gain) + offset


def random_blur(
    images: Float[Tensor, "batch frames channels height width"], generator: torch.Generator
) -> Float[Tensor, "batch frames channels height width"]:
    """Blend each sample with its 5 x 5 mean by a share in [0, 1], zero for half of the samples.

    World models smear what they are unsure about; a judge must not take that for an answer.
    """
    share = (2 * torch.rand(len(images), 1, 1, 1, 1, generator=generator) - 1).clamp_min(0)
    wide = functional.pad(images.flatten(0, 1), [2, 2, 2, 2], mode="replicate").view(
        *images.shape[:3], images.shape[3] + 4, images.shape[4] + 4
    )
    rows = _sum_of_five(wide, dim=3)
    return torch.lerp(images, _sum_of_five(rows, dim=4) / 25, share.to(images.device))


def _sum_of_five(x: Tensor, dim: int) -> Tensor:
    """Sums over windows of five along ``dim``; several times faster here than avg_pool2d."""
    length = x.shape[dim] - 4
    parts = [x.narrow(dim, start, length) for start in range(5)]
    return parts[0] + parts[1] + parts[2] + parts[3] + parts[4]
