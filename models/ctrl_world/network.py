"""Ctrl-World's modules under its checkpoint's names, from diffusers and transformers."""

from collections.abc import Mapping
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_temporal_decoder import (
    AutoencoderKLTemporalDecoder,
)
from diffusers.models.unets.unet_spatio_temporal_condition import (
    UNetSpatioTemporalConditionModel,
)
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from configs.world_model import CtrlWorldConfig
from models.ctrl_world.latents import LATENT_CHANNELS, LATENT_SCALE

POSE_DIM = 7  # x, y, z in m, extrinsic xyz Euler angles in rad, gripper
TIME_IDS = 3  # fps, motion bucket, noise augmentation
TEXT_TOKENS = 77


class ActionEncoder(nn.Module):
    """Three linear layers that turn each frame's normalised pose into its context token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.action_encode = nn.Sequential(
            nn.Linear(POSE_DIM, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
            nn.Linear(width, width),
        )
        for index in (0, 2):  # upstream leaves the last layer and all biases at torch's default
            weight = self.action_encode.get_parameter(f"{index}.weight")
            nn.init.kaiming_normal_(weight, mode="fan_in", nonlinearity="relu")

    def forward(
        self, poses: Float[Tensor, "batch frames 7"]
    ) -> Float[Tensor, "batch frames width"]:
        return self.action_encode(poses)


class CtrlWorldNetwork(nn.Module):
    """Everything of Ctrl-World's checkpoint that runs: ``unet``, ``action_encoder``, ``vae`` and,
    when ``cfg.tokenizer`` is set, ``text_encoder``. The latter two are frozen.

    Calling it is one UNet evaluation (F in the EDM sense), with one context token per frame.
    Source: Ctrl-World 4c713d1, models/ctrl_world.py.
    """

    def __init__(self, cfg: CtrlWorldConfig) -> None:
        super().__init__()
        self.unet = build_unet(cfg)
        self.action_encoder = ActionEncoder(cfg.context_dim)
        self.vae = build_vae(cfg)
        self.text_encoder = build_text_encoder(cfg) if cfg.tokenizer else None
        self.vae.requires_grad_(False)
        if self.text_encoder is not None:
            self.text_encoder.requires_grad_(False)

    def forward(
        self,
        sample: Float[Tensor, "batch frames 8 rows columns"],
        time: Float[Tensor, " batch"],
        context: Float[Tensor, "batch tokens width"],
        ids: Float[Tensor, "batch 3"],
    ) -> Float[Tensor, "batch frames 4 rows columns"]:
        """v-prediction. ``time`` is ln(sigma) / 4; ``context`` has a token per frame, or one."""
        return self.unet(sample, time, context, ids, return_dict=False)[0]

    def embed_text(self, token_ids: Int[Tensor, "batch 77"]) -> Float[Tensor, "batch projection"]:
        """CLIP's projected, not normalised embedding of each instruction.

        Raises:
            ValueError: the network was built without a text encoder.
        """
        if self.text_encoder is None:
            raise ValueError("no text encoder: set world_model.ctrl_world.tokenizer=<folder>")
        return self.text_encoder(input_ids=token_ids).text_embeds

    def context(
        self,
        poses: Float[Tensor, "batch frames 7"],
        text: Float[Tensor, "batch projection"] | None,
    ) -> Float[Tensor, "batch frames width"]:
        """One token per frame: MLP(normalised pose) + the text embedding, tiled twice."""
        tokens = self.action_encoder(poses)
        return tokens if text is None else tokens + torch.cat([text, text], dim=-1)[:, None]


def build_unet(cfg: CtrlWorldConfig) -> UNetSpatioTemporalConditionModel:
    """SVD's UNet in which frame k's spatial cross-attention sees context token k.

    Temporal cross-attention sees token 0 of the clip, as diffusers' does.
    """
    with_attention = len(cfg.block_channels) - 1  # the coarsest level has none
    down = ("CrossAttnDownBlockSpatioTemporal",) * with_attention
    up = ("CrossAttnUpBlockSpatioTemporal",) * with_attention
    unet = UNetSpatioTemporalConditionModel(
        down_block_types=(*down, "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", *up),
        block_out_channels=tuple(cfg.block_channels),
        addition_time_embed_dim=cfg.time_embed_dim,
        projection_class_embeddings_input_dim=TIME_IDS * cfg.time_embed_dim,
        layers_per_block=cfg.layers_per_block,
        cross_attention_dim=cfg.context_dim,
        num_attention_heads=tuple(cfg.heads),
    )
    for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks):
        block.register_forward_pre_hook(_keep_own_token, with_kwargs=True)
    if cfg.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    return unet


def _keep_own_token(
    _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Leave each frame its own one of the clip's context tokens.

    The stock forward repeats a clip's (tokens, width) context for each of its frames. With a
    token per frame, row (clip, k) must see token k alone: the diagonal over (frame, token).
    """
    context = kwargs.get("encoder_hidden_states")
    if context is None:
        return args, dict(kwargs)
    tokens, width = context.shape[1:]
    own = context.reshape(-1, tokens, tokens, width).diagonal(dim1=1, dim2=2)  # clip width frame
    own = own.transpose(1, 2).reshape(-1, 1, width)
    return args, {**kwargs, "encoder_hidden_states": own}


def build_vae(cfg: CtrlWorldConfig) -> AutoencoderKLTemporalDecoder:
    """SVD's image encoder and temporal decoder: 8 x 8 pixels to one position of 4 channels."""
    sizes: dict[str, Any] = {  # diffusers annotates its tuples as tuples of one
        "down_block_types": ("DownEncoderBlock2D",) * len(cfg.vae_channels),
        "block_out_channels": tuple(cfg.vae_channels),
        "layers_per_block": cfg.vae_layers,
    }
    return AutoencoderKLTemporalDecoder(
        **sizes, latent_channels=LATENT_CHANNELS, scaling_factor=LATENT_SCALE
    )


def build_text_encoder(cfg: CtrlWorldConfig) -> CLIPTextModelWithProjection:
    """CLIP's text tower. ``eos_token_id`` 2 is what the published config says: it makes
    transformers pool at argmax(token ids), whatever the vocabulary's real end token is."""
    return CLIPTextModelWithProjection(
        CLIPTextConfig(
            vocab_size=cfg.text_vocab,
            hidden_size=cfg.text_width,
            intermediate_size=cfg.text_mlp or 4 * cfg.text_width,
            num_hidden_layers=cfg.text_layers,
            num_attention_heads=cfg.text_heads,
            projection_dim=cfg.text_projection,
            max_position_embeddings=TEXT_TOKENS,
            hidden_act="quick_gelu",
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=1,
        )
    )
