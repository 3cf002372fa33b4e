"""pi0.5: a vision-language prefix and a flow-matching action expert (openpi.md 1, 15a9616)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from configs.policy import Pi05Config
from models.lora import add_lora
from models.pi05.gemma import Gemma, GemmaSizes, KeyValue, LanguageModel, attendable
from models.pi05.siglip import VisionTower

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0  # of the time embedding's sines


@dataclass(frozen=True, slots=True)
class Pi05Inputs:
    """What the prefix is made of. Images in [-1, 1]; a False mask hides a slot or a padding token.

    Every row needs at least one visible token. Leaving out a slot that is masked in every row
    changes nothing: masked tokens are never read and take no position.
    """

    images: Float[Tensor, "batch slot 3 size size"]
    image_mask: Bool[Tensor, "batch slot"]
    tokens: Int[Tensor, "batch length"]
    token_mask: Bool[Tensor, "batch length"]


@dataclass(frozen=True, slots=True)
class Prefix:
    """Images and prompt as the action expert sees them: keys and values of every layer."""

    cache: list[KeyValue]
    mask: Bool[Tensor, "batch token"]


class Projector(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.linear = nn.Linear(cfg.vision_width, cfg.text_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class PaliGemmaModel(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.vision_tower = VisionTower(cfg)
        self.multi_modal_projector = Projector(cfg)
        self.language_model = LanguageModel(_sizes(cfg, expert=False), cfg.vocab_size)


class PaliGemma(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.model = PaliGemmaModel(cfg)


class GemmaExpert(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.model = Gemma(_sizes(cfg, expert=True))


class PaliGemmaWithExpert(nn.Module):
    """Both language models; the nesting spells openpi's state-dict names."""

    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.paligemma = PaliGemma(cfg)
        self.gemma_expert = GemmaExpert(cfg)


def _sizes(cfg: Pi05Config, expert: bool) -> GemmaSizes:
    return GemmaSizes(
        width=cfg.expert_width if expert else cfg.text_width,
        mlp=cfg.expert_mlp if expert else cfg.text_mlp,
        depth=cfg.depth,
        heads=cfg.heads,
        kv_heads=cfg.kv_heads,
        head_dim=cfg.head_dim,
        adaptive=expert,
        recompute=cfg.recompute,
    )


def time_embedding(time: Float[Tensor, " batch"], width: int) -> Float[Tensor, "batch width"]:
    """Sines then cosines of 2 pi t / period, periods spaced geometrically in [0.004, 4].

    Angles reach 1571 rad, so they are taken in float64 and the result is rounded to float32.
    """
    fraction = torch.linspace(0, 1, width // 2, dtype=torch.float64, device=time.device)
    period = MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction
    angle = time.double()[:, None] * (2 * math.pi / period)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).float()


def in_float32(layer: nn.Module, x: Tensor) -> Tensor:
    """Actions and time keep float32 when the rest computes in bfloat16, as in openpi."""
    with torch.autocast(x.device.type, enabled=False):
        return layer(x.float())


def euler_times(steps: int) -> list[float]:
    """Flow times visited by openpi's sampler: 1, then -1/steps accumulated in float32."""
    time, delta = np.float32(1), np.float32(-1 / steps)
    times = []
    for _ in range(steps):
        times.append(float(time))
        time = time + delta
    return times


def sample_time(batch: int, generator: torch.Generator) -> Float[Tensor, " batch"]:
    """t ~ 0.001 + 0.999 Beta(1.5, 1), by its inverse distribution function u^(2/3)."""
    return torch.rand(batch, generator=generator) ** (2 / 3) * 0.999 + 0.001


def prefix_positions(mask: Bool[Tensor, "batch token"]) -> Int[Tensor, "batch token"]:
    """Place of each token among the visible ones; masked tokens take none."""
    return mask.cumsum(1) - 1


def action_positions(
    prefix_mask: Bool[Tensor, "batch token"], horizon: int
) -> Int[Tensor, "batch horizon"]:
    """Action tokens follow the last visible prefix token."""
    return prefix_mask.sum(1, keepdim=True) + torch.arange(horizon, device=prefix_mask.device)


