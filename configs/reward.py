"""Which reward model judges, its widths, and how it is trained."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of
from configs.training import TrainConfig

REWARDS = ("embedded", "qwen")


@dataclass
class EmbeddedRewardConfig:
    """A small video classifier with a yes/no head (docs/embedded-models.md)."""

    width: int = 32
    words: int = 128  # rows of the hashed instruction


@dataclass
class QwenRewardConfig:
    """A Qwen3-VL checkpoint folder. "": a tiny random one is built, for tests and trials only."""

    path: str = ""
    dtype: str = "float32"  # that scoring computes in and checkpoints are saved in
    views: list[int] = field(default_factory=lambda: [0])  # each judged alone; -1: all stacked
    combine: str = "min"  # of the views' scores: min (the most doubtful view) or mean
    freeze_vision: bool = False  # train the language model only
    recompute: bool = False  # activations in the backward pass instead of keeping them
    lora_rank: int = 0  # 0: train all weights; else low-rank adapters, merged when saved
    lora_alpha: int = 32  # adapters are scaled by lora_alpha / lora_rank
    lora_targets: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"]
    )

    def __post_init__(self) -> None:
        one_of("reward.qwen.dtype", self.dtype, ("float32", "bfloat16"))
        one_of("reward.qwen.combine", self.combine, ("min", "mean"))
        at_least("reward.qwen.lora_rank", self.lora_rank, 0)
        at_least("reward.qwen.lora_alpha", self.lora_alpha, 1)
        known = set(self.views) <= {0, 1, 2} or self.views == [-1]
        if not self.views or len(set(self.views)) < len(self.views) or not known:
            raise ValueError(
                f"reward.qwen.views={self.views} must name different views of 0, 1 and 2, or be "
                "[-1]: all three above each other"
            )


@dataclass
class RewardValidationConfig:
    """Early stopping: the negative log-likelihood of whole labelled episodes that are kept out."""

    share: float = 0.0  # of the training episodes; 0: none are kept out, every step is taken
    every: int = 25  # steps between measurements
    patience: int = 0  # measurements without a new best that end training; 0: never

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"reward.validation.share={self.share} must lie in [0, 1)")
        at_least("reward.validation.every", self.every, 1)
        at_least("reward.validation.patience", self.patience, 0)


@dataclass
class RewardConfig:
    kind: str = "embedded"
    checkpoint: str = "base"  # folder of the base model; "base", "scratch", or a path
    num_frames: int = 16  # a clip; evenly spaced, the last frame included
    train_iterations: int = 1  # in which first iterations the reward model is trained (paper: 1)
    holdout: float = 0.25  # share of labelled episodes kept out for calibration
    audited: str = ""  # folder of a run whose audit labels train it, too (docs/audit.md)
    swap_share: float = 0.2  # of the "no" clips: a success with another task's instruction
    clip_share: float = 0.2  # of the "no" clips: a success, shown only until before it was one
    target_precision: float = 0.9  # that ``job=calibrate`` looks a threshold for, per task
    max_batch: int = 16  # clips per forward
    max_wait_s: float = 0.05
    embedded: EmbeddedRewardConfig = field(default_factory=EmbeddedRewardConfig)
    qwen: QwenRewardConfig = field(default_factory=QwenRewardConfig)
    validation: RewardValidationConfig = field(default_factory=RewardValidationConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        one_of("reward.kind", self.kind, REWARDS)
        at_least("reward.num_frames", self.num_frames, 2)
        at_least("reward.max_batch", self.max_batch, 1)
        inside("reward.holdout", self.holdout, 0, 1)
        inside("reward.target_precision", self.target_precision, 0, 1)
        at_least("reward.swap_share", self.swap_share, 0)
        at_least("reward.clip_share", self.clip_share, 0)
        if self.swap_share + self.clip_share >= 1:
            raise ValueError(
                f"reward.swap_share={self.swap_share} and reward.clip_share={self.clip_share} must "
                "leave a share for real failures"
            )
