"""From commanded joint velocities to the joint angles and gripper that the arm really reaches."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64
from safetensors.numpy import load_file, save_file

from contracts.constants import NUM_JOINTS
from models.kinematics import flange_pose
from models.motion import TICKS, AdapterErrors, MotionWindows

REPORTED_TICKS = (4, 8, 12)
_FILE = "adapter.safetensors"
_BINS = 20  # of the gripper's range, each with its own closing and opening rate
_MOST_WINDOWS = 6000  # more are thinned evenly before fitting
_HOLDOUT = 5  # every fifth run of windows chooses the model's complexity and is reported on
_RUNS = 25  # runs of consecutive windows that are held out or not as a whole
_RECENT = 6  # velocities that enter one by one
_CANDIDATES = ((0, 1e-2), (1, 1e-3), (2, 1e-3))  # level of features, ridge

# Ctrl-World's adapter: layer shapes and the 1st and 99th percentiles of its training data.
_LAYERS = {
    "net.0.weight": (512, 112),
    "net.0.bias": (512,),
    "net.2.weight": (512, 512),
    "net.2.bias": (512,),
    "net.4.weight": (105, 512),
    "net.4.bias": (105,),
}
_VELOCITY_RANGE = (
    np.array([-0.4077107, -0.79047304, -0.47850373, -0.8666644, -0.6729502, -0.5602032, -0.692411]),
    np.array([0.4900636, 0.7259861, 0.45910007, 0.79220384, 0.69864315, 0.648198, 0.810115]),
)
_WAY_RANGE = (  # rad since the chunk began
    np.array([-0.2801219, -0.397792, -0.22935797, -0.3351759, -0.42025003, -0.36825255, -0.450706]),
    np.array([0.2827909, 0.42184818, 0.33529875, 0.35958457, 0.375613, 0.44463825, 0.4697690]),
)


@dataclass(frozen=True, slots=True)
class _Regressions:
    """One linear map per tick, from features to the joints' way since the chunk began."""

    level: int
    mean: Float64[np.ndarray, "ticks features"]
    std: Float64[np.ndarray, "ticks features"]
    weight: Float64[np.ndarray, "ticks features 7"]
    offset: Float64[np.ndarray, "ticks 7"]

    @classmethod
    def fit(cls, windows: MotionWindows, level: int, ridge: float) -> "_Regressions":
        """Ridge regression on standardised features; ``ridge`` is relative to the row count."""
        parts = []
        for tick in range(windows.actions.shape[1]):
            rows = _features(windows.joint_position, windows.actions[:, : tick + 1], level)
            mean, std = rows.mean(axis=0), rows.std(axis=0)
            std[std < 1e-6] = 1.0
            rows = (rows - mean) / std
            way = windows.future_joints[:, tick] - windows.joint_position.astype(np.float64)
            offset = way.mean(axis=0)
            gram = rows.T @ rows + ridge * len(rows) * np.eye(rows.shape[1])
            parts.append((mean, std, np.linalg.solve(gram, rows.T @ (way - offset)), offset))
        return cls(level, *(np.stack(column) for column in zip(*parts, strict=True)))

    def joints(self, start: np.ndarray, actions: np.ndarray) -> Float64[np.ndarray, "slot ticks 7"]:
        """Joint angles after each tick of ``actions``."""
        out = np.empty((*actions.shape[:2], NUM_JOINTS))
        for tick in range(actions.shape[1]):
            rows = _features(start, actions[:, : tick + 1], self.level)
            rows = (rows - self.mean[tick]) / self.std[tick]
            out[:, tick] = start + rows @ self.weight[tick] + self.offset[tick]
        return out


