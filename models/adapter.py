"""From commanded joint velocities to the joint angles and gripper that the arm really reaches."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from safetensors.numpy import load_file, save_file

from contracts.constants import NUM_JOINTS
from models.arm_model import ArmModel
from models.gripper_model import follow, gripper_rates
from models.motion import REPORTED_TICKS, AdapterErrors, MotionWindows, flange_errors
from models.shipped_adapter import LAYERS, ShippedAdapter

_FILE = "adapter.safetensors"
_MOST_WINDOWS = 6000  # more are thinned evenly before fitting
LEAST_WINDOWS = 50  # fewer fit nothing: the arm of round numbers is used as it is
_FOLDS = 3
_ONE_FOLD_FROM = 1500  # windows: from here on one held-out fold is enough
_RECENT = 6  # velocities that enter a regression one by one
_LEVELS = ((0, 1e-2), (1, 1e-3), (2, 1e-3))  # level of features, ridge

Way = Float64[np.ndarray, "window ticks 7"]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What is known before a chunk."""

    start: Float32[np.ndarray, "slot 7"]
    motion: Float32[np.ndarray, "slot 7"]
    actions: Float32[np.ndarray, "slot ticks 8"]

    @classmethod
    def of(cls, windows: MotionWindows) -> "_Chunk":
        return cls(windows.joint_position, windows.joint_motion, windows.actions)


@dataclass(frozen=True, slots=True)
class _Base:
    """A physical model of the arm, alone or mixed with Ctrl-World's adapter.

    ``mix`` has two numbers per tick, equal for all joints: how much of the difference between the
    arm's real and the shipped adapter's first motion is still to see, and how much of the
    difference between both models. The shipped adapter cannot know how fast the arm moves when a
    chunk begins; it guesses that from the velocities to come.
    """

    arm: ArmModel
    shipped: ShippedAdapter | None = None
    mix: Float64[np.ndarray, "ticks 2"] | None = None

    @classmethod
    def mixed(
        cls, windows: MotionWindows, arm: ArmModel, shipped: ShippedAdapter, both: bool
    ) -> "_Base":
        """Least squares for ``mix``; ``both`` says whether the arm's model has a say in it."""
        base = cls(arm, shipped)
        chunk = _Chunk.of(windows)
        plain, parts = base._parts(chunk)
        missing = windows.future_joints - chunk.start[:, None] - plain
        mix = np.zeros((windows.actions.shape[1], 2))
        count = 2 if both else 1
        for tick in range(len(mix)):
            x = parts[:, tick, :, :count].reshape(-1, count)
            gram = x.T @ x + 1e-9 * len(x) * np.eye(count)
            mix[tick, :count] = np.linalg.solve(gram, x.T @ missing[:, tick].ravel())
        return replace(base, mix=mix)

    def way(self, chunk: _Chunk) -> Way:
        """Joint angles since the chunk began."""
        if self.shipped is None or self.mix is None:
            return self.arm.joints(chunk.start, chunk.motion, chunk.actions) - chunk.start[:, None]
        plain, parts = self._parts(chunk)
        mix = self.mix[: plain.shape[1]]
        return plain + parts[..., 0] * mix[:, None, 0] + parts[..., 1] * mix[:, None, 1]

    def _parts(self, chunk: _Chunk) -> tuple[Way, Float64[np.ndarray, "window ticks 7 2"]]:
        """The shipped adapter's way and what ``mix`` weighs."""
        assert self.shipped is not None
        arm = self.arm.joints(chunk.start, chunk.motion, chunk.actions)
        shipped = self.shipped.joints(chunk.start, chunk.actions)
        plain = shipped - chunk.start[:, None]
        first = np.broadcast_to(chunk.motion[:, None] - plain[:, :1], plain.shape)
        return plain, np.stack([first, arm - shipped], axis=-1)


