"""Which reward model judges, its widths, and how it is trained."""

from dataclasses import dataclass, field

from configs.checks import at_least, inside, one_of
from configs.training import TrainConfig

REWARDS = ("embedded", "qwen")


@dataclass
class EmbeddedRewardConfig:
    """A small video classifier with a yes/no head (docs/embedded-models.md)."""

    width: int = 32
    words: int = 64


@dataclass
class QwenRewardConfig:
    """A Qwen3-VL checkpoint folder. "": a tiny random one is built, for tests and trials only."""

    path: str = ""
    dtype: str = "float32"  # that scoring computes in and checkpoints are saved in
    view: int = 0  # which view the model watches; -1: all three stacked
    freeze_vision: bool = False  # train the language model only
    recompute: bool = False  # activations in the backward pass instead of keeping them

    def __post_init__(self) -> None:
        one_of("reward.qwen.dtype", self.dtype, ("float32", "bfloat16"))
        one_of("reward.qwen.view", str(self.view), ("-1", "0", "1", "2"))


@dataclass
class RewardConfig:
    kind: str = "embedded"
    checkpoint: str = "base"  # folder of the base model; "base", "scratch", or a path
    num_frames: int = 16  # a clip; evenly spaced, the last frame included
    train_iterations: int = 1  # in which first iterations the reward model is trained (paper: 1)
    holdout: float = 0.25  # share of labelled episodes kept out for calibration
    max_batch: int = 16  # clips per forward
    max_wait_s: float = 0.05
    embedded: EmbeddedRewardConfig = field(default_factory=EmbeddedRewardConfig)
    qwen: QwenRewardConfig = field(default_factory=QwenRewardConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        one_of("reward.kind", self.kind, REWARDS)
        at_least("reward.num_frames", self.num_frames, 2)
        at_least("reward.max_batch", self.max_batch, 1)
        inside("reward.holdout", self.holdout, 0, 1)
