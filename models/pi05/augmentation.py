"""openpi's image augmentation, drawn per sample instead of once per batch (openpi.md 1.8)."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

CROP = 0.95
MAX_ANGLE = 5.0  # degrees
BRIGHTNESS, CONTRAST, SATURATION = 0.3, 0.4, 0.5


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where each image is cropped (a fraction of the free margin) and how far it is turned."""

    top: Float[Tensor, " image"]
    left: Float[Tensor, " image"]
    angle: Float[Tensor, " image"]  # degrees


@dataclass(frozen=True, slots=True)
class Colour:
    """Factors around 1."""

    brightness: Float[Tensor, " image"]
    contrast: Float[Tensor, " image"]
    saturation: Float[Tensor, " image"]


def draw_geometry(count: int, generator: torch.Generator) -> Geometry:
    top, left, turn = torch.rand(3, count, generator=generator)
    return Geometry(top, left, (2 * turn - 1) * MAX_ANGLE)


def draw_colour(count: int, generator: torch.Generator) -> Colour:
    brightness, contrast, saturation = 2 * torch.rand(3, count, generator=generator) - 1
    return Colour(1 + BRIGHTNESS * brightness, 1 + CONTRAST * contrast, 1 + SATURATION * saturation)


def crop_and_rotate(
    images: Float[Tensor, "image 3 size size"], geometry: Geometry
) -> Float[Tensor, "image 3 size size"]:
    """Crop 95 %, stretch back (bilinear), rotate about the centre; black where nothing is seen."""
    size = images.shape[-1]
    crop = int(size * CROP)
    inside = ((torch.arange(size, device=images.device) + 0.5) * crop / size - 0.5).clamp(
        0, crop - 1
    )
    rows, columns = (
        (inside + (fraction * (size - crop + 1)).floor().clamp(max=size - crop)[:, None])
        for fraction in (geometry.top.to(images), geometry.left.to(images))
    )
    grid = torch.stack(
        (columns[:, None].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)), dim=-1
    )
    cropped = functional.grid_sample(images, (2 * grid + 1) / size - 1, align_corners=False)
    return functional.grid_sample(
        cropped, _rotation(geometry.angle.to(images), size), align_corners=False
    )


def _rotation(angle: Float[Tensor, " image"], size: int) -> Float[Tensor, "image size size 2"]:
    # openpi spans -1..1 from the first to the last pixel centre, though it samples with
    # align_corners=False: an upright image is enlarged by size / (size - 1).
    axis = torch.linspace(-1, 1, size, device=angle.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    turn = torch.deg2rad(angle)[:, None, None]
    return torch.stack((x * turn.cos() - y * turn.sin(), x * turn.sin() + y * turn.cos()), dim=-1)


def jitter(
    images: Float[Tensor, "image 3 size size"], colour: Colour
) -> Float[Tensor, "image 3 size size"]:
    """Brightness, contrast, saturation in this order, on values in 0..1."""
    brightness, contrast, saturation = (
        factor.to(images)[:, None, None, None]
        for factor in (colour.brightness, colour.contrast, colour.saturation)
    )
    images = images * brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    images = mean + (images - mean) * contrast
    grey = images.mean(1, keepdim=True)
    return (grey + (images - grey) * saturation).clamp(0, 1)


def augment(
    images: Float[Tensor, "batch 2 3 size size"], generator: torch.Generator
) -> Float[Tensor, "batch 2 3 size size"]:
    """Augment the exterior (slot 0) and wrist (slot 1) images, in [-1, 1], each on its own draw.

    Only the exterior view is cropped and turned: the wrist camera's frame is the gripper's.
    """
    batch = len(images)
    unit = images / 2 + 0.5
    exterior = crop_and_rotate(unit[:, 0], draw_geometry(batch, generator))
    both = torch.stack((exterior, unit[:, 1]), dim=1).flatten(0, 1)
    return jitter(both, draw_colour(2 * batch, generator)).unflatten(0, (batch, 2)) * 2 - 1
