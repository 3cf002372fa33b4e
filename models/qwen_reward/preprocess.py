"""From a clip to Qwen3-VL's inputs: patches, timestamps and prompt, without torchvision.

The numbers equal Qwen3VLProcessor of transformers 5.10 and later for frames sampled beforehand.
"""

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn import functional

from contracts.constants import FRAME_HZ, VIEWS
from contracts.types import Clip

STACKED = -1  # the three views above each other, in the order of constants.VIEWS
LAYOUT = "transformers>=5.10"  # one more vision_start/end pair around the video than 4.57 to 5.9
QUESTION = (
    "A robot arm was told: {instruction}\n"
    "Judge the last moment of the video. Has the robot completed this instruction? "
    "Answer yes or no."
)
VIDEO_TOKEN = "<|video_pad|>"
MAX_ASPECT = 200


@dataclass(frozen=True, slots=True)
class PatchLayout:
    """How Qwen3-VL cuts a video. The pixel limits count frames x height x width (4B release).

    ``frame_tokens``: most tokens of one frame, as ``cap_pixels_per_frame`` sets it; None: no limit.
    """

    patch: int = 16
    merge: int = 2  # patches per side that become one token
    temporal: int = 2  # frames that one patch spans
    min_pixels: int = 4096
    max_pixels: int = 25_165_824
    frame_tokens: int | None = None

    @property
    def factor(self) -> int:
        return self.patch * self.merge

    def most_pixels(self, frames: int) -> int:
        """The upper pixel limit of a video of so many frames."""
        if self.frame_tokens is None:
            return self.max_pixels
        share = min(self.frame_tokens * self.factor**2, self.max_pixels // frames)
        return max(share, int(self.min_pixels * 1.05)) * frames


@dataclass(frozen=True, slots=True)
class Video:
    """One clip as the vision tower takes it. ``grid``: patches along time, height and width."""

    patches: Float32[Tensor, "patch feature"]
    grid: tuple[int, int, int]
    tokens_per_step: int


def watched(clip: Clip, view: int) -> UInt8[np.ndarray, "frame height width 3"]:
    """The pictures that the model is shown: one view, or all three stacked (``view=-1``).

    Raises:
        ValueError: no such view.
    """
    if not STACKED <= view < len(VIEWS):
        raise ValueError(f"reward.qwen.views: {view} must be -1 (stacked) or 0..{len(VIEWS) - 1}")
    if view != STACKED:
        return clip.frames[:, view]
    return np.concatenate([clip.frames[:, index] for index in range(len(VIEWS))], axis=1)


def shown_size(
    frame_size: tuple[int, int], view: int, frames: int, layout: PatchLayout
) -> tuple[int, int]:
    """(height, width) that the vision tower is given of stored views of ``frame_size``."""
    height, width = frame_size
    return resized(frames, height * (len(VIEWS) if view == STACKED else 1), width, layout)


def resized(frames: int, height: int, width: int, layout: PatchLayout) -> tuple[int, int]:
    """Height and width that Qwen3-VL resizes a video to: multiples of ``layout.factor`` near the
    original, within the pixel limits (transformers ``smart_resize``).

    Raises:
        ValueError: fewer frames than one patch spans, or one side 200 times the other.
    """
    factor = layout.factor
    if frames < layout.temporal:
        raise ValueError(f"reward.num_frames={frames} must be at least {layout.temporal}")
    if min(height, width) < factor:
        grow = max(factor / height, factor / width)
        height, width = int(height * grow), int(width * grow)
    if max(height, width) > MAX_ASPECT * min(height, width):
        raise ValueError(f"frames of {height}x{width} pixels are too narrow for Qwen3-VL")
    tall, wide = round(height / factor) * factor, round(width / factor) * factor
    pixels = round(frames / layout.temporal) * layout.temporal * tall * wide
    limit = layout.most_pixels(frames)
    if pixels > limit:
        shrink = math.sqrt(frames * height * width / limit)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif pixels < layout.min_pixels:
        grow = math.sqrt(layout.min_pixels / (frames * height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


def _scaled(
    video: UInt8[Tensor, "frame 3 height width"], size: tuple[int, int]
) -> UInt8[Tensor, "frame 3 tall wide"]:
    if video.shape[2:] == size:
        return video
    if video.device.type == "cpu":
        return functional.interpolate(video, size, mode="bicubic", antialias=True)
    # CUDA has no uint8 kernel: round as the CPU's does.
    smooth = functional.interpolate(video.float(), size, mode="bicubic", antialias=True)
    return smooth.round_().clamp_(0, 255).to(torch.uint8)


def cut(video: UInt8[Tensor, "frame 3 height width"], layout: PatchLayout) -> Video:
    """Resize, map bytes to [-1, 1] and cut into patches, ordered so that the ``merge**2`` patches
    of one token follow each other. An odd last frame is repeated."""
    tall, wide = resized(len(video), video.shape[2], video.shape[3], layout)
    x = (_scaled(video, (tall, wide)).float() - 127.5) / 127.5
    if missing := -len(x) % layout.temporal:
        x = torch.cat([x, x[-1:].expand(missing, -1, -1, -1)])
    p, m, t = layout.patch, layout.merge, layout.temporal
    grid = len(x) // t, tall // p, wide // p
    x = x.view(grid[0], t, 3, grid[1] // m, m, p, grid[2] // m, m, p)
    x = x.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), 3 * t * p * p)
    return Video(x, grid, tokens_per_step=grid[1] * grid[2] // m**2)


def timestamps(frame_index: Sequence[int], layout: PatchLayout) -> list[float]:
    """Seconds of each temporal patch: the mean of its first and last frame at ``FRAME_HZ``."""
    span = layout.temporal
    index = [*frame_index, *[frame_index[-1]] * (-len(frame_index) % span)]
    return [(index[i] + index[i + span - 1]) / 2 / FRAME_HZ for i in range(0, len(index), span)]


def sanitised(instruction: str) -> str:
    """The instruction on one line, unable to spell a control token such as ``<|im_end|>``.

    Raises:
        ValueError: nothing is left to judge by.
    """
    line = re.sub(r"\s+", " ", instruction).strip().replace("<|", "< |").replace("|>", "| >")
    if not line:
        raise ValueError(
            "a clip with an empty instruction cannot be judged: give it one, or leave such "
            "recordings out with robot.untitled=false"
        )
    return line


def prompt(
    instruction: str, frame_index: Sequence[int], tokens_per_step: int, layout: PatchLayout
) -> str:
    """The rendered chat turn, up to the position whose next token is the answer."""
    steps = "".join(
        f"<{seconds:.1f} seconds><|vision_start|>{VIDEO_TOKEN * tokens_per_step}<|vision_end|>"
        for seconds in timestamps(frame_index, layout)
    )
    question = QUESTION.format(instruction=sanitised(instruction))
    return (
        f"<|im_start|>user\n<|vision_start|>{steps}<|vision_end|>{question}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def template_hash() -> str:
    """Identifies the prompt: a model fine-tuned on one wording is not asked with another."""
    example = prompt("open the book", range(4), tokens_per_step=1, layout=PatchLayout())
    return hashlib.sha256(example.encode()).hexdigest()[:16]
