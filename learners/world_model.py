"""Trains the world model on D_real and D_DROID (Eq. 1, 2) and measures it on recorded poses."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from configs.training import TrainConfig
from configs.world_model import WorldModelConfig
from contracts.constants import NEW_FRAMES, NO_VERSION
from contracts.protocols import WorldModel
from contracts.types import LatentFormat
from learners.adapter import fit_adapter
from learners.grip_sight import fit_sight
from learners.loop import OnStep, TrainResult, shard, train
from learners.replay_quality import apart, replay_validation
from learners.selection import Episodes, Selection, commit, my_share, save_weights, step_rng
from learners.validation import Validation
from models.build import build_world_model, load_world_model
from models.interfaces import (
    LatentBatch,
    LatentCoder,
    Spaced,
    TrainableWorldModel,
    WorldModelBatch,
)
from replay.latents import LatentCache

log = logging.getLogger(__name__)

HISTORY = 6  # frames before the current one
STATISTICS_BATCH = 256  # windows that a fresh world model's normalisation is fitted on


@dataclass(frozen=True, slots=True)
class WorldModelSources:
    """D_real, successes and failures alike, and what stands for D_DROID beside it."""

    real: Selection
    droid: Selection | None = None


@dataclass(frozen=True, slots=True)
class _Part:
    episodes: Episodes
    windows: np.ndarray
    weight: float
    latents: LatentCache | None = None


class WorldModelData:
    """Batches of 11-frame windows. The batch of a step is a function of (seed, step).

    Half of a batch comes from each source; those of D_DROID weigh ``cotrain_weight``, so the loss
    is proportional to L(D_real) + lambda L(D_DROID) (Eq. 2). With lambda 0 none is drawn. With
    D_real empty (the base model) all come from D_DROID with weight 1.

    ``offsets`` are the history frames relative to the current one, or whole windows of 11 frames
    of which each sample gets one. Before the first frame they stand for the first frame, as when
    imagination begins, and after the last for the last.

    Where the latents of every trajectory are stored beside it in the format ``latents``, batches
    hold those (``LatentBatch``) and no frame is read; the draws are the same.

    Raises:
        ValueError: no trajectory is long enough for one window (5 frames, 12 ticks), or stored
            latents belong to trajectories of another length.
    """

    def __init__(
        self,
        sources: WorldModelSources,
        offsets: Sequence[int] | Sequence[Sequence[int]],
        cotrain_weight: float,
        config: TrainConfig,
        latents: LatentFormat | None = None,
    ) -> None:
        self._config = config
        given = np.atleast_2d(np.array(offsets))
        ahead = np.tile(np.arange(NEW_FRAMES + 1), (len(given), 1))
        self._offsets = given if given.shape[1] > HISTORY else np.hstack([given, ahead])
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
            self._parts = [replace(self._parts[0], weight=1.0)]
        if latents is not None:
            caches = [part.episodes.latents(latents) for part in self._parts]
            if all(caches):
                pairs = zip(self._parts, caches, strict=True)
                self._parts = [replace(part, latents=cache) for part, cache in pairs]

    @property
    def num_windows(self) -> int:
        return sum(len(part.windows) for part in self._parts)

    @property
    def frame_size(self) -> tuple[int, int]:
        row = self._parts[0].episodes.rows[0]
        return row.height, row.width

    @property
    def from_latents(self) -> bool:
        """Whether batches hold stored latents."""
        return self._parts[0].latents is not None

    def sample(self, step: int) -> WorldModelBatch | LatentBatch:
        """This process's share of the batch of one step."""
        picks = self._draw("world model", step, self._config.batch)
        return self._batch(picks[my_share(self._config.batch)])

    def statistics(self) -> WorldModelBatch | LatentBatch:
        """A large batch for normalisation, equal in every process."""
        return self._batch(self._draw("world model statistics", 0, STATISTICS_BATCH))

    def _draw(self, stream: str, step: int, count: int) -> np.ndarray:
        """(count, 4) rows of part, episode, current frame, row of offsets in random order."""
        rng = step_rng(self._config.seed, stream, step)
        second = count // 2 if len(self._parts) == 2 else 0
        drawn = []
        for index, (part, size) in enumerate(
            zip(self._parts, (count - second, second), strict=False)
        ):
            rows = part.windows[rng.integers(len(part.windows), size=size)]
            drawn.append(np.concatenate([np.full((size, 1), index), rows], axis=1))
        picks = rng.permutation(np.concatenate(drawn))
        spacing = step_rng(self._config.seed, f"{stream} spacing", step)
        return np.column_stack([picks, spacing.integers(len(self._offsets), size=count)])

    def _batch(self, picks: np.ndarray) -> WorldModelBatch | LatentBatch:
        rows = [self._parts[part].episodes.rows[episode] for part, episode, *_ in picks]
        last = np.array([[row.num_frames - 1] for row in rows])
        indices = np.clip(picks[:, 2:3] + self._offsets[picks[:, 3]], 0, last)
        pictures: list[np.ndarray] = [np.empty(0)] * len(picks)
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero(picks[:, 0] == number)
            wanted = [(int(picks[i, 1]), indices[i].tolist()) for i in mine]
            for index, window in zip(mine, _pictures(part, wanted), strict=True):
                pictures[index] = window
        kind = LatentBatch if self.from_latents else WorldModelBatch
        return kind(
            np.stack(pictures),
            poses=np.stack([row.poses[i] for row, i in zip(rows, indices, strict=True)]),
            instructions=[row.instruction for row in rows],
            weight=np.array([self._parts[part].weight for part in picks[:, 0]], np.float32),
        )