@dataclass(frozen=True, slots=True)
class _Regressions:
    """One linear map per tick, from features to what the base leaves over of the joints' way."""

    level: int
    mean: Float64[np.ndarray, "ticks features"]
    std: Float64[np.ndarray, "ticks features"]
    weight: Float64[np.ndarray, "ticks features 7"]
    offset: Float64[np.ndarray, "ticks 7"]

    @classmethod
    def fit(cls, chunk: _Chunk, left: Way, level: int, ridge: float) -> "_Regressions":
        """Ridge regression on standardised features; ``ridge`` is relative to the row count."""
        parts = []
        for tick in range(left.shape[1]):
            rows = _features(chunk, tick, level)
            mean, std = rows.mean(axis=0), rows.std(axis=0)
            std[std < 1e-6] = 1.0
            rows = (rows - mean) / std
            offset = left[:, tick].mean(axis=0)
            gram = rows.T @ rows + ridge * len(rows) * np.eye(rows.shape[1])
            weight = np.linalg.solve(gram, rows.T @ (left[:, tick] - offset))
            parts.append((mean, std, weight, offset))
        return cls(level, *(np.stack(column) for column in zip(*parts, strict=True)))

    def way(self, chunk: _Chunk) -> Way:
        count, ticks, _ = chunk.actions.shape
        out = np.empty((count, ticks, NUM_JOINTS))
        for tick in range(ticks):
            rows = (_features(chunk, tick, self.level) - self.mean[tick]) / self.std[tick]
            # one product per row: a slot's result must not depend on its neighbours
            out[:, tick] = (rows[:, None] @ self.weight[tick])[:, 0] + self.offset[tick]
        return out


@dataclass(frozen=True, slots=True)
class _Motion:
    """A base and, where data allow, regressions on what it leaves over."""

    base: _Base
    rest: _Regressions | None = None

    def joints(self, chunk: _Chunk) -> Float64[np.ndarray, "slot ticks 7"]:
        way = self.base.way(chunk) + chunk.start[:, None]
        return way if self.rest is None else way + self.rest.way(chunk)


@dataclass(frozen=True, slots=True)
class _Recipe:
    """One way to fit. ``level`` -1: no regressions."""

    with_shipped: bool = False
    with_arm: bool = True
    level: int = -1
    ridge: float = 0.0

    def __str__(self) -> str:
        parts = ["arm model"] * self.with_arm + ["Ctrl-World's adapter"] * self.with_shipped
        return " + ".join(parts + [f"regressions of level {self.level}"] * (self.level >= 0))

    def fit(self, windows: MotionWindows, arm: ArmModel, shipped: ShippedAdapter | None) -> _Motion:
        base = _Base(arm)
        if self.with_shipped and shipped is not None:
            base = _Base.mixed(windows, arm, shipped, self.with_arm)
        if self.level < 0:
            return _Motion(base)
        chunk = _Chunk.of(windows)
        left = windows.future_joints - chunk.start[:, None] - base.way(chunk)
        return _Motion(base, _Regressions.fit(chunk, left, self.level, self.ridge))


