"""Replays parts of real episodes and measures what is shown beside what the cameras saw."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from contracts.protocols import RewardModel, WorldModel
from contracts.types import Clip, StartState
from models.metrics.features import FidFeatures, FvdFeatures
from models.metrics.image import psnr, ssim
from models.metrics.lpips import Lpips
from models.metrics.replay import Recording, Shown, replay
from replay.codec import EpisodeRow
from replay.store import ReplayStore, clip_indices
from services.replay_items import ReplayItem

Found = dict[str, np.ndarray]  # what was measured of one item, by name
PICTURE_WIDTH = 160  # pixels of a kept picture, at most
CLIP_COLUMNS, LONG_COLUMNS = 6, 11  # pictures kept of one replay


@dataclass(frozen=True, slots=True)
class Networks:
    """Those of the metrics and the judge that could be had; None: the report says why."""

    lpips: Lpips | None = None
    fid: FidFeatures | None = None
    fvd: FvdFeatures | None = None
    reward: RewardModel | None = None
    reward_frames: int = 16


@dataclass(frozen=True, slots=True)
class Part:
    """One item with what was recorded: ``real`` begins with the known frame."""

    item: ReplayItem
    row: EpisodeRow
    real: UInt8[np.ndarray, "frames 3 height width 3"]


Show = Callable[[Sequence[Part]], list[Shown]]  # what stands for the frames after the known one


def show_real(parts: Sequence[Part]) -> list[Shown]:
    """The truth: real features for the Frechet distances, the judge's opinion of real clips."""
    return [part.real[1:] for part in parts]


def copy_first(parts: Sequence[Part]) -> list[Shown]:
    """Baseline: the known frame for ever, all that a model may know."""
    return [part.real[:1].repeat(part.item.frames, axis=0) for part in parts]


def copy_last(parts: Sequence[Part]) -> list[Shown]:
    """The real frame 0.2 s before: it sees reality, which no replay does; how much moves."""
    return [part.real[:-1] for part in parts]


def by_model(model: WorldModel) -> Show:
    """What a world model shows for the recorded poses, from one real frame on."""

    def show(parts: Sequence[Part]) -> list[Shown]:
        return replay(model, [_recording(part) for part in parts])

    return show


def _recording(part: Part) -> Recording:
    poses = part.row.poses[part.item.start :]
    return Recording(start_of(part), part.item.seed, poses, part.item.frames)


def start_of(part: Part) -> StartState:
    """The known frame, and the arm at its tick."""
    return part.row.start(part.item.start, part.real[0])


class ReplayJudge:
    """Measures items of one store. Results depend on the item alone, not on its company."""

    def __init__(self, store: ReplayStore, networks: Networks) -> None:
        self._store = store
        self._networks = networks

    def judge(self, show: Show, items: Sequence[ReplayItem]) -> list[Found]:
        """What ``show`` makes of every item, measured."""
        parts = self.parts(items)
        return [self._measure(*pair) for pair in zip(parts, show(parts), strict=True)]

    def parts(self, items: Sequence[ReplayItem]) -> list[Part]:
        """Read the items' episodes and real frames."""
        rows = self._store.episodes([item.episode for item in items])
        spans = [(i.episode, range(i.start, i.start + i.frames + 1)) for i in items]
        frames = self._store.frames_many(spans)
        return [Part(*one) for one in zip(items, rows, frames, strict=True)]

    def _measure(self, part: Part, shown: Shown) -> Found:
        real, reward, found = part.real[1:], self._networks.reward, Found()
        if part.item.kind != "future":  # nobody has seen what would have come
            found = {"psnr": psnr(real, shown), "ssim": ssim(real, shown)}
        if part.item.kind == "clip":
            found |= self._features(real, shown)
        if part.item.kind in ("event", "future") and reward is not None:
            found["p_yes"] = np.asarray(self._score(reward, part, shown))
        if part.item.pictured:
            columns = LONG_COLUMNS if part.item.kind == "long" else CLIP_COLUMNS
            found["pictures"] = pictures(np.concatenate([part.real[:1], shown]), columns)
        return found

    def _features(self, real: Shown, shown: Shown) -> Found:
        networks, found = self._networks, Found()
        if networks.lpips is not None:
            found["lpips"] = networks.lpips(real, shown)
        if networks.fid is not None:
            flat = networks.fid(shown.reshape(-1, *shown.shape[2:]))
            found["fid"] = flat.reshape(*shown.shape[:2], -1)
        if networks.fvd is not None:
            found["fvd"] = np.stack([networks.fvd(shown[:, view]) for view in range(3)])
        return found

    def _score(self, reward: RewardModel, part: Part, shown: Shown) -> float:
        """P('yes') of the episode whose end is replaced by what was shown."""
        start = part.item.start
        indices = clip_indices(start + part.item.frames + 1, self._networks.reward_frames)
        known = [index for index in indices if index <= start]
        frames = dict(zip(known, self._store.frames(part.row.id, known or [0]), strict=False))
        frames |= {i: shown[i - start - 1] for i in indices if i > start}
        clip = Clip(np.stack([frames[i] for i in indices]), indices, part.row.instruction)
        return reward.score([clip])[0].p_yes


def pictures(
    frames: UInt8[np.ndarray, "frames 3 height width 3"], columns: int
) -> UInt8[np.ndarray, "columns 3 small_height small_width 3"]:
    """Evenly spaced frames, first and last included, at most 160 pixels wide."""
    picked = frames[list(clip_indices(len(frames), columns))]
    height, width = picked.shape[2:4]
    if width <= PICTURE_WIDTH:
        return picked
    size = (PICTURE_WIDTH, round(height * PICTURE_WIDTH / width))
    small = [
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
        for image in picked.reshape(-1, height, width, 3)
    ]
    return np.stack(small).reshape(columns, 3, size[1], size[0], 3)
