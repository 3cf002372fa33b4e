"""Measures a world model on recorded poses: after training to report, while training to stop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32

from configs.world_model import WorldModelConfig
from contracts.constants import FRAME_HZ, NEW_FRAMES
from contracts.protocols import WorldModel
from contracts.seeds import fold
from contracts.types import StartState, Trajectory
from learners.selection import Selection
from learners.validation import Validation
from models.metrics.image import psnr, ssim
from models.metrics.replay import Recording, replay


@dataclass(frozen=True, slots=True)
class ReplayScores:
    """Image quality by second ahead, mean over episodes, frames and views; ``frames[s]`` counts.

    ``copy`` is the baseline that shows the last known frame for ever.
    """

    psnr: tuple[float, ...]
    ssim: tuple[float, ...]
    copy_psnr: tuple[float, ...]
    copy_ssim: tuple[float, ...]
    frames: tuple[int, ...]
    episodes: int


def evaluate_replay(
    model: WorldModel, trajectories: Sequence[Trajectory], chunks: int, seed: int = 0
) -> ReplayScores:
    """Drive the model with recorded poses from each first frame and compare what it shows.

    Autoregressive: it sees nothing real after the first frame. All episodes advance together; a
    short one takes part in as many of the ``chunks`` as it has frames for.

    Raises:
        ValueError: no trajectory has the 5 frames of one chunk.
    """
    known = [t for t in trajectories if len(t.frames) > NEW_FRAMES]
    if not known:
        raise ValueError(f"none of {len(trajectories)} trajectories has {NEW_FRAMES + 1} frames")
    recordings = [_recording(t, chunks, fold(seed, t.id)) for t in known]
    shown = replay(model, recordings)
    table = [_quality(t, frames) for t, frames in zip(known, shown, strict=True)]
    return _by_second(np.concatenate(table), len(known))


def _recording(trajectory: Trajectory, chunks: int, seed: int) -> Recording:
    """As many whole chunks as there are frames for."""
    whole = min(chunks, (len(trajectory.frames) - 1) // NEW_FRAMES)
    return Recording(start_of(trajectory), seed, trajectory.poses, whole * NEW_FRAMES)


def _quality(trajectory: Trajectory, shown: np.ndarray) -> Float32[np.ndarray, "frame 5"]:
    """Rows of second, PSNR and SSIM of the model, PSNR and SSIM of the copy; mean over views."""
    real = trajectory.frames[1 : len(shown) + 1]
    copied = trajectory.frames[:1].repeat(len(shown), axis=0)
    columns = [np.arange(len(shown)) // FRAME_HZ]
    for other in (shown, copied):
        columns += [psnr(real, other).mean(axis=-1), ssim(real, other).mean(axis=-1)]
    return np.stack(columns, axis=-1).astype(np.float32)


def _by_second(table: np.ndarray, episodes: int) -> ReplayScores:
    seconds = range(int(table[:, 0].max()) + 1)
    rows = [table[table[:, 0] == second] for second in seconds]
    means = np.array([part[:, 1:].mean(axis=0) for part in rows]).tolist()
    columns = list(zip(*means, strict=True))
    return ReplayScores(
        psnr=columns[0],
        ssim=columns[1],
        copy_psnr=columns[2],
        copy_ssim=columns[3],
        frames=tuple(len(part) for part in rows),
        episodes=episodes,
    )


def start_of(trajectory: Trajectory) -> StartState:
    """Where an imagination of a trajectory begins."""
    return StartState(
        parent=trajectory.id,
        parent_frame=0,
        task=trajectory.provenance.task,
        instruction=trajectory.instruction,
        frame=trajectory.frames[0],
        joint_position=trajectory.joint_position[0],
        gripper_position=float(trajectory.gripper_position[0]),
    )


def apart(real: Selection, share: float) -> tuple[Selection, Selection]:
    """(to train on, to validate on): episodes of D_real by the hash of their ids, one or more on
    either side.

    D_real only grows, and its smallest hash is always held out: nothing that an earlier iteration
    has trained on is validated on later (but where ``share`` left nothing to train on).

    Raises:
        ValueError: there are fewer than two episodes.
    """
    ordered = sorted(set(real.ids), key=_position)
    if len(ordered) < 2:
        raise ValueError(
            f"world_model.validate_every needs 2 real episodes or more, there are {len(ordered)}: "
            "collect more, or set it to 0"
        )
    count = sum(_position(name) < share * 2**31 for name in ordered)
    count = min(max(count, 1), len(ordered) - 1)
    return Selection(real.store, ordered[count:]), Selection(real.store, ordered[:count])


def _position(name: str) -> int:
    return fold(0, "validation", name)


def replay_validation(cfg: WorldModelConfig, model: WorldModel, held_out: Selection) -> Validation:
    """Minus the mean PSNR [dB] of replays of held-out episodes: lower is better.

    At most ``world_model.replay_episodes`` of them, each for ``world_model.replay_chunks`` chunks,
    with the same noise every time.

    Raises:
        ValueError: no held-out episode has the 5 frames of one chunk.
    """
    names = sorted(held_out.ids)[: cfg.replay_episodes]
    episodes = [held_out.store.trajectory(name) for name in names]
    if all(len(episode.frames) <= NEW_FRAMES for episode in episodes):
        raise ValueError(
            f"none of {len(episodes)} episodes held out by world_model.validate_share="
            f"{cfg.validate_share:g} has {NEW_FRAMES + 1} frames: raise it, or collect longer ones"
        )

    def measure() -> float:
        scores = evaluate_replay(model, episodes, cfg.replay_chunks, cfg.train.seed)
        return -float(np.average(scores.psnr, weights=scores.frames))

    keep: Literal["best", "last"] = "best" if cfg.validate_keep == "best" else "last"
    return Validation(cfg.validate_every, measure, cfg.validate_patience, keep)
