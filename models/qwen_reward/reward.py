"""Qwen3-VL behind the reward protocol: one forward, the softmax at the answer position."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoTokenizer, Qwen3VLForConditionalGeneration

from configs.reward import RewardConfig
from contracts.constants import NO_VERSION
from contracts.types import Clip, Score
from models.interfaces import Batch, RewardBatch
from models.qwen_reward.manifest import Manifest
from models.qwen_reward.preprocess import VIDEO_TOKEN, PatchLayout, cut, prompt, watched
from models.qwen_reward.tiny import write_tiny

VIDEO_TYPE = 2  # in mm_token_type_ids: 0 text, 1 image, 2 video
MIN_MASS = 0.9
# Files of a release that stock AutoProcessor reads; they travel with the weights unread.
COMPANIONS = (
    "preprocessor_config.json",
    "video_preprocessor_config.json",
    "processor_config.json",
    "generation_config.json",
)


@dataclass(frozen=True, slots=True)
class AnswerMass:
    """How much probability the answers 'yes' and 'no' hold together. ``warning`` is "" if fine."""

    mean: float
    warning: str


def answer_mass(scores: Sequence[Score]) -> AnswerMass:
    """Below 0.9 the model often says something else, so P('yes') > alpha cannot be trusted.

    Raises:
        ValueError: there are no scores.
    """
    if not scores:
        raise ValueError("answer_mass needs at least one score")
    mean = sum(score.mass for score in scores) / len(scores)
    if mean >= MIN_MASS:
        return AnswerMass(mean, "")
    return AnswerMass(
        mean,
        f"P('yes') + P('no') is {mean:.3f} on average over {len(scores)} clips, below {MIN_MASS}: "
        "the model answers with other words. Fine-tune it before its scores are used",
    )


class QwenReward:
    """P('yes') that a clip shows its instruction completed (VLAW Eq. 3, appendix C).

    Weights are float32 in memory, the masters of an optimiser; ``reward.qwen.dtype`` is what
    scoring computes in and what is saved. The prompt's wording is ours: the paper prints none.

    Raises:
        ValueError: no such checkpoint, one trained on other inputs, or 'yes' is not one token.
    """

    def __init__(self, cfg: RewardConfig, seed: int) -> None:
        if cfg.qwen.path:
            self._open(cfg, Path(cfg.qwen.path))
            return
        with tempfile.TemporaryDirectory() as folder:
            write_tiny(Path(folder), seed)
            self._open(cfg, Path(folder))

    @classmethod
    def load(cls, cfg: RewardConfig, folder: Path, version: int) -> "QwenReward":
        """The model that ``save`` wrote. Raises ValueError where config and folder disagree."""
        self = cls.__new__(cls)
        self._open(cfg, folder)
        self.version = version
        return self

    def _open(self, cfg: RewardConfig, folder: Path) -> None:
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no Qwen3-VL checkpoint: set reward.qwen.path")
        manifest = Manifest.read(folder) or Manifest.of(cfg)
        manifest.check(cfg, folder)
        self.version = NO_VERSION
        self._cfg = cfg
        self._frame_size = manifest.frame_size
        self._dtype = torch.bfloat16 if cfg.qwen.dtype == "bfloat16" else torch.float32
        self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = Qwen3VLForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="sdpa", local_files_only=True
        ).eval()
        self._prepare_training()
        vision = self._model.model.visual
        self._layout = PatchLayout(
            vision.patch_size, vision.spatial_merge_size, vision.patch_embed.temporal_patch_size
        )
        self._yes, self._no = self._token("yes"), self._token("no")
        self._companions = {
            name: (folder / name).read_bytes() for name in COMPANIONS if (folder / name).exists()
        }

    def _prepare_training(self) -> None:
        if self._cfg.qwen.freeze_vision:
            self._model.model.visual.requires_grad_(False)
        if self._cfg.qwen.recompute:
            self._model.activation_checkpointing_enable()

    def _token(self, word: str) -> int:
        ids = self._tokenizer.encode(word, add_special_tokens=False)
        if len(ids) != 1:
            raise ValueError(
                f"{word!r} is {len(ids)} tokens to this tokenizer, but P({word!r}) is read off one "
                "position: choose a checkpoint whose tokenizer keeps it whole"
            )
        return ids[0]

    def module(self) -> nn.Module:
        return self._model

    def fit_statistics(self, batch: Batch) -> None:
        """Does nothing: Qwen3-VL maps bytes to [-1, 1] by constants, whatever the data."""

    def score(self, clips: Sequence[Clip]) -> list[Score]:
        """P('yes') under the full softmax, and the mass of both answers, in the order of ``clips``.

        At most ``reward.max_batch`` clips share a forward; a clip's score does not depend on them
        (to rounding).

        Raises:
            ValueError: a clip has another number of frames or another size than trained on.
        """
        self._check(clips)
        size = self._cfg.max_batch
        training = self._model.training
        self._model.eval()
        try:
            groups = [self._score(clips[i : i + size]) for i in range(0, len(clips), size)]
        finally:
            self._model.train(training)
        return [score for group in groups for score in group]

    @torch.inference_mode()
    def _score(self, clips: Sequence[Clip]) -> list[Score]:
        low = self._dtype == torch.bfloat16
        with torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=low):
            logits = self.answer_logits(clips)
        answers = logits.softmax(dim=-1)[:, [self._yes, self._no]].tolist()
        return [Score(p_yes=yes, mass=min(yes + no, 1.0)) for yes, no in answers]

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Cross-entropy of 'yes' or 'no' over the whole vocabulary at the answer position.

        Over the whole vocabulary, because a two-way loss leaves P('yes') near zero under the
        softmax that ``score`` reads. Uses no randomness.

        Raises:
            ValueError: not a reward batch, or clips that differ from those before.
        """
        if not isinstance(batch, RewardBatch):
            raise ValueError(
                f"a reward model learns from a RewardBatch, not {type(batch).__name__}"
            )
        if self._frame_size is None and batch.clips:
            height, width = batch.clips[0].frames.shape[2:4]
            self._frame_size = (height, width)
        self._check(batch.clips)
        logits = self.answer_logits(batch.clips)
        answers = [self._yes if success else self._no for success in batch.success]
        target = torch.tensor(answers, device=logits.device)
        return functional.cross_entropy(logits, target, reduction="none")

    def answer_logits(self, clips: Sequence[Clip]) -> Float32[Tensor, "clip token"]:
        """Logits of the token that follows each prompt."""
        inputs = self.inputs(clips)
        return self._model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()

    def inputs(self, clips: Sequence[Clip]) -> dict[str, Tensor]:
        """The forward's arguments. Rows are padded on the left, so the last position of every row
        is the one that answers."""
        device = self._model.device
        layout = self._layout
        videos, texts = [], []
        for clip in clips:
            frames = torch.tensor(watched(clip, self._cfg.qwen.view)).to(device)
            video = cut(frames.permute(0, 3, 1, 2).contiguous(), layout)
            videos.append(video)
            texts.append(prompt(clip.instruction, clip.frame_index, video.tokens_per_step, layout))
        words = self._tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
        ids = words["input_ids"].to(device)
        video_id = self._tokenizer.convert_tokens_to_ids(VIDEO_TOKEN)
        return {
            "input_ids": ids,
            "attention_mask": words["attention_mask"].to(device),
            "mm_token_type_ids": (ids == video_id).long() * VIDEO_TYPE,
            "pixel_values_videos": torch.cat([video.patches for video in videos]),
            "video_grid_thw": torch.tensor([video.grid for video in videos], device=device),
        }

    def _check(self, clips: Sequence[Clip]) -> None:
        for clip in clips:
            count, _, height, width, _ = clip.frames.shape
            if count != self._cfg.num_frames or count != len(clip.frame_index):
                raise ValueError(
                    f"a clip of {count} frames and {len(clip.frame_index)} indices, but the reward "
                    f"model looks at reward.num_frames={self._cfg.num_frames}"
                )
            if self._frame_size not in (None, (height, width)):
                raise ValueError(
                    f"a clip of {height}x{width} pixels, but this reward model was trained on "
                    f"{self._frame_size}: set robot.height and robot.width, or train it again"
                )

    def save(self, folder: Path) -> None:
        """Write a folder that stock transformers loads, and the manifest of what it looks at."""
        state = {name: value.to(self._dtype) for name, value in self._model.state_dict().items()}
        self._model.save_pretrained(folder, state_dict=state)
        self._tokenizer.save_pretrained(folder)
        for name, content in self._companions.items():
            (folder / name).write_bytes(content)
        Manifest.of(self._cfg, self._frame_size).write(folder)
