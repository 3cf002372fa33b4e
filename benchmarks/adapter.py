"""How far off the flange is when joint velocities become poses, on recorded episodes.

Run: python benchmarks/adapter.py --folder <folder in Ctrl-World's layout> [--shipped
adapter.safetensors] [--other <folder of another rig>]. Docs: docs/adapter.md.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from contracts.constants import RAD_PER_TICK
from contracts.kinematics import flange_pose
from envs.recorded.annotation import read_annotation
from models.adapter import FittedAdapter
from models.motion import REPORTED_TICKS, MotionWindows, flange_errors
from models.shipped_adapter import ShippedAdapter

DRAWS = 2000  # bootstrap resamples of episodes
Joints = Callable[[MotionWindows], np.ndarray]


@dataclass(frozen=True)
class Episode:
    """A recording as ``MotionWindows`` reads it; its last action was commanded, never seen."""

    num_ticks: int
    actions: np.ndarray
    joint_position: np.ndarray
    gripper_position: np.ndarray
    position: np.ndarray  # m, of the flange, as recorded


def episodes(folder: Path) -> tuple[list[Episode], list[str]]:
    """Usable episodes, and why others are not."""
    found, refused = [], []
    for file in sorted(folder.glob("annotation/*/*.json")):
        try:
            row = read_annotation(file)
        except ValueError as error:
            refused.append(str(error))
            continue
        actions, joints = row.actions[:-1], row.joint_position
        position = row.cartesian_position[:, :3]
        found.append(Episode(len(actions), actions, joints, row.gripper_position, position))
    return found, refused


def constant_gain(train: MotionWindows) -> Joints:
    """The one share of 0.2 rad per unit velocity and tick that fits best."""
    asked = RAD_PER_TICK * np.cumsum(train.actions[..., :7].astype(float), axis=1)
    went = train.future_joints - train.joint_position[:, None].astype(float)
    gain = (asked * went).sum() / (asked**2).sum()

    def joints(windows: MotionWindows) -> np.ndarray:
        ask = RAD_PER_TICK * np.cumsum(windows.actions[..., :7].astype(float), axis=1)
        return windows.joint_position[:, None] + gain * ask

    return joints


def by_adapter(adapter: FittedAdapter | ShippedAdapter) -> Joints:
    def joints(w: MotionWindows) -> np.ndarray:
        blank = np.zeros((len(w), 3, 6, 8, 3), np.uint8)  # which these adapters do not look at
        known = (w.joint_position, w.joint_motion, w.gripper_position)
        return adapter.predict(*known, w.actions, blank)[0]

    return joints


def fitted(train: MotionWindows, shipped: ShippedAdapter | None, kinds: list[str]) -> Joints:
    adapter = FittedAdapter(shipped)
    kinds.append(adapter.fit(train).kind)
    return by_adapter(adapter)


def resampled(per_episode: list[np.ndarray], seed: int = 0) -> np.ndarray:
    """2.5th and 97.5th percentile of the mean over windows when whole episodes are redrawn."""
    sums = np.stack([part.sum(axis=0) for part in per_episode])
    counts = np.array([len(part) for part in per_episode])
    picks = np.random.default_rng(seed).integers(len(counts), size=(DRAWS, len(counts)))
    means = sums[picks].sum(axis=1) / counts[picks].sum(axis=1).reshape(-1, *[1] * (sums.ndim - 1))
    return np.percentile(means, (2.5, 97.5), axis=0)


def table(name: str, per_episode: list[np.ndarray]) -> list[str]:
    """One line per tick; ``per_episode`` holds (window, tick, [mm, degrees])."""
    every, (low, high) = np.concatenate(per_episode), resampled(per_episode)
    lines = []
    for k, tick in enumerate(REPORTED_TICKS):
        mm, degrees = every[:, k, 0], every[:, k, 1]
        lines.append(
            f"| {name} | {tick} | {mm.mean():.1f} ({low[k, 0]:.1f} to {high[k, 0]:.1f}) | "
            f"{np.median(mm):.1f} | {np.percentile(mm, 95):.1f} | {degrees.mean():.2f} "
            f"({low[k, 1]:.2f} to {high[k, 1]:.2f}) | {len(every)} | {len(per_episode)} |"
        )
    return lines


def against(name: str, ours: list[np.ndarray], theirs: list[np.ndarray]) -> str:
    """Paired difference: the same windows, whole episodes redrawn."""
    pairs = [a[..., 0] - b[..., 0] for a, b in zip(ours, theirs, strict=True)]
    mean, (low, high) = np.concatenate(pairs).mean(axis=0), resampled(pairs)
    better = sum(part.mean() < 0 for part in pairs)
    parts = [
        f"{m:+.1f} mm ({a:+.1f} to {b:+.1f}) at tick {tick}"
        for tick, m, a, b in zip(REPORTED_TICKS, mean, low, high, strict=True)
    ]
    return f"{name}: {', '.join(parts)}; better in {better} of {len(pairs)} episodes"


def off(joints: Joints, windows: MotionWindows) -> np.ndarray:
    rows = np.array(REPORTED_TICKS) - 1
    return flange_errors(joints(windows)[:, rows], windows.future_joints[:, rows])


def leave_one_out(data: MotionWindows, shipped: ShippedAdapter | None) -> list[str]:
    """Everything is fitted on the other episodes, the choice of the model included."""
    names = ["still", "constant gain", "ours, few data (round numbers)", "ours"]
    names += ["shipped", "ours on shipped"] if shipped else []
    found: dict[str, list[np.ndarray]] = {name: [] for name in names}
    kinds: list[str] = []
    for one in np.unique(data.episode):
        test, train = data.take(data.episode == one), data.take(data.episode != one)
        ways: dict[str, Joints] = {
            "still": lambda w: np.repeat(w.joint_position[:, None], w.actions.shape[1], axis=1),
            "constant gain": constant_gain(train),
            "ours, few data (round numbers)": fitted(train.take(np.arange(1)), None, []),
            "ours": fitted(train, None, kinds),
        }
        if shipped:
            ways |= {
                "shipped": by_adapter(shipped),
                "ours on shipped": fitted(train, shipped, kinds),
            }
        for name in names:
            found[name].append(off(ways[name], test))
        print(f"episode {one}: {len(test)} windows done", file=sys.stderr)
    lines = [
        "| adapter | tick | mean mm (95 %) | median | 95th pct. | degrees (95 %) | n | episodes |",
        "|---|---|---|---|---|---|---|---|",
    ]
    lines += [line for name in names for line in table(name, found[name])]
    if shipped:
        lines += ["", *(against(f"{n} - shipped", found[n], found["shipped"]) for n in names[3::2])]
    lines.append(f"chosen: {', '.join(f'{k} {kinds.count(k)} times' for k in sorted(set(kinds)))}")
    return lines


def learning_curve(data: MotionWindows, shipped: ShippedAdapter | None) -> list[str]:
    """Fitted on the first 1, 2, 5 episodes and measured on all others."""
    lines = [
        "",
        "| fitted on | ours, mm at 4, 8, 12 | ours on shipped | measured on |",
        "|---|---|---|---|",
    ]
    for count in (1, 2, 5):
        test, train = data.take(data.episode >= count), data.take(data.episode < count)
        if not len(test) or not len(train):
            break
        cells = []
        for base in (None, shipped) if shipped else (None,):
            mean = off(fitted(train, base, []), test)[..., 0].mean(axis=0)
            cells.append(" ".join(f"{mm:.1f}" for mm in mean))
        cells += ["-"] * (2 - len(cells))
        rest = len(np.unique(test.episode))
        lines.append(
            f"| {count} episodes, {len(train)} windows | {cells[0]} | {cells[1]} | {rest} |"
        )
    return lines


def kinematics(recordings: list[Episode]) -> str:
    """Recorded poses against forward kinematics."""
    away = [
        np.linalg.norm(flange_pose(one.joint_position)[:, :3] - one.position, axis=1)
        for one in recordings
    ]
    worst, rows = max(float(part.max()) for part in away), sum(map(len, away))
    return f"forward kinematics: at most {1e3 * worst:.4f} mm from {rows} recorded poses"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--shipped", type=Path, help="Ctrl-World's adapter as safetensors")
    parser.add_argument("--other", type=Path, help="another rig: fit on one, measure on the other")
    parser.add_argument("--stride", type=int, default=3, help="ticks between windows")
    arguments = parser.parse_args()
    recordings, refused = episodes(arguments.folder)
    for reason in refused:
        print(f"not used: {reason}")
    data = MotionWindows.of(recordings, stride=arguments.stride)
    if len(np.unique(data.episode)) < 2:
        sys.exit(f"error: --folder={arguments.folder} has fewer than two usable episodes")
    shipped = ShippedAdapter(arguments.shipped) if arguments.shipped else None
    print(kinematics(recordings))
    print("\n".join([*leave_one_out(data, shipped), *learning_curve(data, shipped)]))
    if arguments.other:
        print("\n".join(across(data, arguments.other, shipped, arguments.stride)))


def across(
    data: MotionWindows, folder: Path, shipped: ShippedAdapter | None, stride: int
) -> list[str]:
    """Fitted on each rig and measured on the other."""
    recordings, refused = episodes(folder)
    other = MotionWindows.of(recordings, stride=stride)
    if not len(other):
        return [f"{folder} cannot be used: {refused[0] if refused else 'no episodes'}"]
    lines = []
    for name, train, test in (("there", data, other), ("here", other, data)):
        for base in (None, shipped) if shipped else (None,):
            mean = off(fitted(train, base, []), test)[..., 0].mean(axis=0)
            lines.append(f"across rigs, measured {name}: {mean.round(1).tolist()} mm")
    return lines


if __name__ == "__main__":
    main()
