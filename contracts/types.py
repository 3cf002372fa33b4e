"""Values that cross a process boundary. numpy only: the robot machine imports this."""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float32, UInt8

from contracts.constants import NO_VERSION, NUM_JOINTS, TICKS_PER_FRAME

Origin = Literal["real", "demo", "recorded", "imagined"]
LabelSource = Literal["human", "simulator", "recording"]


@dataclass(frozen=True, slots=True)
class RobotState:
    """What the arm's encoders say at one 15 Hz tick.

    ``joint_position`` in rad, ``cartesian_position`` the flange in the robot base: x, y, z in m
    and extrinsic xyz Euler angles in rad. ``gripper_position`` is 0 open, 1 closed.
    """

    joint_position: Float32[np.ndarray, " 7"]
    joint_velocity: Float32[np.ndarray, " 7"]
    cartesian_position: Float32[np.ndarray, " 6"]
    gripper_position: float
    time_s: float  # the robot's own clock


@dataclass(frozen=True, slots=True)
class Observation:
    """One moment as a policy sees it. RGB views in the order of ``constants.VIEWS``."""

    images: UInt8[np.ndarray, "3 height width 3"]
    state: RobotState
    instruction: str


@dataclass(frozen=True, slots=True)
class Moment:
    """What a robot did in one tick of a plan and how it stands after it.

    ``action`` is what was executed, which may be gentler than what was planned; None before the
    first tick. ``images`` is None where nobody looked.
    """

    state: RobotState
    images: UInt8[np.ndarray, "3 height width 3"] | None
    action: Float32[np.ndarray, " 8"] | None


@dataclass(frozen=True, slots=True)
class ActionChunk:
    """A policy's plan for the next ``horizon`` control ticks.

    Columns 0-6 are joint velocities in DROID units: 1.0 asks for 0.2 rad in one 15 Hz tick. Column
    7 is the absolute gripper position, 0 open to 1 closed. ``version`` is the policy that made it.
    """

    actions: Float32[np.ndarray, "horizon 8"]
    version: int


@dataclass(frozen=True, slots=True)
class Provenance:
    """Who made a trajectory, from what, and with which seed; enough to make it again.

    ``parent`` and ``parent_frame`` name the real trajectory and 5 Hz frame that an imagined one
    starts from ("" and 0 otherwise). A version of -1 means that no such model took part.
    """

    trajectory_id: str
    origin: Origin
    task: str
    iteration: int
    seed: int
    policy_version: int = NO_VERSION
    world_model_version: int = NO_VERSION
    parent: str = ""
    parent_frame: int = 0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One attempt at one instruction: ``ticks`` actions at 15 Hz and frames at 5 Hz.

    Row k of ``actions`` was executed from row k of the states, so states have one row more.
    ``frames[j]`` shows tick ``3 * j``. ``ending`` says why it stopped, never whether it succeeded:
    "done", "timeout", or "aborted:<reason>".

    Raises:
        ValueError: rows disagree with each other.
    """

    provenance: Provenance
    instruction: str
    actions: Float32[np.ndarray, "ticks 8"]
    joint_position: Float32[np.ndarray, "rows 7"]
    gripper_position: Float32[np.ndarray, " rows"]
    cartesian_position: Float32[np.ndarray, "rows 6"]
    frames: UInt8[np.ndarray, "frames 3 height width 3"]
    ending: str

    def __post_init__(self) -> None:
        ticks = len(self.actions)
        rows = (len(self.joint_position), len(self.gripper_position), len(self.cartesian_position))
        if set(rows) != {ticks + 1}:
            raise ValueError(f"{ticks} actions need {ticks + 1} rows of states, got {rows}")
        if len(self.frames) != ticks // TICKS_PER_FRAME + 1:
            raise ValueError(
                f"{ticks} ticks need {ticks // TICKS_PER_FRAME + 1} frames, got {len(self.frames)}"
            )
        if self.actions.shape[1] != NUM_JOINTS + 1:
            raise ValueError(f"actions need 8 columns, got {self.actions.shape[1]}")

    @property
    def id(self) -> str:
        return self.provenance.trajectory_id

    @property
    def num_ticks(self) -> int:
        return len(self.actions)

    @property
    def poses(self) -> Float32[np.ndarray, "frames 7"]:
        """Flange pose and gripper at each frame: what the world model is conditioned on."""
        rows = np.arange(len(self.frames)) * TICKS_PER_FRAME
        return np.concatenate(
            [self.cartesian_position[rows], self.gripper_position[rows, None]], axis=1
        )


@dataclass(frozen=True, slots=True)
class Label:
    """Whether a real trajectory reached its goal, and who says so. Never a model."""

    trajectory_id: str
    success: bool
    source: LabelSource
    operator: str = ""


def _at_rest() -> Float32[np.ndarray, " 7"]:
    return np.zeros(NUM_JOINTS, np.float32)


@dataclass(frozen=True, slots=True)
class StartState:
    """A frame of a real trajectory that an imagination starts from.

    ``joint_motion``: way [rad] of the tick before it, zero at an episode's first frame.
    """

    parent: str
    parent_frame: int
    task: str
    instruction: str
    frame: UInt8[np.ndarray, "3 height width 3"]
    joint_position: Float32[np.ndarray, " 7"]
    gripper_position: float
    joint_motion: Float32[np.ndarray, " 7"] = field(default_factory=_at_rest)


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One trajectory to imagine. Equal items give equal trajectories on any worker."""

    trajectory_id: str
    start: StartState
    iteration: int
    seed: int


@dataclass(frozen=True, slots=True)
class Clip:
    """What a reward model looks at: evenly spaced frames, the last one included."""

    frames: UInt8[np.ndarray, "frame 3 height width 3"]
    frame_index: tuple[int, ...]  # of each frame, in the trajectory's 5 Hz frames
    instruction: str


@dataclass(frozen=True, slots=True)
class Score:
    """One forward of a reward model. ``p_yes`` is the full-softmax probability of 'yes';
    ``mass`` is P('yes') + P('no') under the same softmax."""

    p_yes: float
    mass: float

    @property
    def two_way(self) -> float:
        """P('yes') where 'yes' and 'no' are the only answers; NaN when neither has any mass."""
        return self.p_yes / self.mass if self.mass > 0 else float("nan")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A stored score of one trajectory. ``p_yes`` is NaN iff ``error`` says why there is none.

    Whether it is accepted follows from the threshold at the time of use, so changing alpha never
    runs the model again. An error is neither a success nor a failure.
    """

    trajectory_id: str
    p_yes: float
    mass: float
    reward_version: int
    error: str = ""

    def accepted(self, alpha: float) -> bool:
        """Eq. 3: P('yes') > alpha, strictly. A scoring error is never accepted."""
        return not self.error and self.p_yes > alpha


@dataclass(frozen=True, slots=True)
class LatentFormat:
    """Which frozen image encoder made stored latents; others cannot take their place.

    ``key`` is a checksum of its weights, ``scale`` the factor that brings its answers to about
    unit variance, ``shape`` the (channels, rows, columns) of one frame, all views together.
    """

    key: str
    scale: float
    shape: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A published, immutable folder of weights. ``checksum`` covers every file in it."""

    kind: Literal["policy", "world_model", "reward"]
    uri: str
    version: int
    checksum: str
