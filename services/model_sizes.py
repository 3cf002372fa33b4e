"""The published models' parameters and layers, counted on the meta device: nothing is allocated."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs.reward import RewardConfig
from configs.run import RunConfig
from configs.world_model import CtrlWorldConfig
from models.lora import add_lora

# diffusers and transformers are imported where they are used: every start of a run comes by here.

FRAMES = 11  # of a Ctrl-World window
LATENT_PIXELS = 8  # of a view per position of its latents
# Qwen3-VL-4B-Instruct (reference/reward_and_metrics.md section 2), where no checkpoint is given
QWEN_4B = {
    "text_config": {
        "vocab_size": 151936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "vision_config": {
        "depth": 24,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_heads": 16,
        "out_hidden_size": 2560,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": [5, 11, 17],
    },
    "tie_word_embeddings": True,
}
PROMPT_TOKENS = 110  # of a Qwen question, timestamps included


@dataclass(frozen=True, slots=True)
class Stream:
    """Layers that one sample passes: each reads ``tokens`` rows of ``width`` channels."""

    layers: int
    tokens: int
    width: int

    @property
    def channels(self) -> int:
        return self.tokens * self.width


@dataclass(frozen=True, slots=True)
class ModelSize:
    """One model at the config's widths. ``gathered``: parameters that sharding holds whole at a
    time, namely what lies outside of its blocks and the two largest blocks."""

    name: str
    flag: str
    parts: dict[str, int]  # parameters by part
    streams: tuple[Stream, ...]
    recompute: bool
    relief: tuple[str, ...]  # settings not yet used that need less memory
    trained: int = 0
    gathered: int = 0

    @property
    def parameters(self) -> int:
        return sum(self.parts.values())


def model_sizes(config: RunConfig) -> list[ModelSize]:
    """Those of the three models that have published sizes, built on the meta device.

    Raises:
        ValueError: ``reward.qwen.path`` holds no config.json.
    """
    found = []
    if config.policy.kind == "pi05":
        found.append(_pi05(config))
    if config.world_model.kind == "ctrl_world":
        found.append(_ctrl_world(config))
    if config.reward.kind == "qwen":
        found.append(_qwen(config.reward, (config.robot.height, config.robot.width)))
    return found


def _pi05(config: RunConfig) -> ModelSize:
    from models.pi05.network import Pi05Network  # noqa: PLC0415

    cfg = config.policy.pi05
    with torch.device("meta"):
        network = Pi05Network(cfg)
        if cfg.lora_rank:
            network.adapt(cfg, config.policy.train.seed)
    pali = network.paligemma_with_expert.paligemma.model
    parts = {
        "vision": _count(pali.vision_tower),
        "projector": _count(pali.multi_modal_projector),
        "language model": _count(pali.language_model),
        "action expert": _count(network.paligemma_with_expert.gemma_expert),
    }
    parts["action heads"] = _count(network) - sum(parts.values())
    patches = (cfg.image_size // cfg.patch_size) ** 2
    streams = (  # two images: the third slot is masked on DROID and left out
        Stream(cfg.vision_depth, 2 * patches, cfg.vision_width),
        Stream(cfg.depth, 2 * patches + cfg.max_token_len, cfg.text_width),
        Stream(cfg.depth, config.policy.horizon, cfg.expert_width),
    )
    relief = [] if cfg.recompute else ["policy.pi05.recompute=true"]
    relief += [] if cfg.lora_rank else ["policy.pi05.lora_rank=16"]
    size = ModelSize("pi0.5", "policy", parts, streams, cfg.recompute, tuple(relief))
    return _measured(size, network)


def _ctrl_world(config: RunConfig) -> ModelSize:
    from models.ctrl_world.network import CtrlWorldNetwork, build_text_encoder  # noqa: PLC0415

    cfg = config.world_model.ctrl_world
    with torch.device("meta"):
        network = CtrlWorldNetwork(replace(cfg, tokenizer=""))
        network.text_encoder = build_text_encoder(cfg).requires_grad_(False)
    parts = {name: _count(module) for name, module in network.named_children()}
    view = (config.robot.height, config.robot.width)
    recompute = cfg.gradient_checkpointing
    relief = [] if recompute else ["world_model.ctrl_world.gradient_checkpointing=true"]
    streams = tuple(_unet_streams(cfg, view))
    size = ModelSize("Ctrl-World", "world_model", parts, streams, recompute, tuple(relief))
    return _measured(size, network)


def _unet_streams(cfg: CtrlWorldConfig, view: tuple[int, int]) -> Iterator[Stream]:
    """Per level: blocks down and one more up, each a spatial and a temporal residual block and,
    but at the last level, transformer. Three views lie on top of each other."""
    positions = 3 * (view[0] // LATENT_PIXELS) * (view[1] // LATENT_PIXELS)
    for level, width in enumerate(cfg.block_channels):
        last = level == len(cfg.block_channels) - 1
        layers = (2 * cfg.layers_per_block + 1) * (2 if last else 4)
        yield Stream(layers, FRAMES * positions // 4**level, width)


def _qwen(cfg: RewardConfig, view: tuple[int, int]) -> ModelSize:
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration  # noqa: PLC0415

    about = Qwen3VLConfig(**_qwen_numbers(cfg))
    with torch.device("meta"):
        network = Qwen3VLForConditionalGeneration(about)
        network.tie_weights()
        if cfg.qwen.freeze_vision:
            network.model.visual.requires_grad_(False)
        if cfg.qwen.lora_rank:
            seed = cfg.train.seed
            add_lora(network, cfg.qwen.lora_rank, cfg.qwen.lora_alpha, cfg.qwen.lora_targets, seed)
    visual = _count(network.model.visual)
    parts = {"vision": visual, "language model": _count(network) - visual}
    eyes: Any = about.vision_config
    words: Any = about.text_config
    steps = cfg.num_frames // eyes.temporal_patch_size
    stacked = 3 if cfg.qwen.views == [-1] else 1
    patches = steps * stacked * (view[0] // eyes.patch_size) * (view[1] // eyes.patch_size)
    tokens = patches // eyes.spatial_merge_size**2 + PROMPT_TOKENS
    streams = (
        Stream(eyes.depth, patches, eyes.hidden_size),
        Stream(words.num_hidden_layers, tokens, words.hidden_size),
    )
    relief = [] if cfg.qwen.recompute else ["reward.qwen.recompute=true"]
    relief += [] if cfg.qwen.lora_rank else ["reward.qwen.lora_rank=16"]
    name = f"Qwen3-VL ({cfg.qwen.path or '4B-Instruct, published sizes'})"
    size = ModelSize(name, "reward", parts, streams, cfg.qwen.recompute, tuple(relief))
    return _measured(size, network)


def _qwen_numbers(cfg: RewardConfig) -> dict[str, Any]:
    if not cfg.qwen.path:
        return QWEN_4B
    file = Path(cfg.qwen.path) / "config.json"
    if not file.is_file():
        raise ValueError(f"reward.qwen.path={cfg.qwen.path} holds no config.json")
    return json.loads(file.read_text(encoding="utf-8"))


def _measured(size: ModelSize, network: nn.Module) -> ModelSize:
    """``size`` with what follows from the network: trained and gathered parameters."""
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    blocks = sorted((_count(block) for block in _blocks(network)), reverse=True)
    return replace(size, trained=trained, gathered=size.parameters - sum(blocks[2:]))


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """Elements of the outermost module lists: what FSDP gathers one by one (learners/sharding)."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from child
        else:
            yield from _blocks(child)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
