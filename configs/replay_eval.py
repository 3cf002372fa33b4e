"""``job=replay_eval``: how well world models show what real cameras saw."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from configs.checks import at_least


@dataclass
class ReplayEvalConfig:
    """The protocol of the paper's Table 1 and of its Figures 5, 6 and 8."""

    models: Any = None  # {name: checkpoint folder}: hydra adds no names to a typed dict
    # ^ world models side by side; null: world_model.checkpoint alone
    run: str = ""  # folder of a run whose evaluation episodes are replayed; "": those of robot.path
    split: str = "val"  # robot=recorded: which episodes, train or val; "": all of them
    clips: int = 256  # of Table 1, drawn evenly from the episodes
    seconds: float = 5.0  # of one clip, the real first frame not counted
    events: int = 50  # episodes whose last `seconds` are replayed and judged; 0: none
    long: int = 2  # replays of `long_seconds`; 0: none
    long_seconds: float = 20.0
    futures: int = 15  # imagined from one start by the policy, with as many seeds; 0: none
    sheets: int = 3  # clips shown as pictures
    seed: int = 0  # of the clips and of the world model's noise
    batch: int = 4  # clips that one process replays together
    workers: int = 1  # processes per world model
    lpips_weights: str = ""  # torchvision's alexnet-owt-7be5be79.pth or vgg16-397923af.pth
    inception_weights: str = ""  # FID: weights-inception-2015-12-05-6726825d.pth
    i3d_weights: str = ""  # FVD: i3d_torchscript.pt; it is TorchScript and runs its own code

    def __post_init__(self) -> None:
        flag = "replay_eval"
        for name in ("clips", "batch", "workers"):
            at_least(f"{flag}.{name}", getattr(self, name), 1)
        for name in ("events", "long", "futures", "sheets", "seed"):
            at_least(f"{flag}.{name}", getattr(self, name), 0)
        for name in ("seconds", "long_seconds"):
            at_least(f"{flag}.{name}", getattr(self, name), 0.8)
        if self.futures == 1:
            raise ValueError(f"{flag}.futures=1 shows no spread: give 2 or more, or 0 for none")
        self._check_models()

    def named(self, own: str) -> dict[str, str]:
        """World models by name; ``own`` is world_model.checkpoint."""
        return self.models or {"world model": own}

    def _check_models(self) -> None:
        flag, models = "replay_eval", {} if self.models is None else self.models
        if not isinstance(models, Mapping) or not all(isinstance(m, str) for m in models.values()):
            raise ValueError(f"{flag}.models={models!r} must be {{name: checkpoint folder, ...}}")
        for name in ("real", "copy first", "copy last"):
            if name in models:
                raise ValueError(f"{flag}.models: {name!r} is a row of its own; use another name")
