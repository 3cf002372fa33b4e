"""Between a DROID observation and the network: images to [-1, 1], quantile normalisation."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8
from PIL import Image

from contracts.constants import NUM_JOINTS, RAD_PER_TICK

EPSILON = 1e-6  # openpi's, on the range of a coordinate
SMALLEST_RANGE = 1e-4  # below it, quantile normalisation turns sensor noise into huge numbers
FITTED_RANGE = 0.02  # what a coordinate that hardly moves is widened to
FLAGS = ("mean", "std", "q01", "q99")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Moments and quantiles of each coordinate of a vector, over every step of a data set."""

    mean: Float64[np.ndarray, " dim"]
    std: Float64[np.ndarray, " dim"]
    q01: Float64[np.ndarray, " dim"]
    q99: Float64[np.ndarray, " dim"]

    def normalise(self, x: Float[np.ndarray, "*batch dim"]) -> Float64[np.ndarray, "*batch dim"]:
        """Send [q01, q99] to [-1, 1]; values outside go outside. Longer statistics are cut."""
        low, high = self.q01[: x.shape[-1]], self.q99[: x.shape[-1]]
        return (x - low) / (high - low + EPSILON) * 2 - 1

    def unnormalise(
        self, x: Float[np.ndarray, "*batch padded"]
    ) -> Float64[np.ndarray, "*batch padded"]:
        """Invert ``normalise``; coordinates beyond the statistics (padding) stay as they are."""
        dim = len(self.q01)
        # openpi halves in the dtype of x, so float32 network outputs round as they do there.
        known = (x[..., :dim] + 1) / 2 * (self.q99 - self.q01 + EPSILON) + self.q01
        return np.concatenate([known, x[..., dim:]], axis=-1)


@dataclass(frozen=True, slots=True)
class NormStats:
    """What normalises the 8 numbers of the state and of each action."""

    state: Statistics
    actions: Statistics


def fit_statistics(rows: Float[np.ndarray, "row dim"]) -> Statistics:
    """Exact statistics of a data set. A coordinate that hardly moves gets a range of 0.02.

    openpi reads its quantiles off a running histogram of 5000 bins, so they differ by up to a bin.
    """
    data = rows.astype(np.float64)
    low, high = np.quantile(data, (0.01, 0.99), axis=0)
    widen = np.maximum(FITTED_RANGE - (high - low), 0) / 2
    return Statistics(data.mean(0), data.std(0), low - widen, high + widen)


def write_norm_stats(path: Path, stats: NormStats) -> None:
    """Write openpi's norm_stats.json, byte for byte as openpi formats it."""
    document = {
        "norm_stats": {
            kind: {flag: values.tolist() for flag, values in asdict(part).items()}
            for kind, part in (("state", stats.state), ("actions", stats.actions))
        }
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2))


def read_norm_stats(path: Path, dim: int = 0) -> NormStats:
    """Read openpi's norm_stats.json; state and actions need at least ``dim`` numbers.

    Raises:
        ValueError: there is no such file, it is damaged, lacks quantiles, or a coordinate's range
            is so small that normalising would blow it up (openpi issue 814).
    """
    if not path.is_file():
        raise ValueError(f"no norm_stats.json at {path}: a pi0.5 checkpoint folder needs it")
    try:
        document = dict(json.loads(path.read_text())["norm_stats"])
        parts = [_read_statistics(document.get(kind, {}), kind) for kind in ("state", "actions")]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} holds no norm stats: {error}; recompute them") from error
    for kind, part in zip(("state", "actions"), parts, strict=True):
        _check_statistics(path, kind, part, dim)
    return NormStats(*parts)


def _read_statistics(entry: Mapping[str, list[float] | None], kind: str) -> Statistics:
    missing = [flag for flag in FLAGS if not entry.get(flag)]
    if missing:
        raise ValueError(f"it lacks {', '.join(missing)} of {kind}")
    values = [np.asarray(entry[flag], np.float64) for flag in FLAGS]
    lengths = {value.shape for value in values}
    if len(lengths) > 1 or values[0].ndim != 1:
        raise ValueError(f"{', '.join(FLAGS)} of {kind} have shapes {sorted(lengths)}")
    return Statistics(*values)