class FittedAdapter:
    """``PoseAdapter`` fitted to recorded motion of one lab's arm.

    A model of the arm's impedance control and friction (``models/arm_model.py``), or Ctrl-World's
    adapter corrected by the motion that the arm is in (``shipped``), or both; on top, where there
    are many episodes, one ridge regression per tick. Which of these is used is decided by the error
    on held-out episodes. Tick k of what was fitted here sees the actions up to k only; Ctrl-World's
    adapter sees all.
    The gripper moves by a table of closing and opening rates per position, so a grip that stalled
    on an object while fitting stalls here as well.
    """

    def __init__(self, shipped: ShippedAdapter | None = None) -> None:
        self._shipped = shipped
        self._motion: _Motion | None = None
        self._rates = gripper_rates(MotionWindows.of([]))
        self._ticks = 0

    def fit(self, windows: MotionWindows) -> AdapterErrors:
        """Choose the recipe on held-out episodes, then fit on all; deterministic.

        The reported errors are the chosen recipe's on the held-out windows, flattered a little by
        the choice. A single episode is held out in runs of consecutive windows. Fewer than 50
        windows choose and fit nothing: the arm has the round numbers of any Panda.

        Raises:
            ValueError: there is not one window.
        """
        if not len(windows):
            raise ValueError("no trajectory has 15 ticks to fit the pose adapter on: record more")
        windows = windows.thinned(_MOST_WINDOWS)
        self._rates = gripper_rates(windows)
        self._ticks = windows.actions.shape[1]
        if len(windows) < LEAST_WINDOWS:
            self._motion = _Motion(_Base(ArmModel()))
            return self._report([windows], [self._motion], "arm model, not fitted", "all windows")
        folds, held_out = _folds(windows)
        tested = [windows.take(mask) for mask in folds]
        rest = [windows.take(~mask) for mask in folds]
        arms = [ArmModel.fit(part) for part in rest]
        found: list[tuple[float, _Recipe, list[_Motion]]] = []
        for recipe in self._recipes(found):
            pairs = zip(rest, arms, strict=True)
            motions = [recipe.fit(part, arm, self._shipped) for part, arm in pairs]
            errors = self._report(tested, motions, str(recipe), held_out)
            found.append((sum(errors.adapter), recipe, motions))
        _, best, motions = min(found, key=lambda row: row[0])
        self._motion = best.fit(windows, ArmModel.fit(windows), self._shipped)
        return self._report(tested, motions, str(best), held_out)

    def _recipes(self, found: list[tuple[float, _Recipe, list[_Motion]]]) -> Iterator[_Recipe]:
        """Bases; then regressions on the best base, of the highest level only if the next helps."""
        yield _Recipe()
        if self._shipped is not None:
            yield _Recipe(with_shipped=True, with_arm=False)
            yield _Recipe(with_shipped=True)
        for level, ridge in _LEVELS:
            best = min(found, key=lambda row: row[0])[1]
            if level == 2 and best.level < 1:  # hundreds of features
                return
            yield replace(best, level=level, ridge=ridge)

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        joint_motion: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
        frames: UInt8[np.ndarray, "slot 3 height width 3"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles [rad] and gripper after each tick. ``frames`` are not looked at.

        Raises:
            ValueError: the adapter is not fitted, or the chunk is longer than it was fitted for.
        """
        motion = self._fitted()
        if actions.shape[1] > self._ticks:
            raise ValueError(
                f"{actions.shape[1]} ticks asked of an adapter fitted for {self._ticks}: "
                "fit it on longer windows"
            )
        joints = motion.joints(_Chunk(joint_position, joint_motion, actions))
        grip = follow(gripper_position, actions[..., 7], self._rates)
        return joints.astype(np.float32), grip.astype(np.float32)

    def errors(self, windows: MotionWindows) -> AdapterErrors:
        """How far off the predicted flange is on ``windows``."""
        return self._report([windows], [self._fitted()], "as fitted", "these windows")

    def _report(
        self, parts: list[MotionWindows], motions: list[_Motion], kind: str, held_out: str
    ) -> AdapterErrors:
        """Errors of each of ``motions`` on its own part, over all windows."""
        ticks = tuple(tick for tick in REPORTED_TICKS if tick <= self._ticks)
        rows = np.array(ticks, np.int64) - 1
        own, still = [], []
        for windows, motion in zip(parts, motions, strict=True):
            real = windows.future_joints[:, rows]
            guess = motion.joints(_Chunk.of(windows))[:, rows]
            rest = np.broadcast_to(windows.joint_position[:, None], real.shape)
            own.append(flange_errors(guess, real)[..., 0])
            still.append(flange_errors(rest, real)[..., 0])
        means = [tuple(np.concatenate(each).mean(axis=0).tolist()) for each in (own, still)]
        return AdapterErrors(ticks, means[0], means[1], sum(map(len, parts)), kind, held_out)

    def save(self, folder: Path) -> None:
        """Write adapter.safetensors into an existing folder; it needs no other file."""
        motion = self._fitted()
        base, rest = motion.base, motion.rest
        arrays = {"arm": base.arm.parameters, "rates": self._rates, "ticks": np.array(self._ticks)}
        if base.shipped is not None and base.mix is not None:
            arrays |= {"mix": base.mix, **base.shipped.weights}
        if rest is not None:
            arrays |= {f"rest.{name}": np.asarray(getattr(rest, name)) for name in _names()}
        save_file(arrays, folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "FittedAdapter":
        """The adapter that ``save`` wrote. Raises ValueError where there is none."""
        path = folder / _FILE
        if not path.is_file():
            raise ValueError(f"{path} not found: fit an adapter and save it there")
        arrays = load_file(path)
        if not {"arm", "rates", "ticks"} <= arrays.keys():
            raise ValueError(
                f"{path} holds {sorted(arrays)[:6]}, no adapter of this version: train the world "
                "model again, or set world_model.adapter=shipped"
            )
        self = cls(ShippedAdapter.of(arrays, path) if LAYERS.keys() <= arrays.keys() else None)
        self._rates, self._ticks = arrays["rates"], int(arrays["ticks"])
        base = _Base(ArmModel(arrays["arm"]), self._shipped, arrays.get("mix"))
        rest = None
        if "rest.level" in arrays:
            level, *tables = (arrays[f"rest.{name}"] for name in _names())
            rest = _Regressions(int(level), *tables)
        self._motion = _Motion(base, rest)
        return self

    def _fitted(self) -> _Motion:
        if self._motion is None:
            raise ValueError("the adapter knows no motion yet: call fit(windows) or load(folder)")
        return self._motion


def _names() -> list[str]:
    return [item.name for item in fields(_Regressions)]


def _folds(windows: MotionWindows) -> tuple[list[np.ndarray], str]:
    """Masks of what is held out in turn, and what they hold: whole episodes, if there are two."""
    _, group = np.unique(windows.episode, return_inverse=True)
    what = "whole episodes"
    if group.max() == 0:
        group, what = np.arange(len(windows)) * _FOLDS // len(windows), "runs of windows"
    folds = [group % _FOLDS == k for k in range(min(_FOLDS, group.max() + 1))]
    return (folds[-1:] if len(windows) >= _ONE_FOLD_FROM else folds), what


def _features(chunk: _Chunk, tick: int, level: int) -> Float64[np.ndarray, "window features"]:
    """Features of a tick: the last six velocities, the sum of all, the motion before the chunk,
    sines and cosines of the joints and, by level, the sum times those (1) and times their products
    (2): an impedance-controlled arm follows better in some postures than in others. Velocities
    before the chunk are zero."""
    velocity = chunk.actions[:, : tick + 1, :NUM_JOINTS].astype(np.float64)
    start = chunk.start.astype(np.float64)
    count = len(velocity)
    recent = np.zeros((count, _RECENT, NUM_JOINTS))
    seen = velocity[:, max(0, tick + 1 - _RECENT) :]
    recent[:, _RECENT - seen.shape[1] :] = seen
    total = velocity.sum(axis=1)
    posture = np.concatenate([np.sin(start), np.cos(start)], axis=1)
    parts = [recent.reshape(count, -1), total, chunk.motion.astype(np.float64), posture]
    if level >= 1:
        parts.append(_outer(total, posture))
    if level >= 2:
        bend = np.concatenate([np.sin(start[:, 1:6]), np.cos(start[:, 1:6])], axis=1)
        rows, columns = np.triu_indices(bend.shape[1])
        pairs = bend[:, rows] * bend[:, columns]
        parts += [pairs, _outer(total, pairs)]
    return np.concatenate(parts, axis=1)


def _outer(a: Float[np.ndarray, "n p"], b: Float[np.ndarray, "n q"]) -> np.ndarray:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)