class FittedAdapter:
    """``PoseAdapter`` by ridge regression on recorded motion, one regression per tick.

    Tick k sees the actions up to k only. Features: the last six velocities, the sum of all, sines
    and cosines of the joints and, by level, the sum times those (1) and times their products (2):
    an impedance-controlled arm follows better in some postures than in others. The state holds no
    velocity, so a chunk that begins in full motion is the hardest case.
    The gripper moves by a table of closing and opening rates per position, so a grip that stalled
    on an object while fitting stalls here as well.
    """

    def __init__(self) -> None:
        self._regressions: _Regressions | None = None
        self._rates = np.zeros((2, _BINS))

    def fit(self, windows: MotionWindows) -> AdapterErrors:
        """Choose the complexity on held-out runs of windows, then fit on all of them.

        Deterministic. The reported errors are those of the chosen complexity, fitted without the
        held-out windows. Raises ValueError for fewer than 50 windows.
        """
        if len(windows) < 50:
            raise ValueError(f"{len(windows)} windows are too few to fit an adapter: record more")
        windows = windows.take(np.arange(0, len(windows), -(-len(windows) // _MOST_WINDOWS)))
        held = (np.arange(len(windows)) * _RUNS // len(windows)) % _HOLDOUT == _HOLDOUT - 1
        train, test = windows.take(~held), windows.take(held)
        scored = []
        for level, ridge in _CANDIDATES:
            self._regressions = _Regressions.fit(train, level, ridge)
            scored.append((self.errors(test), level, ridge))
        errors, level, ridge = min(scored, key=lambda row: sum(row[0].adapter))
        self._regressions = _Regressions.fit(windows, level, ridge)
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
        regressions = self._fitted()
        if actions.shape[1] > len(regressions.mean):
            raise ValueError(
                f"{actions.shape[1]} ticks asked of an adapter fitted for {len(regressions.mean)}: "
                "fit it on longer windows"
            )
        joints = regressions.joints(joint_position.astype(np.float64), actions)
        grip = _follow(gripper_position, actions[..., 7], self._rates)
        return joints.astype(np.float32), grip.astype(np.float32)

    def errors(self, windows: MotionWindows) -> AdapterErrors:
        """How far off the predicted flange is on ``windows``."""
        guess = self._fitted().joints(windows.joint_position.astype(np.float64), windows.actions)
        still = np.broadcast_to(windows.joint_position[:, None], guess.shape)
        ticks = tuple(tick for tick in REPORTED_TICKS if tick <= guess.shape[1])
        return AdapterErrors(
            ticks,
            _distance_mm(guess, windows.future_joints, ticks),
            _distance_mm(still, windows.future_joints, ticks),
            len(windows),
        )

    def save(self, folder: Path) -> None:
        """Write adapter.safetensors into an existing folder."""
        regressions = self._fitted()
        arrays = {name: np.asarray(getattr(regressions, name)) for name in _names(_Regressions)}
        save_file({**arrays, "rates": self._rates}, folder / _FILE)

    @classmethod
    def load(cls, folder: Path) -> "FittedAdapter":
        """The adapter that ``save`` wrote. Raises ValueError where there is none."""
        if not (folder / _FILE).is_file():
            raise ValueError(f"{folder / _FILE} not found: fit an adapter and save it there")
        arrays = load_file(folder / _FILE)
        adapter = cls()
        adapter._rates = arrays["rates"]
        level = int(arrays["level"])
        adapter._regressions = _Regressions(
            level, arrays["mean"], arrays["std"], arrays["weight"], arrays["offset"]
        )
        return adapter

    def _fitted(self) -> _Regressions:
        if self._regressions is None:
            raise ValueError("the adapter knows no motion yet: call fit(windows) or load(folder)")
        return self._regressions


class ShippedAdapter:
    """Ctrl-World's adapter for pi0.5-DROID: an MLP from joints and 15 velocities to 15 joint rows.

    The gripper reaches its command at once, at most ``gripper_max``: upstream imitates an object in
    the hand by such a ceiling per task. Source: Ctrl-World ``models/action_adapter`` (4c713d1).
    """

    def __init__(self, path: Path, gripper_max: float = 1.0) -> None:
        """Read ``path``, safetensors with net.0/2/4.weight and .bias.

        Raises:
            ValueError: the file is missing or holds something else.
        """
        if not path.is_file():
            raise ValueError(f"world_model.adapter_path={path} does not exist")
        weights = load_file(path)
        shapes = {name: weights[name].shape for name in _LAYERS if name in weights}
        if shapes != _LAYERS:
            raise ValueError(f"{path} is not Ctrl-World's adapter: {shapes or sorted(weights)[:6]}")
        self._weights = {name: weights[name].astype(np.float64) for name in _LAYERS}
        self._gripper_max = gripper_max

    def predict(
        self,
        joint_position: Float32[np.ndarray, "slot 7"],
        gripper_position: Float32[np.ndarray, " slot"],
        actions: Float32[np.ndarray, "slot ticks 8"],
    ) -> tuple[Float32[np.ndarray, "slot ticks 7"], Float32[np.ndarray, "slot ticks"]]:
        """Joint angles [rad] and gripper after each tick.

        Chunks shorter than 15 ticks are continued with their last action, as upstream does for
        pi0's ten. Raises ValueError for longer ones.
        """
        count, ticks, _ = actions.shape
        if not 1 <= ticks <= TICKS:
            raise ValueError(f"Ctrl-World's adapter takes 1 to {TICKS} ticks, got {ticks}")
        rows = np.minimum(np.arange(TICKS), ticks - 1)
        velocity = _to_unit(actions[:, rows, :NUM_JOINTS].astype(np.float64), *_VELOCITY_RANGE)
        hidden = np.concatenate([joint_position, velocity.reshape(count, -1)], axis=1)
        for layer in ("net.0", "net.2"):
            hidden = self._linear(layer, hidden)
            hidden = hidden / (1.0 + np.exp(-hidden))
        unit = self._linear("net.4", hidden).reshape(count, TICKS, NUM_JOINTS)
        low, high = _WAY_RANGE
        joints = joint_position[:, None] + (unit + 1) / 2 * (high - low) + low
        grip = np.clip(actions[..., 7], 0.0, self._gripper_max)
        return joints[:, :ticks].astype(np.float32), grip.astype(np.float32)

    def _linear(self, layer: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{layer}.weight"].T + self._weights[f"{layer}.bias"]


def _names(cls: type) -> list[str]:
    return [item.name for item in fields(cls)]


def _features(
    start: np.ndarray, actions: np.ndarray, level: int
) -> Float64[np.ndarray, "window features"]:
    """Features of the last tick of ``actions``; missing velocities before the chunk are zero."""
    velocity = actions[..., :NUM_JOINTS].astype(np.float64)
    count, ticks, _ = velocity.shape
    recent = np.zeros((count, _RECENT, NUM_JOINTS))
    seen = velocity[:, max(0, ticks - _RECENT) :]
    recent[:, _RECENT - seen.shape[1] :] = seen
    total = velocity.sum(axis=1)
    posture = np.concatenate([np.sin(start), np.cos(start)], axis=1)
    parts = [recent.reshape(count, -1), total, posture]
    if level >= 1:
        parts.append(_outer(total, posture))
    if level >= 2:
        bend = np.concatenate([np.sin(start[:, 1:6]), np.cos(start[:, 1:6])], axis=1)
        rows, columns = np.triu_indices(bend.shape[1])
        pairs = bend[:, rows] * bend[:, columns]
        parts += [pairs, _outer(total, pairs)]
    return np.concatenate(parts, axis=1)


def _outer(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a[:, :, None] * b[:, None, :]).reshape(len(a), -1)


def _gripper_rates(windows: MotionWindows) -> Float64[np.ndarray, "2 bins"]:
    """Median way per tick while closing (row 0) and opening (row 1), by position.

    Positions never seen in motion get the median over all positions.
    """
    before = np.concatenate(
        [windows.gripper_position[:, None], windows.future_gripper[:, :-1]], axis=1
    ).ravel()
    way = windows.future_gripper.ravel() - before
    wanted = windows.actions[..., 7].ravel() - before
    rates = np.zeros((2, _BINS))
    for row, sign in enumerate((1.0, -1.0)):
        asked = sign * wanted > 0.1
        steps = np.maximum(sign * way[asked], 0.0)
        bins = _bin(before[asked])
        rates[row] = np.median(steps) if steps.size else 0.0
        for index in np.unique(bins):
            rates[row, index] = np.median(steps[bins == index])
    return rates


def _follow(
    start: Float32[np.ndarray, " slot"],
    command: Float32[np.ndarray, "slot ticks"],
    rates: Float64[np.ndarray, "2 bins"],
) -> Float64[np.ndarray, "slot ticks"]:
    """Gripper after each tick, moving towards the command no faster than the table allows."""
    position = start.astype(np.float64)
    out = np.empty(command.shape)
    for tick in range(command.shape[1]):
        closing, opening = rates[:, _bin(position)]
        position = position + np.clip(command[:, tick] - position, -opening, closing)
        out[:, tick] = position
    return out


def _bin(position: np.ndarray) -> np.ndarray:
    return np.clip((position * _BINS).astype(int), 0, _BINS - 1)


def _to_unit(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """[low, high] to [-1, 1], without clipping."""
    return 2 * (values - low) / (high - low + 1e-8) - 1


def _distance_mm(guess: np.ndarray, real: np.ndarray, ticks: tuple[int, ...]) -> tuple[float, ...]:
    """Mean distance between the flanges of two joint paths after the given ticks."""
    rows = np.array(ticks) - 1
    away = flange_pose(guess[:, rows])[..., :3] - flange_pose(real[:, rows])[..., :3]
    return tuple(map(float, 1e3 * np.linalg.norm(away, axis=-1).mean(axis=0)))
