"""The processor files of a Qwen3-VL folder, old layout and new, read without transformers' own
processor, which needs torchvision."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from models.qwen_reward.preprocess import PatchLayout, prompt, sanitised

NESTED = "processor_config.json"  # transformers 5: every part in one file
VIDEO, IMAGE = "video_preprocessor_config.json", "preprocessor_config.json"  # 4.57 and before
TEMPLATES = ("chat_template.jinja", "chat_template.json")
# What stock AutoProcessor reads besides the tokenizer; it travels with the weights, unchanged.
COMPANIONS = (NESTED, VIDEO, IMAGE, *TEMPLATES, "generation_config.json")
BICUBIC = 3
_FIXED: Mapping[str, Any] = {  # what preprocess.py does, always
    "do_resize": True,
    "do_rescale": True,
    "do_normalize": True,
    "resample": BICUBIC,
    "rescale_factor": 1 / 255,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def read_json(path: Path) -> dict[str, Any]:
    """Raises ValueError naming the file when it is no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} cannot be read ({error}): copy the checkpoint again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} is no JSON object: copy the checkpoint again")
    return value


def video_settings(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """The video processor's settings and their file, in transformers' order of preference: inside
    ``processor_config.json``, else a file of their own, else the image processor's.

    (None, {}) where the folder has none of them: weights saved without a processor.
    """
    nested = folder / NESTED
    if nested.exists() and "video_processor" in (found := read_json(nested)):
        return nested, found["video_processor"]
    for name in (VIDEO, IMAGE):
        if (folder / name).exists():
            return folder / name, read_json(folder / name)
    return None, {}


def patch_layout(folder: Path, model: PatchLayout) -> PatchLayout:
    """``model``, how the vision tower cuts, with the pixel limits of the processor files.

    Raises:
        ValueError: the files ask for a treatment that preprocess.py does not give.
    """
    path, settings = video_settings(folder)
    if path is None:
        return model
    asked = dict(_FIXED) | {
        "patch_size": model.patch,
        "merge_size": model.merge,
        "temporal_patch_size": model.temporal,
    }
    for name, ours in asked.items():
        theirs = settings.get(name, ours)
        if theirs is not None and not np.allclose(theirs, ours):
            raise ValueError(
                f"{path} asks for {name}={theirs}, but Qwen3-VL frames are prepared with {ours} "
                "here: choose another checkpoint, or mend the file"
            )
    size = settings.get("size") or {}
    capped = bool(settings.get("cap_pixels_per_frame"))
    return replace(
        model,
        min_pixels=size.get("shortest_edge", model.min_pixels),
        max_pixels=size.get("longest_edge", model.max_pixels),
        frame_tokens=settings.get("max_video_tokens", 768) if capped else None,
    )


def chat_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """The folder's chat template, wherever its version of transformers put it; None without one."""
    jinja, legacy = (folder / name for name in TEMPLATES)
    if jinja.exists():
        return jinja.read_text(encoding="utf-8")
    if legacy.exists():
        return read_json(legacy).get("chat_template")
    nested = read_json(folder / NESTED) if (folder / NESTED).exists() else {}
    found = nested.get("chat_template") or tokenizer.chat_template
    return found["default"] if isinstance(found, dict) else found


def check_template(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Compare our prompt with what the folder's template makes of the same turn.

    Only where the answer is the very next token is P('yes') read at the right place: a "Thinking"
    release, for one, begins its answer with ``<think>``.

    Raises:
        ValueError: they differ.
    """
    template = chat_template(folder, tokenizer)
    if template is None:
        return
    words = sanitised("open the book")
    ours = prompt(words, (0, 1), tokens_per_step=1, layout=PatchLayout())
    start, end = "<|vision_start|>", "<|vision_end|>"
    video, text = ours[ours.index(start) :].split(f"{end}{end}")
    turn = {
        "role": "user",
        "content": [{"type": "video"}, {"type": "text", "text": text.split("<|im_end|>")[0]}],
    }
    rendered = tokenizer.apply_chat_template(
        [turn], chat_template=template, tokenize=False, add_generation_prompt=True
    )
    # The processor puts the frames in the place of the one pad of the template.
    frames = video.removeprefix(start) + end
    filled = str(rendered).replace("<|video_pad|>", frames, 1)
    if filled != ours:
        raise ValueError(
            f"{folder}: its chat template asks {str(rendered)!r}, which is not how the reward "
            "model is asked: choose a Qwen3-VL Instruct release"
        )
