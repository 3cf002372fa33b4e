"""A policy and a world model that cost time and nothing else: to test and to time the engine.

What they make follows from the seed of a trajectory and the index of its chunk alone, so lost,
repeated and mixed-up work shows.
"""

import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from contracts.constants import NEW_FRAMES
from contracts.types import ActionChunk, Observation, StartState


@dataclass(frozen=True, slots=True)
class Trap:
    """What befalls the process that first imagines ``seed``: ``number`` is SIGKILL or SIGSTOP.

    ``sprung`` is a file that says that it has happened; None: it happens every time.
    """

    seed: int
    number: int = signal.SIGKILL
    sprung: Path | None = None

    def step_on(self, seed: int) -> None:
        if seed != self.seed or (self.sprung is not None and self.sprung.exists()):
            return
        if self.sprung is not None:
            self.sprung.touch()
        os.kill(os.getpid(), self.number)


@dataclass(frozen=True, slots=True)
class WaitingPolicy:
    """Random plans of 15 ticks from the seeds alone, after ``seconds``."""

    seconds: float = 0.0
    version: int = 0

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        time.sleep(self.seconds)
        plans = [np.random.default_rng(seed).uniform(-1, 1, (15, 8)) for seed in seeds]
        return [ActionChunk(plan.astype(np.float32), self.version) for plan in plans]


@dataclass(frozen=True, slots=True)
class WaitingWorldModel:
    """Frames that hold the seed and the chunk, after ``seconds`` in all, as if a device computed
    them and brought them to the host."""

    seconds: float = 0.0
    trap: Trap | None = None
    gate: Path | None = None  # nothing is imagined before this file is there
    version: int = 0

    def begin(self, start: StartState, seed: int) -> dict[str, Any]:
        return {"seed": seed, "chunk": 0, "shape": start.frame.shape}

    def imagine(
        self, slots: Sequence[dict[str, Any]], poses: Float32[np.ndarray, "slot 5 7"]
    ) -> UInt8[np.ndarray, "slot 4 3 height width 3"]:
        while self.gate is not None and not self.gate.exists():
            time.sleep(0.05)
        ready = time.perf_counter() + self.seconds
        frames = np.zeros((len(slots), NEW_FRAMES, *slots[0]["shape"]), np.uint8)
        for frame, slot in zip(frames, slots, strict=True):
            if self.trap is not None and slot["chunk"]:
                self.trap.step_on(slot["seed"])
            frame[..., 0], frame[..., 1] = slot["seed"] % 256, slot["chunk"]
            slot["chunk"] += 1
        time.sleep(max(0.0, ready - time.perf_counter()))
        return frames


@dataclass(frozen=True, slots=True)
class StillAdapter:
    """An arm that obeys at once, by 0.01 rad per unit and tick."""

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        joint_motion: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
        frames: UInt8[np.ndarray, "slot 3 height width 3"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        joints = joint_position[:, None] + 0.01 * np.cumsum(actions[..., :7], axis=1)
        return joints.astype(np.float32), actions[..., 7]


def no_kinematics(joints: Float[np.ndarray, "*batch 7"]) -> Float[np.ndarray, "*batch 6"]:
    """Not a Panda: the first six joints."""
    return joints[..., :6]