def _pictures(part: _Part, wanted: Sequence[tuple[int, list[int]]]) -> list[np.ndarray]:
    """Frames, or their latents where these are stored, of many (episode row, frame indices)."""
    if part.latents is None:
        return list(part.episodes.frames(wanted))
    rows = part.episodes.rows
    return list(part.latents.windows([(rows[row].id, picks) for row, picks in wanted]))


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
    latents = model.latent_format() if isinstance(model, LatentCoder) else None
    offsets = model.window_offsets if isinstance(model, Spaced) else model.history_offsets
    learned, validation = _validated(cfg, sources, model)
    data = WorldModelData(learned, offsets, cfg.cotrain_weight, cfg.train, latents)
    if latents is not None and not data.from_latents:
        log.warning("frames are encoded in every step: job=latents would do it once for all")
    if base_folder is None:
        model.fit_statistics(data.statistics())
    result = train(model, data.sample, cfg.train, state_dir, on_step, validation)
    if shard()[0] == 0:
        partial = save_weights(model, out_folder)
        numbers = _save_adapter(cfg, sources, partial) if cfg.adapter == "fitted" else {}
        result = replace(result, numbers=numbers | _save_sight(sources, base_folder, partial))
        commit(partial, out_folder)
    return result


def _validated(
    cfg: WorldModelConfig, sources: WorldModelSources, model: WorldModel
) -> tuple[WorldModelSources, Validation | None]:
    """What is trained on, and the replay of real episodes held apart from it, if it is wanted."""
    if not cfg.validate_every:
        return sources, None
    kept, held_out = apart(sources.real, cfg.validate_share)
    return replace(sources, real=kept), replay_validation(cfg, model, held_out)


def _save_adapter(
    cfg: WorldModelConfig, sources: WorldModelSources, folder: Path
) -> dict[str, float | str]:
    """Fit the adapter beside the weights; how far off the flange is after 4, 8 and 12 ticks."""
    selections = [sources.real] + ([sources.droid] if sources.droid else [])
    adapter, errors = fit_adapter(selections, cfg.adapter_path)
    adapter.save(folder)
    own, still = (
        dict(zip(errors.ticks, e, strict=True)) for e in (errors.adapter, errors.no_motion)
    )
    about = {"adapter": errors.kind, "adapter held out": errors.held_out}
    return (
        about
        | {f"adapter mm at {tick} ticks": mm for tick, mm in own.items()}
        | {f"no motion mm at {tick} ticks": mm for tick, mm in still.items()}
    )


def _save_sight(
    sources: WorldModelSources, base_folder: Path | None, folder: Path
) -> dict[str, float | str]:
    """Fit the eye for the gripper beside the weights, where there is enough to learn from."""
    selections = [sources.real] + ([sources.droid] if sources.droid else [])
    sight, errors = fit_sight(selections, base_folder)
    if sight is not None:
        sight.save(folder)
    if errors is None:
        return {"eye": "none" if sight is None else "base"}
    return {
        "eye": errors.kind,
        "held-up windows apart": float(errors.windows),
        "nats per window": errors.loss,
        "nats without it": errors.blind,
        "AUC of held up": errors.auc,
    }


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