class Pi05Network(nn.Module):
    """Predicts the velocity of noisy actions. t = 1 is noise and t = 0 is data, as in openpi."""

    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        width = cfg.expert_width
        self.head_dim = cfg.head_dim
        self.paligemma_with_expert = PaliGemmaWithExpert(cfg)
        self.action_in_proj = nn.Linear(cfg.action_dim, width)
        self.action_out_proj = nn.Linear(width, cfg.action_dim)
        self.time_mlp_in = nn.Linear(width, width)
        self.time_mlp_out = nn.Linear(width, width)
        for parameter in self.unreachable():
            parameter.requires_grad_(False)  # else DDP and FSDP wait for gradients of nothing

    @property
    def vlm(self) -> PaliGemmaModel:
        return self.paligemma_with_expert.paligemma.model

    def unreachable(self) -> Iterator[nn.Parameter]:
        """Parameters whose output nobody reads: the prefix ends at the last layer's keys."""
        language = self.vlm.language_model
        yield from language.norm.parameters()
        for name, parameter in language.layers[-1].named_parameters():
            if not name.startswith(("input_layernorm", "self_attn.k_", "self_attn.v_")):
                yield parameter

    def adapt(self, cfg: Pi05Config, seed: int) -> None:
        """Train adapters in both language models, and the small action and time layers, alone.

        openpi's LoRA recipes train SigLIP in full as well; here it stays frozen to save memory.
        """
        dead = set(self.unreachable())
        targets = [
            name
            for name, part in self.paligemma_with_expert.named_modules()
            if name.rpartition(".")[2] in cfg.lora_targets
            and ".vision_tower." not in name
            and dead.isdisjoint(part.parameters())
        ]
        add_lora(self.paligemma_with_expert, cfg.lora_rank, cfg.lora_alpha, targets, seed)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight from ``generator``: fan-in scaled, biases and adaRMS zero."""
        for name, parameter in self.named_parameters():
            if name.endswith(("norm.weight", "bias")) or ".dense." in name:
                parameter.zero_()
            elif "embed_tokens" in name or "position_embedding" in name:
                parameter.normal_(std=parameter.shape[-1] ** -0.5, generator=generator)
            elif parameter.dim() == 1:  # LayerNorm gains
                parameter.fill_(1)
            else:
                fan_in = parameter[0].numel()
                parameter.normal_(std=fan_in**-0.5, generator=generator)

    def embed_images(
        self, images: Float[Tensor, "batch slot 3 size size"]
    ) -> Float[Tensor, "batch slot patch width"]:
        tokens = self.vlm.vision_tower(images.flatten(0, 1))
        return self.vlm.multi_modal_projector(tokens).unflatten(0, images.shape[:2])

    def encode(self, inputs: Pi05Inputs) -> Prefix:
        """One pass over images and prompt; the action expert reads its keys and values."""
        images = self.embed_images(inputs.images)
        text = self.vlm.language_model.embed(inputs.tokens)
        visible = inputs.image_mask[..., None].expand(-1, -1, images.shape[2])
        mask = torch.cat((visible.flatten(1), inputs.token_mask), dim=1)
        tokens = torch.cat((images.flatten(1, 2), text), dim=1)
        where = attendable(prefix_positions(mask), mask, self.head_dim)
        return Prefix(self.vlm.language_model.encode(tokens, where), mask)

    def condition(self, time: Float[Tensor, " batch"]) -> Float[Tensor, "batch width"]:
        embedded = time_embedding(time, self.time_mlp_in.in_features)
        hidden = functional.silu(in_float32(self.time_mlp_in, embedded))
        return functional.silu(in_float32(self.time_mlp_out, hidden))

    def decode(
        self,
        prefix: Prefix,
        noisy: Float[Tensor, "batch horizon dim"],
        time: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon width"]:
        """The expert's last hidden state: every action token reads the prefix and all actions."""
        batch, horizon, _ = noisy.shape
        mask = torch.cat((prefix.mask, prefix.mask.new_ones(batch, horizon)), dim=1)
        where = attendable(action_positions(prefix.mask, horizon), mask, self.head_dim)
        tokens, cond = in_float32(self.action_in_proj, noisy), self.condition(time)
        expert = self.paligemma_with_expert.gemma_expert.model
        return expert.decode(tokens, where, cond, prefix.cache)

    def velocity(
        self,
        prefix: Prefix,
        noisy: Float[Tensor, "batch horizon dim"],
        time: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon dim"]:
        return in_float32(self.action_out_proj, self.decode(prefix, noisy, time))

    def forward(
        self,
        inputs: Pi05Inputs,
        actions: Float[Tensor, "batch horizon dim"],
        noise: Float[Tensor, "batch horizon dim"],
        time: Float[Tensor, " batch"],
    ) -> Float[Tensor, "batch horizon dim"]:
        """Squared flow-matching error of every action coordinate, padding included (openpi)."""
        fraction = time[:, None, None]
        noisy = fraction * noise + (1 - fraction) * actions
        velocity = self.velocity(self.encode(inputs), noisy, time)
        return (velocity - (noise - actions)).square()

    @torch.no_grad()
    def sample(
        self, inputs: Pi05Inputs, noise: Float[Tensor, "batch horizon dim"], steps: int
    ) -> Float[Tensor, "batch horizon dim"]:
        """Integrate from ``noise`` to actions in ``steps`` Euler steps, as openpi does."""
        return self.integrate(inputs, noise, euler_times(steps))

    def integrate(
        self, inputs: Pi05Inputs, noise: Float[Tensor, "batch horizon dim"], times: Sequence[float]
    ) -> Float[Tensor, "batch horizon dim"]:
        """The prefix is encoded once and only read after. One graph: nothing here depends on values
        of tensors, so ``torch.compile(fullgraph=True)`` takes it whole."""
        prefix = self.encode(inputs)
        actions = noise
        for time in times:
            velocity = self.velocity(prefix, actions, noise.new_full((len(noise),), time))
            actions = actions - velocity / len(times)
        return actions


def build_network(cfg: Pi05Config, seed: int) -> Pi05Network:
    """A freshly initialised network; equal seeds give equal weights, torch's own state is kept."""
    with torch.device("meta"):
        network = Pi05Network(cfg)
    network.to_empty(device="cpu")
    network.initialise(torch.Generator().manual_seed(seed))
    return network
