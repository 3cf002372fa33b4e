"""Ctrl-World's diffusion as pure functions: EDM training loss and Euler sampler; draws go in."""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from models.ctrl_world.latents import LATENT_SCALE

HISTORY = 6  # frames before the current one; a clip is [history, current, the ones to predict]
SIGMA_MAX, SIGMA_MIN, RHO = 700.0, 0.002, 7.0  # Karras schedule of SVD's scheduler
LOG_SIGMA_MEAN, LOG_SIGMA_STD = 0.7, 1.6  # of the training noise, SVD's
CONDITION_NOISE = 0.2  # largest noise level on the condition image
HISTORY_NOISE = 0.3  # standard deviation of a history frame's noise level
DROP_CONTEXT = 0.05  # probability that a sample trains without pose and text
FPS_ID, MOTION_ID = 7.0, 127.0
TRAIN_NOISE_ID, SAMPLE_NOISE_ID = 0.0, 0.02  # upstream's ids differ; its checkpoint expects both

Denoiser = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(sample, time, context, ids) -> v; shapes as in ``CtrlWorldNetwork.forward``."""


@dataclass(frozen=True, slots=True)
class TrainingDraws:
    """All randomness of one training step. Fields in upstream's order of drawing."""

    condition_level: Float[Tensor, " batch"]  # uniform
    condition_noise: Float[Tensor, "batch 4 rows columns"]
    keep: Float[Tensor, " batch"]  # uniform
    level: Float[Tensor, " batch"]  # normal
    noise: Float[Tensor, "batch frames 4 rows columns"]
    history_level: Float[Tensor, "batch history"]  # normal
    history_noise: Float[Tensor, "batch history 4 rows columns"]

    @classmethod
    def sample(cls, shape: tuple[int, ...], generator: torch.Generator) -> "TrainingDraws":
        """Draw for latents of ``shape`` (batch, frames, 4, rows, columns), on the CPU."""
        batch, _, *latent = shape
        return cls(
            torch.rand(batch, generator=generator),
            torch.randn(batch, *latent, generator=generator),
            torch.rand(batch, generator=generator),
            torch.randn(batch, generator=generator),
            torch.randn(shape, generator=generator),
            torch.randn(batch, HISTORY, generator=generator),
            torch.randn(batch, HISTORY, *latent, generator=generator),
        )

    def to(self, device: torch.device) -> "TrainingDraws":
        return TrainingDraws(*(getattr(self, field.name).to(device) for field in fields(self)))


