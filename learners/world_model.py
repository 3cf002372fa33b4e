"""Trains the world model on D_real and D_DROID (Eq. 1, 2) and measures it on recorded poses."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32

from configs.training import TrainConfig
from configs.world_model import WorldModelConfig
from contracts.constants import FRAME_HZ, NEW_FRAMES, NO_VERSION
from contracts.protocols import WorldModel
from contracts.seeds import fold
from contracts.types import StartState, Trajectory
from learners.adapter import fit_adapter
from learners.loop import OnStep, TrainResult, shard, train
from learners.selection import Episodes, Selection, commit, my_share, save_weights, step_rng
from models.build import build_world_model, load_world_model
from models.interfaces import TrainableWorldModel, WorldModelBatch
from models.metrics.image import psnr, ssim

STATISTICS_BATCH = 256  # windows that a fresh world model's normalisation is fitted on


@dataclass(frozen=True, slots=True)
class WorldModelSources:
    """D_real, successes and failures alike, and what stands for D_DROID beside it."""

    real: Selection
    droid: Selection | None = None


@runtime_checkable
class Windowed(Protocol):
    """A world model that names its history: 5 Hz offsets, at most 0, of six frames."""

    history_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Part:
    episodes: Episodes
    windows: np.ndarray
    weight: float


class WorldModelData:
    """Batches of 11-frame windows. The batch of a step is a function of (seed, step).

    Half of a batch comes from each source; those of D_DROID weigh ``cotrain_weight``, so the loss
    is proportional to L(D_real) + lambda L(D_DROID) (Eq. 2). With lambda 0 none is drawn. With
    D_real empty (the base model) all come from D_DROID with weight 1.

    ``offsets`` are the history frames relative to the current one. Before the first frame they
    stand for the first frame, as when imagination begins; windows never end after the last one.

    Raises:
        ValueError: no trajectory is long enough for one window (5 frames, 12 ticks).
    """

    def __init__(
        self,
        sources: WorldModelSources,
        offsets: Sequence[int],
        cotrain_weight: float,
        config: TrainConfig,
    ) -> None:
        self._config = config
        self._offsets = np.array([*offsets, *range(NEW_FRAMES + 1)])
        wanted = [(sources.real, 1.0)]
        if sources.droid is not None and cotrain_weight:
            wanted.append((sources.droid, cotrain_weight))
        parts = [(Episodes(selection), weight) for selection, weight in wanted]
        found = [_Part(e, e.windows(ahead=NEW_FRAMES), weight) for e, weight in parts]
        self._parts = [part for part in found if len(part.windows)]
        if not self._parts:
            raise ValueError(
                f"none of {sum(len(e) for e, _ in parts)} trajectories has {NEW_FRAMES + 1} "
                "frames: the world model has nothing to learn from; collect rollouts"
            )
        if len(self._parts) == 1:
            only = self._parts[0]
            self._parts = [_Part(only.episodes, only.windows, 1.0)]

    @property
    def num_windows(self) -> int:
        return sum(len(part.windows) for part in self._parts)

    @property
    def frame_size(self) -> tuple[int, int]:
        row = self._parts[0].episodes.rows[0]
        return row.height, row.width

    def sample(self, step: int) -> WorldModelBatch:
        """This process's share of the batch of one step."""
        picks = self._draw("world model", step, self._config.batch)
        return self._batch(picks[my_share(self._config.batch)])

    def statistics(self) -> WorldModelBatch:
        """A large batch for normalisation, equal in every process."""
        return self._batch(self._draw("world model statistics", 0, STATISTICS_BATCH))

    def _draw(self, stream: str, step: int, count: int) -> np.ndarray:
        """(count, 3) rows of part, episode, current frame in random order."""
        rng = step_rng(self._config.seed, stream, step)
        second = count // 2 if len(self._parts) == 2 else 0
        drawn = []
        for index, (part, size) in enumerate(
            zip(self._parts, (count - second, second), strict=False)
        ):
            rows = part.windows[rng.integers(len(part.windows), size=size)]
            drawn.append(np.concatenate([np.full((size, 1), index), rows], axis=1))
        return rng.permutation(np.concatenate(drawn))

    def _batch(self, picks: np.ndarray) -> WorldModelBatch:
        indices = np.maximum(picks[:, 2:] + self._offsets, 0)
        frames: list[np.ndarray] = [np.empty(0)] * len(picks)
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(picks[:, 0] == number)
            found = part.episodes.frames([(int(picks[i, 1]), indices[i].tolist()) for i in mine])
            for index, window in zip(mine, found, strict=True):
                frames[index] = window
        rows = [self._parts[part].episodes.rows[episode] for part, episode, _ in picks]
        return WorldModelBatch(
            frames=np.stack(frames),
            poses=np.stack([row.poses[i] for row, i in zip(rows, indices, strict=True)]),
            instructions=[row.instruction for row in rows],
            weight=np.array([self._parts[part].weight for part in picks[:, 0]], np.float32),
        )


