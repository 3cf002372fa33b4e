"""Qwen3-VL behind the reward protocol: one forward per view, softmax at the answer position."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Float, Float32
from torch import Tensor, nn
from torch.nn import functional

from configs.reward import RewardConfig
from contracts.constants import NO_VERSION
from contracts.types import Clip, Score
from models.interfaces import Batch, RewardBatch
from models.lora import add_lora, merged_state
from models.qwen_reward.checkpoint import open_release
from models.qwen_reward.manifest import Manifest
from models.qwen_reward.preprocess import VIDEO_TOKEN, cut, prompt, shown_size, watched
from models.qwen_reward.tiny import write_tiny

VIDEO_TYPE = 2  # in mm_token_type_ids: 0 text, 1 image, 2 video


def combined(scores: Sequence[Score], how: str) -> Score:
    """One score of several views of a clip: ``min``, that of the view with the lowest P('yes'), or
    ``mean``, the means of P('yes') and of the answers' mass."""
    if how == "min":
        return min(scores, key=lambda score: score.p_yes)
    count = len(scores)
    return Score(sum(s.p_yes for s in scores) / count, sum(s.mass for s in scores) / count)


class QwenReward:
    """P('yes') that a clip shows its instruction completed (VLAW Eq. 3, appendix C).

    Weights are float32 in memory, the masters of an optimiser; ``reward.qwen.dtype`` is what
    scoring computes in and what is saved. Adapters (``reward.qwen.lora_rank``) are merged when
    saved. The prompt's wording is ours: the paper prints none.

    Raises:
        ValueError: no such checkpoint, a damaged one, one trained on other inputs, or 'yes' is not
            one token.
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
        manifest = Manifest.read(folder) or Manifest.of(cfg)
        manifest.check(cfg, folder)
        release = open_release(folder)
        self.version = NO_VERSION
        self._cfg = cfg
        self._dtype = torch.bfloat16 if cfg.qwen.dtype == "bfloat16" else torch.float32
        self._model, self._tokenizer = release.model, release.tokenizer
        self._layout, self._companions = release.layout, release.companions
        self._manifest = Manifest.of(cfg)
        if manifest.frame_size is not None:
            self._see(manifest.frame_size)
        if self._manifest.shown_size != manifest.shown_size:
            raise ValueError(
                f"{folder} was trained on frames resized to {manifest.shown_size}, but its "
                f"processor files now say {self._manifest.shown_size}: restore these files"
            )
        self._prepare_training()
        self._yes, self._no = self._token("yes"), self._token("no")

    def _see(self, frame_size: tuple[int, int]) -> None:
        """From now on the model knows views of (height, width) pixels only."""
        qwen, frames = self._cfg.qwen, self._cfg.num_frames
        shown = shown_size(frame_size, qwen.views[0], frames, self._layout)
        self._manifest = replace(self._manifest, frame_size=frame_size, shown_size=shown)

    def _prepare_training(self) -> None:
        qwen, seed = self._cfg.qwen, self._cfg.train.seed
        if qwen.freeze_vision:
            self._model.model.visual.requires_grad_(False)
        if qwen.lora_rank:
            add_lora(self._model, qwen.lora_rank, qwen.lora_alpha, qwen.lora_targets, seed)
        if qwen.recompute:
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

        Every view of ``reward.qwen.views`` is judged alone, then they are ``combined``. At most
        ``reward.max_batch`` clips share a forward; a clip's score does not depend on them (to
        rounding).

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

    def _score(self, clips: Sequence[Clip]) -> list[Score]:
        views = [self._score_view(clips, view) for view in self._cfg.qwen.views]
        how = self._cfg.qwen.combine
        return [combined(of_clip, how) for of_clip in zip(*views, strict=True)]

    @torch.inference_mode()
    def _score_view(self, clips: Sequence[Clip], view: int) -> list[Score]:
        low = self._dtype == torch.bfloat16
        with torch.autocast(self._model.device.type, dtype=torch.bfloat16, enabled=low):
            logits = self.answer_logits(clips, view)
        answers = logits.softmax(dim=-1)[:, [self._yes, self._no]].tolist()
        return [Score(p_yes=yes, mass=min(yes + no, 1.0)) for yes, no in answers]

    def loss(self, batch: Batch, generator: torch.Generator) -> Float[Tensor, " batch"]:
        """Cross-entropy of 'yes' or 'no' over the whole vocabulary at the answer position, the mean
        of the views.

        Over the whole vocabulary, because a two-way loss leaves P('yes') near zero under the
        softmax that ``score`` reads. Uses no randomness.

        Raises:
            ValueError: not a reward batch, or clips that differ from those before.
        """
        if not isinstance(batch, RewardBatch):
            raise ValueError(
                f"a reward model learns from a RewardBatch, not {type(batch).__name__}"
            )
        if self._manifest.frame_size is None and batch.clips:
            height, width = batch.clips[0].frames.shape[2:4]
            self._see((height, width))
        self._check(batch.clips)
        answers = [self._yes if success else self._no for success in batch.success]
        target = torch.tensor(answers, device=self._model.device)
        losses = [
            functional.cross_entropy(
                self.answer_logits(batch.clips, view), target, reduction="none"
            )
            for view in self._cfg.qwen.views
        ]
        return torch.stack(losses).mean(dim=0)

    def answer_logits(self, clips: Sequence[Clip], view: int) -> Float32[Tensor, "clip token"]:
        """Logits of the token that follows each prompt."""
        inputs = self.inputs(clips, view)
        return self._model(**inputs, logits_to_keep=1, use_cache=False).logits[:, -1].float()

    def inputs(self, clips: Sequence[Clip], view: int) -> dict[str, Tensor]:
        """The forward's arguments. Rows are padded on the left, so the last position of every row
        is the one that answers."""
        device = self._model.device
        layout = self._layout
        videos, texts = [], []
        for clip in clips:
            frames = torch.tensor(watched(clip, view)).to(device)
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
        known = self._manifest.frame_size
        for clip in clips:
            count, _, height, width, _ = clip.frames.shape
            if count != self._cfg.num_frames or count != len(clip.frame_index):
                raise ValueError(
                    f"a clip of {count} frames and {len(clip.frame_index)} indices, but the reward "
                    f"model looks at reward.num_frames={self._cfg.num_frames}"
                )
            if known not in (None, (height, width)):
                raise ValueError(
                    f"a clip of {height}x{width} pixels, but this reward model was trained on "
                    f"{known}: set robot.height and robot.width, or train it again"
                )

    def save(self, folder: Path) -> None:
        """Write a folder that stock transformers loads, and the manifest of what it looks at."""
        state = {name: value.to(self._dtype) for name, value in merged_state(self._model).items()}
        self._model.save_pretrained(folder, state_dict=state)
        self._tokenizer.save_pretrained(folder)
        for name, content in self._companions.items():
            (folder / name).write_bytes(content)
        self._manifest.write(folder)