@dataclass(frozen=True, slots=True)
class TrainingInput:
    """What the network sees in one training step, and what its answer is judged by."""

    sample: Float[Tensor, "batch frames 8 rows columns"]
    time: Float[Tensor, " batch"]
    context: Float[Tensor, "batch frames width"]
    ids: Float[Tensor, "batch 3"]
    noisy: Float[Tensor, "batch future 4 rows columns"]  # z + sigma * eps, not scaled
    sigma: Float[Tensor, "batch 1 1 1 1"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """What a chunk is predicted from; latents are clean and scaled."""

    history: Float[Tensor, "batch history 4 rows columns"]
    current: Float[Tensor, "batch 4 rows columns"]
    context: Float[Tensor, "batch tokens width"]


@dataclass(frozen=True, slots=True)
class Sampler:
    """Euler steps, the guidance of the last frame, and whether history slots get the image."""

    steps: int = 50
    guidance: float = 2.0
    condition_history: bool = True


def added_ids(batch: int, noise_id: float, like: Tensor) -> Float[Tensor, "batch 3"]:
    """[fps, motion bucket, noise augmentation]; fps as it is, where stock SVD subtracts one."""
    return torch.tensor([FPS_ID, MOTION_ID, noise_id], device=like.device).repeat(batch, 1)


def _noised(clean: Tensor, noise: Tensor, sigma: Tensor) -> Tensor:
    """Add noise and bring the variance back to one."""
    return (clean + sigma * noise) / (sigma**2 + 1).sqrt()


def _denoised(v: Tensor, noisy: Tensor, sigma: Tensor) -> Tensor:
    """D of EDM from a v-prediction: c_out * v + c_skip * noisy."""
    return v * (-sigma / (sigma**2 + 1).sqrt()) + noisy / (sigma**2 + 1)


def _with_condition(latents: Tensor, condition: Tensor) -> Tensor:
    """Put the condition image, in the VAE's own scale, on channels 4-7 of every frame."""
    frames = latents.shape[1]
    image = (condition / LATENT_SCALE)[:, None].expand(-1, frames, -1, -1, -1)
    return torch.cat([latents, image], dim=2)


def training_input(
    latents: Float[Tensor, "batch frames 4 rows columns"],
    context: Float[Tensor, "batch frames width"],
    draws: TrainingDraws,
) -> TrainingInput:
    """Noise a clip of scaled latents as Ctrl-World trains on it (models/ctrl_world.py forward).

    The future shares one noise level, each history frame has its own small one, and the current
    frame conditions every frame through channels 4-7.
    """
    sigma = torch.exp(LOG_SIGMA_STD * draws.level + LOG_SIGMA_MEAN)[:, None, None, None, None]
    past = draws.history_level.shape[1]
    condition = _noised(
        latents[:, past],
        draws.condition_noise,
        CONDITION_NOISE * draws.condition_level[:, None, None, None],
    )
    history = _noised(
        latents[:, :past],
        draws.history_noise,
        HISTORY_NOISE * draws.history_level[:, :, None, None, None],
    )
    noisy = latents[:, past:] + sigma * draws.noise[:, past:]
    clip = torch.cat([history, noisy / (sigma**2 + 1).sqrt()], dim=1)
    return TrainingInput(
        sample=_with_condition(clip, condition),
        time=sigma.log().flatten() / 4,
        context=context * (draws.keep > DROP_CONTEXT)[:, None, None],
        ids=added_ids(len(latents), TRAIN_NOISE_ID, latents),
        noisy=noisy,
        sigma=sigma,
    )


def training_loss(
    denoise: Denoiser,
    latents: Float[Tensor, "batch frames 4 rows columns"],
    context: Float[Tensor, "batch frames width"],
    draws: TrainingDraws,
) -> Float[Tensor, " batch"]:
    """EDM loss of each sample, weighted by (sigma^2 + 1) / sigma^2, over the current frame and
    those to predict."""
    step = training_input(latents, context, draws)
    past = draws.history_level.shape[1]
    v = denoise(step.sample, step.time, step.context, step.ids).float()[:, past:]
    error = _denoised(v, step.noisy, step.sigma) - latents[:, past:]
    weight = (step.sigma**2 + 1) / step.sigma**2
    return (weight * error**2).mean(dim=(1, 2, 3, 4))


def karras_sigmas(steps: int) -> Float[Tensor, " levels"]:
    """Noise levels 700 ... 0.002 and a final 0: ``steps`` + 1 values."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = SIGMA_MAX ** (1 / RHO), SIGMA_MIN ** (1 / RHO)
    sigmas = (high + ramp * (low - high)) ** RHO
    return torch.cat([sigmas, sigmas.new_zeros(1)]).float()


def frame_guidance(guidance: float, frames: int) -> Float[Tensor, "1 frames 1 1 1"]:
    """Guidance grows along the clip: 1 for the current frame, which is known, to ``guidance``."""
    return torch.linspace(1.0, guidance, frames)[None, :, None, None, None]


def sampling_steps(
    denoise: Denoiser,
    given: Conditions,
    noise: Float[Tensor, "batch future 4 rows columns"],
    sampler: Sampler,
) -> Iterator[Float[Tensor, "batch future 4 rows columns"]]:
    """Yield the scaled latents after each Euler step, the finished ones last; float32.

    ``noise`` has unit variance. The unconditional half keeps history, image and ids and loses
    pose and text; it is not evaluated when ``sampler.guidance`` is 1.
    Source: Ctrl-World models/pipeline_ctrl_world.py.
    """
    guided = sampler.guidance > 1
    inputs = _doubled(given) if guided else given
    ids = added_ids(len(inputs.current), SAMPLE_NOISE_ID, noise)
    guidance = frame_guidance(sampler.guidance, noise.shape[1]).to(noise.device)
    sigmas = karras_sigmas(sampler.steps).to(noise.device)
    state = noise.float() * (sigmas[0] ** 2 + 1).sqrt()
    for sigma, following in pairwise(sigmas):
        scaled = state / (sigma**2 + 1).sqrt()
        sample = _clip(inputs, scaled.repeat(2 if guided else 1, 1, 1, 1, 1), sampler)
        time = (sigma.log() / 4).expand(len(sample))
        v = denoise(sample, time, inputs.context, ids).float()[:, given.history.shape[1] :]
        if guided:
            without, conditional = v.chunk(2)
            v = without + guidance * (conditional - without)
        slope = (state - _denoised(v, state, sigma)) / sigma
        state = state + slope * (following - sigma)
        yield state


def sample(
    denoise: Denoiser,
    given: Conditions,
    noise: Float[Tensor, "batch future 4 rows columns"],
    sampler: Sampler,
) -> Float[Tensor, "batch future 4 rows columns"]:
    """Scaled latents of the current frame, generated anew, and the four after it."""
    return deque(sampling_steps(denoise, given, noise, sampler), maxlen=1).pop()


def _doubled(given: Conditions) -> Conditions:
    """The unconditional half in front of the conditional one."""
    return Conditions(
        history=given.history.repeat(2, 1, 1, 1, 1),
        current=given.current.repeat(2, 1, 1, 1),
        context=torch.cat([torch.zeros_like(given.context), given.context]),
    )


def _clip(given: Conditions, future: Tensor, sampler: Sampler) -> Tensor:
    """The UNet's input: clean history, scaled noisy future, the current frame beside all."""
    clip = _with_condition(torch.cat([given.history, future], dim=1), given.current)
    if not sampler.condition_history:
        clip[:, : given.history.shape[1], given.current.shape[1] :] = 0
    return clip