def train_world_model(
    cfg: WorldModelConfig,
    sources: WorldModelSources,
    base_folder: Path | None,
    state_dir: Path,
    out_folder: Path,
    on_step: OnStep,
) -> TrainResult:
    """Train from the weights in ``base_folder`` (None: fresh ones), fit the pose adapter to D_real
    unless Ctrl-World's is used, and write both to ``out_folder``.

    Called again after a crash it continues at the last checkpoint in ``state_dir``.

    Raises:
        ValueError: there is nothing to train on, or the folders belong to something else.
        DivergedError: the loss is not finite.
    """
    size = _frame_size(sources)
    model = _load(cfg, size, base_folder)
    if not isinstance(model, Windowed):
        raise ValueError(f"world_model.kind={cfg.kind} does not say which history it is trained on")
    data = WorldModelData(sources, model.history_offsets, cfg.cotrain_weight, cfg.train)
    if base_folder is None:
        model.fit_statistics(data.statistics())
    result = train(model, data.sample, cfg.train, state_dir, on_step)
    if shard()[0] == 0:
        partial = save_weights(model, out_folder)
        if cfg.adapter == "fitted":
            result = replace(result, numbers=_save_adapter(sources, partial))
        commit(partial, out_folder)
    return result


def _save_adapter(sources: WorldModelSources, folder: Path) -> dict[str, float]:
    """Fit the adapter beside the weights; how far off the flange is after 4, 8 and 12 ticks."""
    selections = [sources.real] + ([sources.droid] if sources.droid else [])
    adapter, errors = fit_adapter(selections)
    adapter.save(folder)
    own, still = (
        dict(zip(errors.ticks, e, strict=True)) for e in (errors.adapter, errors.no_motion)
    )
    return {f"adapter mm at {tick} ticks": mm for tick, mm in own.items()} | {
        f"no motion mm at {tick} ticks": mm for tick, mm in still.items()
    }


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
    slots = [model.begin(_start(t), fold(seed, t.id)) for t in known]
    table: list[np.ndarray] = []
    for chunk in range(chunks):
        first = NEW_FRAMES * chunk
        active = [i for i, t in enumerate(known) if len(t.frames) > first + NEW_FRAMES]
        if not active:
            break
        poses = np.stack([known[i].poses[first : first + NEW_FRAMES + 1] for i in active])
        shown = model.imagine([slots[i] for i in active], poses)
        real = np.stack([known[i].frames[first + 1 : first + NEW_FRAMES + 1] for i in active])
        copied = np.stack([known[i].frames[:1] for i in active]).repeat(NEW_FRAMES, axis=1)
        table.append(_quality(real, shown, copied, first + 1))
    return _by_second(np.concatenate(table), len(known))


def _quality(
    real: np.ndarray, shown: np.ndarray, copied: np.ndarray, first_frame: int
) -> Float32[np.ndarray, "frame 5"]:
    """Rows of second, PSNR and SSIM of the model, PSNR and SSIM of the copy; mean over views."""
    seconds = (np.arange(first_frame, first_frame + NEW_FRAMES) - 1) // FRAME_HZ
    columns = [np.broadcast_to(seconds, real.shape[:2])]
    for other in (shown, copied):
        columns += [psnr(real, other).mean(axis=-1), ssim(real, other).mean(axis=-1)]
    return np.stack(columns, axis=-1).reshape(-1, len(columns)).astype(np.float32)


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


def _start(trajectory: Trajectory) -> StartState:
    return StartState(
        parent=trajectory.id,
        parent_frame=0,
        task=trajectory.provenance.task,
        instruction=trajectory.instruction,
        frame=trajectory.frames[0],
        joint_position=trajectory.joint_position[0],
        gripper_position=float(trajectory.gripper_position[0]),
    )


def _frame_size(sources: WorldModelSources) -> tuple[int, int]:
    for selection in (sources.real, sources.droid):
        if selection is not None and selection.ids:
            row = selection.store.episodes([selection.ids[0]])[0]
            return row.height, row.width
    raise ValueError("zero trajectories to train the world model on; collect rollouts first")


def _load(
    cfg: WorldModelConfig, size: tuple[int, int], base_folder: Path | None
) -> TrainableWorldModel:
    if base_folder is None:
        return build_world_model(cfg, size, cfg.train.seed)
    return load_world_model(cfg, base_folder, NO_VERSION, size)
