"""Frames to stacked latents and back through SVD's VAE: batches, posterior, decode schedule."""

import hashlib

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from jaxtyping import Float, UInt8
from torch import Tensor

from models.ctrl_world.latents import LATENT_SCALE, draw, split_views, stack_views

ENCODE_BATCH = 24  # images per encoder call, to bound memory
OFFICIAL_CHUNK = 7  # upstream's decode_chunk_size


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
