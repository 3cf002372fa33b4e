"""What leaves a run, and in which layout."""

from dataclasses import dataclass, field

from configs.checks import inside, one_of

FORMATS = ("lerobot", "ctrl_world")
EXPORTED = ("real", "demos", "imagined", "evaluation")


@dataclass
class ExportConfig:
    """``job=export`` and ``job=statistics`` (docs/datasets.md)."""

    format: str = "lerobot"  # version 3.0 with droid_1.0.1's features; or Ctrl-World's layout
    stores: list[str] = field(default_factory=lambda: ["real", "imagined"])
    to: str = ""  # a folder that does not exist yet
    only_successes: bool = False  # labelled successes and imagined ones with P('yes') > alpha
    holdout: float = 0.05  # ctrl_world: share of trajectories in its split "val"
    crf: int = 18  # of the videos: 0 lossless, 51 worst

    def __post_init__(self) -> None:
        one_of("export.format", self.format, FORMATS)
        for store in self.stores:
            one_of("export.stores", store, EXPORTED)
        if not self.stores:
            raise ValueError(f"export.stores=[] names none of {', '.join(EXPORTED)}")
        inside("export.holdout", self.holdout, -1e-9, 1)
        inside("export.crf", self.crf, -1, 52)
