"""From commanded joint velocities to the joint angles and gripper that the arm really reaches."""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

import numpy as np
from jaxtyping import Float, Float32, Float64
from safetensors.numpy import load_file, save_file

from contracts.constants import NUM_JOINTS
from contracts.types import Trajectory
from models.kinematics import flange_pose

TICKS = 15  # a policy's horizon; the longest chunk that can be predicted
REPORTED_TICKS = (4, 8, 12)
_FILE = "adapter.safetensors"
_BINS = 20  # of the gripper's range, each with its own closing and opening rate
_MOST_WINDOWS = 6000  # more are thinned evenly before fitting
_HOLDOUT = 5  # every fifth run of windows chooses the model's complexity and is reported on
_RUNS = 25  # runs of consecutive windows that are held out or not as a whole
_CANDIDATES = tuple((level, ridge) for level in (0, 1, 2) for ridge in (1e-4, 1e-2))


@dataclass(frozen=True, slots=True)
class MotionWindows:
    """What the arm did after ``actions``, in the order of trajectories and time.

    Row k of ``future_*`` is the state after action k; ``joint_position`` and ``gripper_position``
    are the state before action 0. Units of ``ActionChunk``.
    """

    joint_position: Float32[np.ndarray, "window 7"]
    gripper_position: Float32[np.ndarray, " window"]
    actions: Float32[np.ndarray, "window ticks 8"]
    future_joints: Float32[np.ndarray, "window ticks 7"]
    future_gripper: Float32[np.ndarray, "window ticks"]

    @classmethod
    def of(cls, trajectories: Iterable[Trajectory], ticks: int = TICKS, stride: int = 3) -> Self:
        """Windows of ``ticks`` actions that start every ``stride`` ticks.

        Raises:
            ValueError: no trajectory is long enough for one window.
        """
        parts = [
            (item, start)
            for item in trajectories
            for start in range(0, item.num_ticks - ticks + 1, stride)
        ]
        if not parts:
            raise ValueError(f"no trajectory has {ticks} ticks: nothing to fit an adapter on")
        return cls(
            np.stack([item.joint_position[start] for item, start in parts]),
            np.array([item.gripper_position[start] for item, start in parts], np.float32),
            np.stack([item.actions[start : start + ticks] for item, start in parts]),
            np.stack([item.joint_position[start + 1 : start + ticks + 1] for item, start in parts]),
            np.stack(
                [item.gripper_position[start + 1 : start + ticks + 1] for item, start in parts]
            ),
        )

    def __len__(self) -> int:
        return len(self.joint_position)

    def take(self, rows: np.ndarray) -> Self:
        """The windows at ``rows`` (indices or a mask)."""
        return type(self)(*(getattr(self, item.name)[rows] for item in fields(self)))


@dataclass(frozen=True, slots=True)
class AdapterErrors:
    """Mean distance [mm] of the predicted flange from the real one on windows held out of the fit,
    after each of ``REPORTED_TICKS``; ``no_motion`` is the distance if the arm stood still."""

    ticks: tuple[int, ...]
    adapter: tuple[float, ...]
    no_motion: tuple[float, ...]
    windows: int


@dataclass(frozen=True, slots=True)
class _Response:
    """Linear map from features to the joints' way since the chunk began, one per tick."""

    mean: Float64[np.ndarray, " features"]
    std: Float64[np.ndarray, " features"]
    weight: Float64[np.ndarray, "features 7"]
    offset: Float64[np.ndarray, " 7"]

    def __call__(self, features: Float64[np.ndarray, "window features"]) -> np.ndarray:
        return (features - self.mean) / self.std @ self.weight + self.offset


class FittedAdapter:
    """``PoseAdapter`` by ridge regression on recorded motion, one regression per tick.

    Tick k sees the actions up to k only. Features: the last six velocities, the sum of all, sines
    and cosines of the joints, and (chosen by held-out error) the sum times those and times their
    products, because an impedance-controlled arm follows better in some postures than in others.
    The state has no velocity, so a chunk that begins in full motion is the hardest case.
    The gripper moves by a table of closing and opening rates per position, so a grip that stalled
    on an object while fitting stalls here as well.
    """

    def __init__(self) -> None:
        self._level = 0
        self._responses: list[_Response] = []
        self._rates = np.zeros((2, _BINS))

    def fit(self, windows: MotionWindows) -> AdapterErrors:
        """Choose the complexity on held-out runs of windows, then fit on all of them.

        Deterministic. Raises ValueError for fewer than 50 windows.
        """
        if len(windows) < 50:
            raise ValueError(f"{len(windows)} windows are too few to fit an adapter: record more")
        windows = windows.take(np.arange(0, len(windows), -(-len(windows) // _MOST_WINDOWS)))
        held = (np.arange(len(windows)) * _RUNS // len(windows)) % _HOLDOUT == _HOLDOUT - 1
        train, test = windows.take(~held), windows.take(held)
        scored = [
            (self._fit_joints(train, level, ridge)._flange_errors(test).mean(), level, ridge)
            for level, ridge in _CANDIDATES
        ]
        _, level, ridge = min(scored)
        errors = self._fit_joints(train, level, ridge).errors(test)
        self._fit_joints(windows, level, ridge)
        self._rates = _gripper_rates(windows)
        return errors

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles [rad] and gripper after each tick.

        Raises:
            ValueError: the adapter is not fitted, or the chunk is longer than it was fitted for.
        """
        ticks = actions.shape[1]
        if ticks > len(self._responses):
            raise ValueError(
                f"{ticks} ticks asked of an adapter fitted for {len(self._responses)}: "
                "fit it first, on windows at least as long"
            )
        joints = np.stack(
            [
                joint_position + response(_features(joint_position, actions[:, : k + 1], self._level))
                for k, response in enumerate(self._responses[:ticks])
            ],
            axis=1,
        )
        return joints.astype(np.float32), self._grip(gripper_position, actions[..., 7])

    def errors(self, windows: MotionWindows) -> AdapterErrors:
        """How far off the flange is on ``windows``."""
        last = windows.actions.shape[1]
        ticks = tuple(tick for tick in REPORTED_TICKS if tick <= last)
        index = np.array(ticks) - 1
        still = np.repeat(windows.joint_position[:, None], last, axis=1)
        adapter = self._flange_errors(windows)[index]
        standing = _distance_mm(still, windows.future_joints)[index]
        return AdapterErrors(
            ticks, tuple(map(float, adapter)), tuple(map(float, standing)), len(windows)
        )

    def save(self, folder: Path) -> None:
        """Write ``adapter.safetensors`` into an existing folder."""
        arrays = {"level": np.array([self._level]), "rates": self._rates}
        for tick, response in enumerate(self._responses):
            for item in fields(response):
                arrays[f"tick{tick}.{item.name}"] = np.ascontiguousarray(vars_of(response)[item.name])
        save_file(arrays, folder / _FILE)
