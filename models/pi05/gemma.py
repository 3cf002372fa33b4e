"""Gemma decoder layers that read another model's keys and values, with plain or adaptive norms."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

RMS_EPS = 1e-6
ROPE_BASE = 10_000.0

KeyValue = tuple[Float[Tensor, "batch _ kv dim"], Float[Tensor, "batch _ kv dim"]]


@dataclass(frozen=True, slots=True)
class GemmaSizes:
    """Widths of one of the two language models; ``adaptive``: norms conditioned on a vector."""

    width: int
    mlp: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    adaptive: bool
    recompute: bool = False


@dataclass(frozen=True, slots=True)
class Attendable:
    """Where the queries stand and which keys they may read (the same keys for every query)."""

    cos: Float[Tensor, "batch token 1 half"]
    sin: Float[Tensor, "batch token 1 half"]
    key_mask: Bool[Tensor, "batch 1 1 key"]


def attendable(
    positions: Int[Tensor, "batch token"], key_mask: Bool[Tensor, "batch key"], head_dim: int
) -> Attendable:
    """Rotary angles of ``positions`` (base 10000, half-split layout) beside the key mask."""
    half = head_dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=positions.device) / half
    angle = positions[..., None, None].float() * ROPE_BASE**-exponent
    return Attendable(angle.cos(), angle.sin(), key_mask[:, None, None])


def rotate(x: Float[Tensor, "batch token head dim"], where: Attendable) -> Tensor:
    """Apply rotary position embedding in float32; the result has the dtype of ``x``."""
    first, second = x.float().chunk(2, dim=-1)
    turned = (
        first * where.cos - second * where.sin,
        second * where.cos + first * where.sin,
    )
    return torch.cat(turned, dim=-1).to(x.dtype)


def _rms(x: Tensor) -> Tensor:
    wide = x.float()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + RMS_EPS)


class RMSNorm(nn.Module):
    """Root-mean-square norm scaled by 1 + weight; has no gate."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert cond is None
        return (_rms(x) * (1 + self.weight.float())).to(x.dtype), None


