"""Everything that a run's report shows, as plain values and numpy arrays.

An empty list means "not run", and the report says so. NaN is a number that nobody has.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float, Num, UInt8

from contracts.constants import FRAME_HZ
from contracts.statistics import Agreement, Interval, wilson

PROMISE = (
    "A quick run shows that every part works. Its few episodes and training steps promise no "
    "improvement: read the intervals, and compare with the same-steps control."
)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Success of one policy on one task from fixed starts. ``successes=None``: not evaluated."""

    stage: str  # "base", "vlaw-1", "control"
    task: str
    successes: int | None
    n: int
    seeds: str = ""  # which starts, as in "1000000..1000019"
    control: bool = False  # fine-tuned as many steps on demonstrations only

    def __post_init__(self) -> None:
        if self.successes is not None and not 0 <= self.successes <= self.n:
            raise ValueError(f"{self.stage} {self.task}: {self.successes} successes of {self.n}")

    @property
    def rate(self) -> float:
        return math.nan if not self.n or self.successes is None else self.successes / self.n

    @property
    def interval(self) -> Interval:
        """Wilson, 95 %; [0, 1] where nothing was evaluated."""
        return Interval(0.0, 1.0) if self.successes is None else wilson(self.successes, self.n)


@dataclass(frozen=True, slots=True)
class Imagined:
    """What became of one task's imagined trajectories in one iteration, beside the real ones."""

    iteration: int
    task: str
    requested: int  # N
    accepted: int  # P('yes') > alpha
    rejected: int
    errors: int  # no score: neither a success nor a failure
    real_successes: int
    real_episodes: int
    agreement: Agreement | None = None  # by start; None: unknown

    @property
    def missing(self) -> int:
        """Requested but never imagined or scored."""
        return self.requested - self.accepted - self.rejected - self.errors

    @property
    def accepted_share(self) -> float:
        scored = self.accepted + self.rejected
        return self.accepted / scored if scored else math.nan


@dataclass(frozen=True, slots=True)
class Truth:
    """What one task's imagined actions of one iteration did in the simulator, started alike.

    Counts of trajectories whose actions were executed. ``rejected`` is 0 where only the accepted
    ones were: then nothing is known of those.
    """

    iteration: int
    task: str
    accepted: int
    accepted_true: int  # of them, those that reached the goal
    rejected: int = 0
    rejected_true: int = 0

    @property
    def purity(self) -> float:
        """True share of the executed part of D_syn+; NaN where it is empty."""
        return self.accepted_true / self.accepted if self.accepted else math.nan

    @property
    def interval(self) -> Interval:
        """Of the purity: Wilson, 95 %."""
        return wilson(self.accepted_true, self.accepted)

    @property
    def recall(self) -> float:
        """Accepted share of what succeeds; NaN where nothing does, or only D_syn+ was executed."""
        true = self.accepted_true + self.rejected_true
        return self.accepted_true / true if self.rejected and true else math.nan

    @property
    def base_rate(self) -> float:
        """Success of all imagined actions; NaN where only D_syn+ was executed."""
        n = self.accepted + self.rejected
        return (self.accepted_true + self.rejected_true) / n if self.rejected else math.nan


@dataclass(frozen=True, slots=True)
class Refusal:
    """A step that the run declined to take, and why."""

    iteration: int
    stage: str
    task: str
    reason: str


@dataclass(frozen=True, slots=True)
class Scores:
    """P('yes') of one reward version on real and imagined trajectories."""

    iteration: int
    task: str
    alpha: float
    real_success: Float[np.ndarray, " a"]
    real_failure: Float[np.ndarray, " b"]
    imagined: Float[np.ndarray, " c"]


@dataclass(frozen=True, slots=True)
class LossCurve:
    """One stage of one learner. Non-finite losses are kept and pointed out."""

    learner: str  # "policy", "world_model", "reward"
    name: str  # "iteration 1", "control"
    steps: Num[np.ndarray, " n"]
    losses: Float[np.ndarray, " n"]


@dataclass(frozen=True, slots=True)
class ReplayQuality:
    """Recorded actions replayed in one world model, against the real frames, by time ahead.

    PSNR in dB, SSIM in [-1, 1], means over frames. ``copy_*``: the last known frame, repeated.
    """

    version: str  # "v0 (base)", "v1"
    episodes: int
    seconds: Float[np.ndarray, " n"]
    psnr: Float[np.ndarray, " n"]
    ssim: Float[np.ndarray, " n"]
    copy_psnr: Float[np.ndarray, " n"]
    copy_ssim: Float[np.ndarray, " n"]
    which: str = ""  # episodes, as in "evaluation seeds 1000000..1000007"


