"""Opens a Qwen3-VL folder as published, and says in one message what is wrong with another."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from logging import CRITICAL
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Qwen3VLForConditionalGeneration
from transformers.utils import logging

from models.qwen_reward.preprocess import PatchLayout
from models.qwen_reward.processor import COMPANIONS, check_template, patch_layout, read_json

KIND = "qwen3_vl"
WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
CONTROL = {  # the prompt's control tokens, and where the model's config names their ids
    "<|vision_start|>": "vision_start_token_id",
    "<|vision_end|>": "vision_end_token_id",
    "<|video_pad|>": "video_token_id",
}
SHOWN = 4  # keys in a message

logging.disable_progress_bar()  # a stage has its own


@dataclass(frozen=True, slots=True)
class Release:
    """A checkpoint in memory, weights in float32. ``companions``: files to carry along."""

    model: Qwen3VLForConditionalGeneration
    tokenizer: PreTrainedTokenizerBase
    layout: PatchLayout
    companions: dict[str, bytes]


def open_release(folder: Path) -> Release:
    """Open a folder that ``AutoModelForImageTextToText`` and ``AutoProcessor`` would open.

    One ``model.safetensors`` or an index of shards; ``lm_head`` stored, or tied to the embedding;
    processor files as transformers 4.57 or 5 write them.

    Raises:
        ValueError: something is missing, damaged, not finite, or of another architecture.
    """
    _check_architecture(folder)
    _check_shards(folder)
    model = _weights(folder)
    tokenizer = _tokenizer(folder, model)
    check_template(folder, tokenizer)
    vision = model.model.visual
    cut = PatchLayout(
        vision.patch_size, vision.spatial_merge_size, vision.patch_embed.temporal_patch_size
    )
    companions = {
        name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).exists()
    }
    return Release(model, tokenizer, patch_layout(folder, cut), companions)


def _check_architecture(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no Qwen3-VL checkpoint: set reward.qwen.path")
    kind = read_json(folder / "config.json").get("model_type")
    if kind != KIND:
        raise ValueError(
            f"{folder} is a {kind!r} model, not {KIND!r}: give a dense Qwen3-VL folder in "
            "reward.qwen.path"
        )


def _check_shards(folder: Path) -> None:
    """Every file of weights is there, whole, and holds what the index says."""
    if (folder / WHOLE).exists():
        _keys(folder / WHOLE)
        return
    if not (folder / INDEX).exists():
        raise ValueError(
            f"{folder} holds neither {WHOLE} nor {INDEX}: copy the checkpoint again, as safetensors"
        )
    places = read_json(folder / INDEX).get("weight_map", {})
    for shard in sorted(set(places.values())):
        if not (folder / shard).exists():
            raise ValueError(f"{folder / shard} is missing: copy the checkpoint again")
        promised = {name for name, place in places.items() if place == shard}
        if lost := promised - _keys(folder / shard):
            raise ValueError(f"{folder / shard} lacks {_some(lost)}: copy the checkpoint again")


def _keys(path: Path) -> set[str]:
    try:
        with safe_open(path, framework="pt") as file:
            return set(file.keys())
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or damaged ({error}): copy the checkpoint again"
        ) from error


def _weights(folder: Path) -> Qwen3VLForConditionalGeneration:
    # With mismatches ignored they come back as a list, not as a log and a bare RuntimeError.
    with _quiet():
        found: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="sdpa",
            local_files_only=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    model, report = found
    if wrong := report["mismatched_keys"]:
        name, stored, wanted = min(wrong)
        raise ValueError(
            f"{folder}: {name} is {tuple(stored)} wide, config.json asks for {tuple(wanted)} "
            f"({len(wrong)} such tensors): weights and config are of different models"
        )
    if missing := report["missing_keys"]:
        raise ValueError(f"{folder} lacks {_some(missing)}: copy the checkpoint again")
    if unknown := report["unexpected_keys"]:
        raise ValueError(
            f"{folder} holds {_some(unknown)}, which Qwen3-VL does not have: weights and config "
            "are of different models"
        )
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise ValueError(
                f"{folder}: {name} holds numbers that are not finite: take an earlier checkpoint"
            )
    return model.eval()


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers logs what is missing before we can say it in one message."""
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _tokenizer(folder: Path, model: Qwen3VLForConditionalGeneration) -> PreTrainedTokenizerBase:
    old = (folder / "vocab.json").exists() and (folder / "merges.txt").exists()
    if not old and not (folder / "tokenizer.json").exists():
        raise ValueError(
            f"{folder} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt): copy the "
            "checkpoint again"
        )
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    for token, name in CONTROL.items():
        ours, theirs = tokenizer.convert_tokens_to_ids(token), model.config.to_dict()[name]
        if ours != theirs:
            raise ValueError(
                f"{folder}: {token} is token {ours} to the tokenizer, but config.json says "
                f"{name}={theirs}: tokenizer and weights are of different models"
            )
    return tokenizer


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN} more" if len(listed) > SHOWN else ""
    return ", ".join(listed[:SHOWN]) + more