class AdaptiveRMSNorm(nn.Module):
    """RMS norm whose scale, shift and residual gate come from a vector per sample (adaRMS)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert cond is not None
        scale, shift, gate = self.dense(cond)[:, None].chunk(3, dim=-1)
        normed = _rms(x) * (1 + scale.float()) + shift.float()
        return normed.to(x.dtype), gate.to(x.dtype)


def _norm(sizes: GemmaSizes) -> RMSNorm | AdaptiveRMSNorm:
    return AdaptiveRMSNorm(sizes.width) if sizes.adaptive else RMSNorm(sizes.width)


def _add(x: Tensor, update: Tensor, gate: Tensor | None) -> Tensor:
    return x + update if gate is None else x + update * gate


class Attention(nn.Module):
    """Grouped-query attention without biases."""

    def __init__(self, sizes: GemmaSizes) -> None:
        super().__init__()
        self.head_dim = sizes.head_dim
        self.groups = sizes.heads // sizes.kv_heads
        inner, shared = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
        self.q_proj = nn.Linear(sizes.width, inner, bias=False)
        self.k_proj = nn.Linear(sizes.width, shared, bias=False)
        self.v_proj = nn.Linear(sizes.width, shared, bias=False)
        self.o_proj = nn.Linear(inner, sizes.width, bias=False)

    def _split(self, x: Tensor) -> Float[Tensor, "batch token head dim"]:
        return x.unflatten(-1, (-1, self.head_dim))

    def keys_values(self, x: Float[Tensor, "batch token width"], where: Attendable) -> KeyValue:
        return rotate(self._split(self.k_proj(x)), where), self._split(self.v_proj(x))

    def _repeat(self, x: Float[Tensor, "batch token kv dim"]) -> Tensor:
        # A view for one shared key head (pi0.5), so no copy of the cache is made.
        grouped = x.transpose(1, 2)[:, :, None].expand(-1, -1, self.groups, -1, -1)
        return grouped.flatten(1, 2)

    def forward(
        self, x: Float[Tensor, "batch token width"], where: Attendable, read: KeyValue
    ) -> Float[Tensor, "batch token width"]:
        query = rotate(self._split(self.q_proj(x)), where).transpose(1, 2)
        mixed = functional.scaled_dot_product_attention(
            query, self._repeat(read[0]), self._repeat(read[1]), attn_mask=where.key_mask
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, sizes: GemmaSizes) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.up_proj = nn.Linear(sizes.width, sizes.mlp, bias=False)
        self.down_proj = nn.Linear(sizes.mlp, sizes.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(
            functional.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x)
        )


class DecoderLayer(nn.Module):
    """Attention and MLP with (gated) residuals. Queries read ``past``, then their own keys."""

    def __init__(self, sizes: GemmaSizes) -> None:
        super().__init__()
        self.self_attn = Attention(sizes)
        self.mlp = Mlp(sizes)
        self.input_layernorm = _norm(sizes)
        self.post_attention_layernorm = _norm(sizes)

    def forward(
        self,
        x: Float[Tensor, "batch token width"],
        where: Attendable,
        cond: Float[Tensor, "batch width"] | None = None,
        past: KeyValue | None = None,
        keys_only: bool = False,
    ) -> tuple[Float[Tensor, "batch token width"], KeyValue]:
        """Return the new tokens and this layer's own keys and values.

        ``keys_only`` returns ``x`` unchanged: nobody reads the last prefix layer's output.
        """
        normed, gate = self.input_layernorm(x, cond)
        own = self.self_attn.keys_values(normed, where)
        if keys_only:
            return x, own
        read = own
        if past is not None:
            read = (torch.cat((past[0], own[0]), dim=1), torch.cat((past[1], own[1]), dim=1))
        x = _add(x, self.self_attn(normed, where, read), gate)
        normed, gate = self.post_attention_layernorm(x, cond)
        return _add(x, self.mlp(normed), gate), own


class Gemma(nn.Module):
    """A stack of decoder layers and a final norm, without an output head."""

    def __init__(self, sizes: GemmaSizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(sizes) for _ in range(sizes.depth))
        self.norm = _norm(sizes)
        self.recompute = sizes.recompute

    def _run(self, layer: nn.Module, *inputs: object) -> tuple[Tensor, KeyValue]:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(layer, *inputs, use_reentrant=False)  # pyright: ignore[reportReturnType]
        return layer(*inputs)

    def encode(self, x: Float[Tensor, "batch token width"], where: Attendable) -> list[KeyValue]:
        """Keys and values of every layer; the tokens themselves are nobody's input."""
        cache: list[KeyValue] = []
        for number, layer in enumerate(self.layers, start=1):
            x, own = self._run(layer, x, where, None, None, number == len(self.layers))
            cache.append(own)
        return cache

    def decode(
        self,
        x: Float[Tensor, "batch token width"],
        where: Attendable,
        cond: Float[Tensor, "batch width"],
        cache: list[KeyValue],
    ) -> Float[Tensor, "batch token width"]:
        """Run tokens that read ``cache`` layer by layer, then the final norm."""
        for layer, past in zip(self.layers, cache, strict=True):
            x, _ = self._run(layer, x, where, cond, past)
        return self.norm(x, cond)[0]


class LanguageModel(Gemma):
    """A decoder with its token embedding (scaled by sqrt(width), as Gemma does)."""

    def __init__(self, sizes: GemmaSizes, vocab_size: int) -> None:
        super().__init__(sizes)
        self.embed_tokens = nn.Embedding(vocab_size, sizes.width)

    def embed(self, tokens: Int[Tensor, "batch token"]) -> Float[Tensor, "batch token width"]:
        return self.embed_tokens(tokens) * self.embed_tokens.embedding_dim**0.5
