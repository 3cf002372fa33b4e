"""Writes trajectories in Ctrl-World's layout, so that its own scripts train on them.

``annotation/<split>/<n>.json`` and ``videos/<split>/<n>/{0,1,2}.mp4`` at 5 Hz, and beside them what
its dataset class looks for: ``<split>_sample.json`` and ``stat.json`` (Ctrl-World 4c713d1,
``dataset/dataset_droid_exp33.py``).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from contracts.constants import FRAME_HZ, NEW_FRAMES, TICKS_PER_FRAME, VIEWS
from contracts.seeds import in_share
from replay.exported import Exported, droid_rows
from replay.mp4 import Mp4Writer
from replay.quantiles import quantiles

_SPLITS = ("train", "val")


class CtrlWorldWriter:
    """``add`` trajectories one by one, then ``close``. ``folder`` must not exist.

    A trajectory is in ``val`` if the hash of its id lies in the share ``holdout``. Its latents are
    not written: their paths are named as upstream's own files name them. ``crf``: ``Mp4Writer``.
    """

    def __init__(self, folder: Path, holdout: float, crf: int) -> None:
        self._folder, self._holdout, self._crf = folder, holdout, crf
        folder.mkdir(parents=True)
        self._samples: dict[str, list[dict[str, Any]]] = {split: [] for split in _SPLITS}
        self._states: list[np.ndarray] = []
        self._count = 0

    def add(self, episode: Exported) -> None:
        """Write one trajectory as the next episode number."""
        trajectory, number = episode.trajectory, self._count
        split = _SPLITS[in_share(self._holdout, "export", trajectory.id)]
        videos = [f"videos/{split}/{number}/{view}.mp4" for view in range(len(VIEWS))]
        for view, name in enumerate(videos):
            self._write_video(name, trajectory.frames[:, view])
        file = self._folder / "annotation" / split / f"{number}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(_annotation(episode, number, split, videos)), encoding="utf-8")
        starts = range(len(trajectory.frames) - NEW_FRAMES)
        self._samples[split] += [{"episode_id": number, "frame_ids": [k]} for k in starts]
        self._states.append(trajectory.poses)
        self._count += 1

    def close(self) -> None:
        """Write the lists of samples and the percentiles of the 5 Hz states."""
        if not self._count:
            raise ValueError("zero trajectories to write: choose other stores, or run the loop")
        rng = np.random.default_rng(0)
        for split, samples in self._samples.items():
            order = rng.permutation(len(samples))
            shuffled = [samples[k] for k in order]
            self._write_json(f"{split}_sample.json", shuffled)
        low, high = quantiles(lambda: self._states, (0.01, 0.99))
        self._write_json("stat.json", {"state_01": low.tolist(), "state_99": high.tolist()})

    def _write_video(self, name: str, frames: np.ndarray) -> None:
        height, width = frames.shape[1:3]
        video = Mp4Writer(self._folder / name, FRAME_HZ, (height, width), self._crf)
        for frame in frames:
            video.write(frame)
        video.close()

    def _write_json(self, name: str, value: object) -> None:
        (self._folder / name).write_text(json.dumps(value), encoding="utf-8")


def _annotation(episode: Exported, number: int, split: str, videos: list[str]) -> dict[str, Any]:
    trajectory = episode.trajectory
    at_frames = slice(None, None, TICKS_PER_FRAME)
    joints = np.concatenate([trajectory.joint_position, trajectory.gripper_position[:, None]], 1)
    count = len(trajectory.frames)
    latents = [f"latent_videos/{split}/{number}/{view}.pt" for view in range(len(VIEWS))]
    rows = {
        name: (values[:, 0] if values.shape[1] == 1 else values).tolist()
        for name, values in droid_rows(episode).items()
    }
    return {
        "texts": [trajectory.instruction],
        "episode_id": number,
        "success": int(episode.success),
        "video_length": count,
        "state_length": count,
        "raw_length": episode.num_rows,
        "videos": [{"video_path": name} for name in videos],
        "latent_videos": [{"latent_video_path": name} for name in latents],
        "states": trajectory.poses.tolist(),
        "joints": joints[at_frames].tolist(),
        **rows,
        **episode.provenance(),
    }
