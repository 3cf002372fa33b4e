"""One tick of the loop beside the arm, and where ticks are kept."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32

from contracts.constants import VIEWS
from envs.droid.operator import Episode
from envs.droid.rig import ArmReading, Frame
from envs.safety import Command, Reading


@dataclass(frozen=True, slots=True)
class Planned:
    """Row ``row`` of the episode's plan number ``chunk``, which took ``latency_s`` to make: from
    the observation until it was asked for, as whoever drives measured it; NaN if unknown."""

    action: Float32[np.ndarray, " 8"]
    chunk: int
    row: int
    latency_s: float


@dataclass(frozen=True, slots=True)
class Tick:
    """All that is known of one tick: what pages show, clients get and records keep.

    The arm was read and the newest frames were taken before ``sent`` went out. ``target`` is where
    the arm then aims [rad]. On the way home nothing is ``planned``.
    """

    number: int
    time_s: float  # this machine's monotonic clock
    lateness_s: float
    arm: ArmReading
    frames: Sequence[Frame]
    planned: Planned | None = None
    sent: Command | None = None
    target: Float[np.ndarray, " 7"] | None = None

    def frame_age_s(self) -> dict[str, float]:
        """Seconds since each view's picture was taken; one that came during the tick is new."""
        ages = [self.time_s - frame.captured_s for frame in self.frames]
        return {view: max(0.0, age) for view, age in zip(VIEWS, ages, strict=True)}

    def reading(self) -> Reading:
        return Reading(self.arm.state, self.arm.command_ok, self.frame_age_s(), self.lateness_s)


@runtime_checkable
class Record(Protocol):
    """Keeps an episode's ticks. Called by the control loop: must not wait for a disk."""

    def begin(self, episode: Episode) -> None: ...

    def tick(self, tick: Tick) -> None: ...

    def end(self, episode: Episode) -> None: ...

    def close(self) -> None: ...


class NoRecord:
    """Keeps nothing."""

    def begin(self, episode: Episode) -> None: ...

    def tick(self, tick: Tick) -> None: ...

    def end(self, episode: Episode) -> None: ...

    def close(self) -> None: ...
