"""Frames to stacked latents and back: the VAE's scale, the order of views, the decode schedule."""

import hashlib

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from jaxtyping import Float, UInt8
from torch import Tensor

from models.ctrl_world.network import LATENT_CHANNELS, LATENT_SCALE, PIXELS_PER_LATENT

NUM_VIEWS = 3
FRAME_MULTIPLE = 64  # 8 pixels per latent position, and three halvings inside the UNet
ENCODE_BATCH = 24  # images per encoder call, to bound memory
OFFICIAL_CHUNK = 7  # upstream's decode_chunk_size
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


@torch.no_grad()
def posterior(
    vae: AutoencoderKLTemporalDecoder, frames: UInt8[Tensor, "frames views height width 3"]
) -> Float[Tensor, "frames 2 4 stacked columns"]:
    """Scaled mean and standard deviation of the VAE's answer, in float32 even under autocast."""
    parts = frames.flatten(0, 1).movedim(-1, 1).split(ENCODE_BATCH)
    with torch.autocast(frames.device.type, enabled=False):
        answers = [vae.encode(part / 255 * 2 - 1, return_dict=False)[0] for part in parts]
    count = frames.shape[:2]
    mean = stack_views(torch.cat([answer.mean for answer in answers]).unflatten(0, count))
    deviation = stack_views(torch.cat([answer.std for answer in answers]).unflatten(0, count))
    return LATENT_SCALE * torch.stack([mean, deviation], dim=1)


def draw(
    moments: Float[Tensor, "*batch 2 4 stacked columns"],
    noise: Float[Tensor, "*batch 4 stacked columns"],
) -> Float[Tensor, "*batch 4 stacked columns"]:
    """Sample of a posterior from standard normal ``noise``; upstream trains on samples, not modes
    (dataset_example/extract_latent.py)."""
    mean, deviation = moments.unbind(-4)
    return mean + deviation * noise


def encode(
    vae: AutoencoderKLTemporalDecoder,
    frames: UInt8[Tensor, "frames views height width 3"],
    noise: Float[Tensor, "frames 4 stacked columns"],
) -> Float[Tensor, "frames 4 stacked columns"]:
    """Scaled sample of the VAE's posterior."""
    return draw(posterior(vae, frames), noise)


def encoder_checksum(vae: AutoencoderKLTemporalDecoder) -> str:
    """Of all weights that decide a latent; the decoder's do not."""
    total = hashlib.sha256()
    for name, tensor in sorted(vae.state_dict().items()):
        if not name.startswith("decoder."):
            total.update(name.encode())
            total.update(tensor.detach().float().cpu().numpy().tobytes())
    return total.hexdigest()[:16]


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


@torch.no_grad()
def decode_clips(
    vae: AutoencoderKLTemporalDecoder,
    latents: Float[Tensor, "images 4 rows columns"],
    chunk: int,
) -> Float[Tensor, "images 3 height width"]:
    """Decode scaled latents ``chunk`` images at a time; the decoder mixes images of one chunk.

    Values lie around -1..1, not clipped.
    """
    parts = (latents / LATENT_SCALE).split(chunk)
    return torch.cat([vae.decode(part, len(part), return_dict=False)[0] for part in parts])


def decode(
    vae: AutoencoderKLTemporalDecoder,
    latents: Float[Tensor, "frames 4 stacked columns"],
    official: bool = False,
) -> Float[Tensor, "frames views 3 height width"]:
    """Decode one clip of every view; values around -1..1, not clipped.

    ``official`` cuts the view-major row of all images in chunks of 7 as upstream does: cameras mix
    at the cuts, and of 15 images the last wrist frame is decoded alone. Needed only to compare
    with published numbers.
    """
    by_view = split_views(latents).transpose(0, 1)
    chunk = OFFICIAL_CHUNK if official else len(latents)
    images = decode_clips(vae, by_view.flatten(0, 1), chunk)
    return images.unflatten(0, by_view.shape[:2]).transpose(0, 1)


def to_uint8(
    images: Float[Tensor, "*batch 3 height width"],
) -> UInt8[Tensor, "*batch height width 3"]:
    """Channels last, 0..255; truncated as upstream does, not rounded."""
    return ((images / 2 + 0.5).clamp(0, 1) * 255).to(torch.uint8).movedim(-3, -1)