@dataclass(frozen=True, slots=True)
class Calibration:
    """A reward model on labelled real episodes that it was not trained on, one entry each.

    ``alphas``: the threshold in use of each task, ``alpha`` that of a task without its own.
    ``iteration``: the first that this model judged; 0: none, it stands for comparison.
    """

    version: str
    alpha: float
    p_yes: Float[np.ndarray, " n"]
    success: Bool[np.ndarray, " n"]
    label_source: str  # "human", "simulator", "recording"
    mass: Float[np.ndarray, " n"]  # P('yes') + P('no')
    tasks: tuple[str, ...]
    alphas: dict[str, float]
    target: float  # precision that a threshold is looked for
    iteration: int = 0

    def __post_init__(self) -> None:
        sizes = {len(self.p_yes), len(self.success), len(self.mass), len(self.tasks)}
        if len(sizes) > 1 or set(self.tasks) - set(self.alphas):
            raise ValueError(f"reward {self.version}: entries or thresholds of tasks are missing")

    @property
    def thresholds(self) -> Float[np.ndarray, " n"]:
        """The threshold that each episode's task has."""
        return np.array([self.alphas[task] for task in self.tasks], np.float64)

    @property
    def mean_mass(self) -> float:
        return float(self.mass.mean()) if len(self.mass) else math.nan


@dataclass(frozen=True, slots=True)
class Sheet:
    """Rows of small pictures, such as every fourth frame of a few episodes."""

    caption: str
    labels: tuple[str, ...]  # one per row
    frames: UInt8[np.ndarray, "row column height width 3"]

    def __post_init__(self) -> None:
        if len(self.labels) != len(self.frames):
            raise ValueError(f"{len(self.labels)} labels for {len(self.frames)} rows of pictures")


@dataclass(frozen=True, slots=True)
class Film:
    """An imagined trajectory, beside the real one from the same start if there is one."""

    caption: str
    instruction: str
    imagined: UInt8[np.ndarray, "frames view height width 3"]
    real: UInt8[np.ndarray, "frames2 view2 height2 width2 3"] | None = None
    p_yes: float = math.nan
    fps: int = FRAME_HZ


@dataclass(frozen=True, slots=True)
class Throughput:
    """One iteration's imagination. ``net_frames`` counts only frames that were not known before."""

    iteration: int
    workers: int
    net_frames: int
    trajectories: int
    seconds: float

    @property
    def frames_per_second(self) -> float:
        return self.net_frames / self.seconds if self.seconds > 0 else math.nan

    @property
    def trajectories_per_hour(self) -> float:
        return 3600 * self.trajectories / self.seconds if self.seconds > 0 else math.nan


@dataclass(frozen=True, slots=True)
class StageTime:
    stage: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Amount:
    """What a stage takes. ``gpu_seconds``: GPUs held, times seconds."""

    seconds: float | int
    gpu_seconds: float | int
    disk_bytes: float | int


@dataclass(frozen=True, slots=True)
class StageCost:
    """One stage; None: not expected, or not run."""

    stage: str
    expected: Amount | None
    spent: Amount | None


@dataclass(frozen=True, slots=True)
class Version:
    """One published checkpoint and what it was made from."""

    kind: Literal["policy", "world_model", "reward"]
    version: int
    checksum: str
    parent: str  # "policy v0", or "" for a base
    steps: int
    data: dict[str, int]  # {"real successes": 12, "imagined successes": 40}


@dataclass(frozen=True, slots=True)
class Unavailable:
    """A number that this run could not have."""

    name: str
    reason: str


@dataclass(slots=True)
class ReportData:
    """One run. ``created`` is shown as given, so equal data give an equal page."""

    title: str
    created: str
    config: dict[str, Any]
    promise: str = PROMISE
    evaluations: list[Evaluation] = field(default_factory=list)
    imagined: list[Imagined] = field(default_factory=list)
    truths: list[Truth] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    scores: list[Scores] = field(default_factory=list)
    losses: list[LossCurve] = field(default_factory=list)
    replays: list[ReplayQuality] = field(default_factory=list)
    calibrations: list[Calibration] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    films: list[Film] = field(default_factory=list)
    throughput: list[Throughput] = field(default_factory=list)
    stages: list[StageTime] = field(default_factory=list)
    costs: list[StageCost] = field(default_factory=list)
    lineage: list[Version] = field(default_factory=list)
    unavailable: list[Unavailable] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
