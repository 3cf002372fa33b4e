"""SigLIP vision transformer: one token per image patch, no pooling (openpi.md 1.1, 1.2)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from configs.policy import Pi05Config

LAYER_NORM_EPS = 1e-6


class VisionEmbeddings(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        patch = cfg.patch_size
        self.patch_embedding = nn.Conv2d(3, cfg.vision_width, patch, stride=patch)
        self.position_embedding = nn.Embedding((cfg.image_size // patch) ** 2, cfg.vision_width)

    def forward(
        self, images: Float[Tensor, "image 3 size size"]
    ) -> Float[Tensor, "image patch width"]:
        patches = self.patch_embedding(images).flatten(2).transpose(1, 2)
        return patches + self.position_embedding.weight


class VisionAttention(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        width = cfg.vision_width
        self.heads = cfg.vision_heads
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.q_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def forward(self, x: Float[Tensor, "image patch width"]) -> Float[Tensor, "image patch width"]:
        query, key, value = (
            self._heads(proj(x)) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class VisionMlp(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.fc1 = nn.Linear(cfg.vision_width, cfg.vision_mlp)
        self.fc2 = nn.Linear(cfg.vision_mlp, cfg.vision_width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x), approximate="tanh"))


class VisionLayer(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(cfg.vision_width, eps=LAYER_NORM_EPS)
        self.self_attn = VisionAttention(cfg)
        self.layer_norm2 = nn.LayerNorm(cfg.vision_width, eps=LAYER_NORM_EPS)
        self.mlp = VisionMlp(cfg)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class VisionEncoder(nn.Module):
    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.layers = nn.ModuleList(VisionLayer(cfg) for _ in range(cfg.vision_depth))
        self.recompute = cfg.recompute

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(layer, x, use_reentrant=False)
            else:
                x = layer(x)
        return x


class VisionTransformer(nn.Module):
    """Patches, position embedding, pre-norm blocks, final norm."""

    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(cfg)
        self.encoder = VisionEncoder(cfg)
        self.post_layernorm = nn.LayerNorm(cfg.vision_width, eps=LAYER_NORM_EPS)

    def forward(
        self, images: Float[Tensor, "image 3 size size"]
    ) -> Float[Tensor, "image patch width"]:
        return self.post_layernorm(self.encoder(self.embeddings(images)))


class VisionTower(nn.Module):
    """Adds the ``vision_model`` level of openpi's state dict."""

    def __init__(self, cfg: Pi05Config) -> None:
        super().__init__()
        self.vision_model = VisionTransformer(cfg)

    def forward(
        self, images: Float[Tensor, "image 3 size size"]
    ) -> Float[Tensor, "image patch width"]:
        return self.vision_model(images)
