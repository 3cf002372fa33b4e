"""How long and how fast one learner trains."""

from dataclasses import dataclass

from configs.checks import at_least, inside, one_of


@dataclass
class TrainConfig:
    """One training stage. The batch of step k is a function of (seed, k), so resume is exact."""

    steps: int = 100
    batch: int = 32
    learning_rate: float = 3e-4
    warmup: int = 10
    final_learning_rate: float = 0.1  # of the peak, reached by a cosine at the last step
    decay_steps: int = 0  # the step that reaches it, warm-up included; 0: the last step
    weight_decay: float = 1e-4
    beta2: float = 0.999  # AdamW's decay of squared gradients; openpi's recipes use 0.95
    clip_norm: float = 1.0
    ema: float = 0.0  # 0: publish the last weights; else their exponential average
    bf16: bool = False  # autocast; master weights stay float32
    checkpoint_every: int = 50  # steps between exact-resume checkpoints
    threads: int = 1  # intra-op threads of the learner process
    device: str = "auto"  # cpu, cuda, or auto: cuda where the process was given a GPU
    sharding: str = "ddp"  # several learner processes: ddp (a whole model each) or fsdp (a share)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "checkpoint_every", "threads"):
            at_least(f"train.{name}", getattr(self, name), 1)
        inside("train.learning_rate", self.learning_rate, 0, 1)
        at_least("train.warmup", self.warmup, 0)
        at_least("train.seed", self.seed, 0)
        at_least("train.decay_steps", self.decay_steps, 0)
        inside("train.beta2", self.beta2, 0, 1)
        one_of("train.sharding", self.sharding, ("ddp", "fsdp"))
        one_of("train.device", self.device, ("auto", "cpu", "cuda"))
        inside("train.ema", self.ema, -1e-9, 1)