def _check_statistics(path: Path, kind: str, stats: Statistics, dim: int) -> None:
    if len(stats.q01) < dim:
        raise ValueError(
            f"{path} describes {len(stats.q01)} numbers of {kind}, a DROID rig has {dim}"
        )
    values = np.stack([stats.mean, stats.std, stats.q01, stats.q99])
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: {kind} holds NaN or infinity: recompute norm stats")
    narrow = np.flatnonzero((stats.q99 - stats.q01)[: dim or None] < SMALLEST_RANGE)
    if len(narrow):
        raise ValueError(
            f"{path}: q99 - q01 of {kind}{narrow.tolist()} is below {SMALLEST_RANGE:g}, which"
            " explodes when normalised: widen these quantiles"
        )


def delta_actions(
    actions: Float[np.ndarray, "*batch horizon 8"], joints: Float[np.ndarray, "*batch 7"]
) -> Float[np.ndarray, "*batch horizon 8"]:
    """Joint positions (rad) relative to the current ``joints``; the gripper stays absolute."""
    return np.concatenate(
        [actions[..., :NUM_JOINTS] - joints[..., None, :], actions[..., NUM_JOINTS:]], axis=-1
    )


def absolute_actions(
    actions: Float[np.ndarray, "*batch horizon 8"], joints: Float[np.ndarray, "*batch 7"]
) -> Float[np.ndarray, "*batch horizon 8"]:
    """Invert ``delta_actions``."""
    return delta_actions(actions, -joints)


def positions_from_velocity(
    actions: Float[np.ndarray, "*batch horizon 8"], joints: Float[np.ndarray, "*batch 7"]
) -> Float[np.ndarray, "*batch horizon 8"]:
    """Joint positions (rad) that joint velocities (DROID units, 15 Hz) lead to from ``joints``.

    A velocity of 1 asks for 0.2 rad per tick; that the arm lags behind is left out.
    """
    moved = np.cumsum(actions[..., :NUM_JOINTS].astype(np.float64) * RAD_PER_TICK, axis=-2)
    return np.concatenate([moved + joints[..., None, :], actions[..., NUM_JOINTS:]], axis=-1)


def velocity_from_positions(
    actions: Float[np.ndarray, "*batch horizon 8"], joints: Float[np.ndarray, "*batch 7"]
) -> Float[np.ndarray, "*batch horizon 8"]:
    """Invert ``positions_from_velocity``: what reaches these positions tick by tick."""
    start = joints.astype(np.float64)[..., None, :]
    steps = np.diff(actions[..., :NUM_JOINTS], axis=-2, prepend=start)
    return np.concatenate([steps / RAD_PER_TICK, actions[..., NUM_JOINTS:]], axis=-1)


def pad_last(x: Float[np.ndarray, "*batch dim"], width: int) -> Float[np.ndarray, "*batch width"]:
    """Append zeros to the last axis."""
    return np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])


def resize_with_pad(
    image: UInt8[np.ndarray, "height width 3"], size: int
) -> UInt8[np.ndarray, "size size 3"]:
    """Fit into a centred square on black, keeping the aspect: PIL bilinear, as openpi."""
    height, width, _ = image.shape
    if (height, width) == (size, size):
        return image
    ratio = max(height, width) / size
    new_height, new_width = int(height / ratio), int(width / ratio)
    small = Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR)
    canvas = np.zeros((size, size, 3), np.uint8)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    canvas[top : top + new_height, left : left + new_width] = np.asarray(small)
    return canvas


def images_to_float(
    images: UInt8[np.ndarray, "*batch height width 3"],
) -> Float32[np.ndarray, "*batch 3 height width"]:
    """uint8 HWC in 0..255 to float CHW in [-1, 1]."""
    return np.moveaxis(images.astype(np.float32) / 255 * 2 - 1, -1, -3)
