"""Teaches the eye that tells whether the gripper closes on something, from stored trajectories."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from contracts.statistics import auc
from learners.selection import Episodes, Selection, Windows, held_out
from models.grip_sight import SIZE, WRIST, GripSight, GripWindows, asks_to_close, shrunk
from models.motion import MotionWindows

LEAST = 20  # windows of either outcome; fewer teach nothing
_MOST = 6000  # windows; more are thinned evenly
_APART = 0.25  # of the episodes are held out
_ON_TOP = 200  # steps where an eye exists that learned elsewhere


@dataclass(frozen=True, slots=True)
class SightErrors:
    """What an eye is worth on windows of episodes that it did not learn from.

    ``loss`` is in nats per window, ``blind`` that of the share of held-up windows alone.
    """

    kind: str
    windows: int
    loss: float
    blind: float
    auc: float


def grip_windows(selections: Sequence[Selection]) -> GripWindows:
    """Moments, five a second, at which the gripper is asked to close within a second: all of them,
    or 6000 evenly spaced ones. Frames are read for these alone."""
    motions, views = [MotionWindows.of([])], [np.zeros((0, *SIZE, 3), np.uint8)]
    sources = [Episodes(selection) for selection in selections]
    found = [_closings(source) for source in sources]
    every = max(1, -(-sum(map(len, found)) // _MOST))
    for source, closings in zip(sources, found, strict=True):
        for number, frames in _by_episode(closings[::every]):
            motions.append(MotionWindows.of([source.rows[number]]).take(frames))
            seen = source.frames([(number, frames.tolist())])[0]
            views.append(shrunk(seen[:, WRIST]))
    return GripWindows.of(MotionWindows.joined(motions), np.concatenate(views))


def _closings(source: Episodes) -> Windows:
    """Rows of (episode, frame): window k of an episode begins at its frame k."""
    parts = [np.zeros((0, 2), np.int64)]
    for number, row in enumerate(source.rows):
        motion = MotionWindows.of([row])
        asks = np.flatnonzero(asks_to_close(motion.gripper_position, motion.actions[..., 7]))
        parts.append(np.stack([np.full(len(asks), number), asks], axis=1))
    return np.concatenate(parts)


def _by_episode(closings: Windows) -> Iterator[tuple[int, np.ndarray]]:
    for number in np.unique(closings[:, 0]):
        yield int(number), closings[closings[:, 0] == number, 1]


def fit_sight(
    selections: Sequence[Selection], base: Path | None
) -> tuple[GripSight | None, SightErrors | None]:
    """An eye fitted to as many selections, in their order, as give enough closings, but for what is
    held out; from the one in ``base`` if there is. Give D_real first.

    About every fourth episode is held out, by its id: always the same ones, so that the eye of the
    world model before has not learned from them either. Used is what predicts those best: the
    base's eye as it is, that with what these episodes add, or none at all, where neither knows more
    than how often the gripper is held up. Fewer than 20 windows of either outcome teach nothing.
    """
    known = GripSight.load(base) if base is not None else None
    for count in range(1, len(selections) + 1):
        rest, tested = (grip_windows(part) for part in _apart(selections[:count]))
        if min(rest.held.sum(), (~rest.held).sum()) >= LEAST and len(tested):
            return _best(base, known, rest, tested)
    return known, None


def _best(
    base: Path | None, known: GripSight | None, rest: GripWindows, tested: GripWindows
) -> tuple[GripSight | None, SightErrors]:
    found: list[tuple[SightErrors, GripSight | None]] = []
    found.append((_errors("none", None, rest, tested), None))
    if known is not None:
        found.append((_errors("base", known, rest, tested), known))
    learned = _learned(base, rest)
    found.append((_errors("fitted", learned, rest, tested), learned))
    errors, best = min(found, key=lambda pair: pair[0].loss)
    return best, errors


def _apart(selections: Sequence[Selection]) -> tuple[list[Selection], list[Selection]]:
    """What is learned from, and what is held out."""
    sides: tuple[list[Selection], list[Selection]] = ([], [])
    for selection in selections:
        for side, ids in zip(sides, held_out(selection.ids, _APART), strict=True):
            side.append(Selection(selection.store, ids))
    return sides


def _learned(base: Path | None, windows: GripWindows) -> GripSight:
    eye = GripSight.load(base) if base is not None else None
    if eye is not None:
        eye.fit(windows, _ON_TOP, scales=False)
        return eye
    eye = GripSight()
    eye.fit(windows)
    return eye


def _errors(
    kind: str, eye: GripSight | None, rest: GripWindows, tested: GripWindows
) -> SightErrors:
    share = np.clip(rest.held.mean(), 0.01, 0.99)
    blind = np.full(len(tested), share)
    told = blind if eye is None else eye.told(tested.views, tested.known)[0]
    area = auc(told, tested.held) if 0 < tested.held.sum() < len(tested) else float("nan")
    loss, without = (_log_loss(p, tested.held) for p in (told, blind))
    return SightErrors(kind, len(tested), loss, without, area)


def _log_loss(told: np.ndarray, held: np.ndarray) -> float:
    told = np.clip(told, 1e-4, 1 - 1e-4)
    return float(-np.log(np.where(held, told, 1 - told)).mean())
