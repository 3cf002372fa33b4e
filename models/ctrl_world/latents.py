"""Shapes and scale of stacked latents, without the autoencoder that makes them."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

LATENT_CHANNELS = 4
LATENT_SCALE = 0.18215  # SVD's VAE: its posterior times this has about unit variance
PIXELS_PER_LATENT = 8
NUM_VIEWS = 3
FRAME_MULTIPLE = 64  # 8 pixels per latent position, and three halvings inside the UNet
SCALED_SPREAD = (0.3, 2.5)  # standard deviation of scaled latents; 0.78-1.09 in upstream's samples


def check_frame_size(height: int, width: int) -> None:
    """Raise ValueError, with a size that works, unless the UNet can halve the stacked latents.

    Three views of (height / 8) rows are stacked; rows and columns must be multiples of 8.
    """
    if height % FRAME_MULTIPLE or width % FRAME_MULTIPLE:
        near = [-(-side // FRAME_MULTIPLE) * FRAME_MULTIPLE for side in (height, width)]
        raise ValueError(
            f"robot.height={height} robot.width={width}: world_model=ctrl_world needs multiples "
            f"of {FRAME_MULTIPLE}; set robot.height={near[0]} robot.width={near[1]}"
        )


def latent_shape(height: int, width: int) -> tuple[int, int, int]:
    """(channels, rows, columns) of one frame's stacked latent."""
    return (LATENT_CHANNELS, NUM_VIEWS * height // PIXELS_PER_LATENT, width // PIXELS_PER_LATENT)


def stack_views(
    views: Float[Tensor, "frames views 4 rows columns"],
) -> Float[Tensor, "frames 4 stacked columns"]:
    """One tall latent image per frame: view 0 on top (rows, not channels)."""
    return views.transpose(1, 2).flatten(2, 3)


def split_views(
    latents: Float[Tensor, "frames 4 stacked columns"], num_views: int = NUM_VIEWS
) -> Float[Tensor, "frames views 4 rows columns"]:
    """Undo ``stack_views``."""
    return latents.unflatten(2, (num_views, -1)).transpose(1, 2)


def draw(
    moments: Float[Tensor, "*batch 2 4 stacked columns"],
    noise: Float[Tensor, "*batch 4 stacked columns"],
) -> Float[Tensor, "*batch 4 stacked columns"]:
    """Sample of a posterior from standard normal ``noise``; upstream trains on samples, not modes
    (dataset_example/extract_latent.py)."""
    mean, deviation = moments.unbind(-4)
    return mean + deviation * noise


def check_scale(latents: Float[Tensor, "*shape"], source: str) -> None:
    """Raise ValueError unless the spread of ``latents`` is that of scaled ones."""
    spread = float(latents.float().std())
    low, high = SCALED_SPREAD
    if low < spread < high:
        return
    guess = "they belong to another VAE, or to blank pictures"
    if low < spread * LATENT_SCALE < high:
        guess = f"they were not multiplied by the VAE's scale {LATENT_SCALE}"
    elif low < spread / LATENT_SCALE < high:
        guess = f"they were multiplied by the VAE's scale {LATENT_SCALE} twice"
    raise ValueError(
        f"{source}: latents with a standard deviation of {spread:.3g}, scaled ones have about 1: "
        f"{guess}. Extract them anew without world_model.ctrl_world.latent_videos"
    )


def to_uint8(
    images: Float[Tensor, "*batch 3 height width"],
) -> UInt8[Tensor, "*batch height width 3"]:
    """Channels last, 0..255; truncated as upstream does, not rounded."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).movedim(-3, -1)
