"""Encodes stored episodes once, before a world model trains on them: ``job=latents``, and a part
of the loop where ``world_model.ctrl_world.cache_latents`` is set."""

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cluster.checkpoints import base_folder
from cluster.collecting import collect, demonstrations
from cluster.context import Context
from cluster.handles import Stall, answer, end, service, spread, start, up
from configs.world_model import WorldModelConfig
from contracts.constants import NO_VERSION
from contracts.types import LatentFormat
from envs.recorded.episode import EpisodeKey
from models.build import load_world_model
from models.ctrl_world.latent_videos import find_latent_videos, read_latent_videos
from models.device import on_gpu
from models.interfaces import LatentCoder, TrainableWorldModel
from replay.latents import LatentCache
from replay.store import ReplayStore
from services.progress import Bar

Extracted = dict[str, dict[str, Any]]
ADVICE = "look at the encoders' logs in the Ray dashboard"


class EncoderProcess:
    """A frozen image encoder on one GPU share, told which stored episode to encode."""

    def __init__(self, config: WorldModelConfig, folder: Path, size: tuple[int, int]) -> None:
        torch.set_num_threads(1)
        self._config, self._folder, self._size = config, folder, size
        self._stores: dict[Path, ReplayStore] = {}

    @cached_property
    def _coder(self) -> LatentCoder:
        """Loaded by the first call: what is wrong with a checkpoint then ends a call, not Ray's
        attempts to start this process."""
        model = load_world_model(self._config, self._folder, NO_VERSION, self._size)
        return _coder(on_gpu(model), self._config)

    def format(self) -> LatentFormat:
        return self._coder.latent_format()

    def encode(self, store: Path, trajectory_id: str, recorded: Path | None) -> np.ndarray:
        """Moments of every frame (frame, 2, channels, rows, columns).

        ``recorded`` is a folder of latents in Ctrl-World's layout to be taken instead.
        """
        if store not in self._stores:
            self._stores[store] = ReplayStore.open(store)
        episodes = self._stores[store]
        count = episodes.num_frames(trajectory_id)
        if recorded is not None:
            shape = self._coder.latent_format().shape
            return read_latent_videos(recorded, count, shape).numpy()
        return self._coder.latent_moments(episodes.frames(trajectory_id, range(count)))


class LatentWriter:
    """The one process that writes the latents beside the stores."""

    def __init__(self, stores: Mapping[str, Path], latents: LatentFormat, dtype: str) -> None:
        self._caches = {
            name: LatentCache.create_or_open(folder, latents, dtype)
            for name, folder in stores.items()
        }

    def missing(self, store: str, ids: list[str]) -> list[str]:
        return [name for name in ids if name not in self._caches[store]]

    def add(self, store: str, trajectory_id: str, moments: np.ndarray) -> bool:
        return self._caches[store].add(trajectory_id, moments)


def encoder_folder(config: WorldModelConfig) -> Path:
    """Where the weights of the image encoder are that ``job=latents`` uses.

    Raises:
        ValueError: the config names none whose answers would be worth keeping.
    """
    folder = base_folder("world_model", config.checkpoint)
    if config.kind != "ctrl_world" or folder is None:
        raise ValueError(
            f"job=latents with world_model.kind={config.kind} world_model.checkpoint="
            f"{config.checkpoint} has no trained image encoder: give world_model=ctrl_world "
            "world_model.checkpoint=<folder>"
        )
    return folder


def job(run: Context) -> Extracted:
    """Store recordings, if the config names some, and encode everything that the world model would
    be trained on, with the encoder of ``world_model.checkpoint``.

    Raises:
        ValueError: there is nothing to encode, or no encoder worth keeping the answers of.
    """
    config = run.config
    folder = encoder_folder(config.world_model)
    if config.robot.kind == "recorded":
        collect(run, 1, NO_VERSION)
    if config.demos.path:
        demonstrations(run)
    wanted = training_ids(run)
    if not any(wanted.values()):
        raise ValueError(
            f"{run.folder} holds no episodes to encode: give robot=recorded robot.path=<folder>, "
            "or out=<folder of a run that has collected some>"
        )
    return extract(run, folder, wanted)


def training_ids(run: Context) -> dict[str, list[str]]:
    """Ids of D_real and of D_DROID, by store. Without a second set of recordings the
    demonstrations are D_real itself."""
    config = run.config
    shared = config.robot.kind == "recorded" and not config.demos.path
    return {
        "real": run.reader("real").ids(),
        "demos": [] if shared else run.reader("demos").ids(),
    }


def extract(run: Context, folder: Path, wanted: Mapping[str, list[str]]) -> Extracted:
    """Encode what is not stored yet, with the encoder of the world model in ``folder``.

    Stopped at any moment, the next call goes on at the first episode that is missing.
    """
    config, cluster = run.config, run.config.cluster
    arguments = (config.world_model, folder, run.frame_size)
    count = max(1, sum(config.for_task(task).fewest_workers for task in run.tasks))
    asked = {"num_cpus": cluster.worker_cpus, "num_gpus": cluster.worker_gpus}

    def hire() -> Any:
        return up(start(EncoderProcess, *arguments, **asked), "encoder", cluster.start_timeout_s)

    encoders = [start(EncoderProcess, *arguments, **asked) for _ in range(count)]
    stores = {name: run.store_folder(name) for name, ids in wanted.items() if ids}
    total = sum(len(wanted[name]) for name in stores)
    writer: Any = None
    try:
        with run.reporter.stage("latents", total, "episodes") as bar:
            latents = _format(encoders, hire, run.stall(bar, ADVICE))
            dtype = config.world_model.ctrl_world.latents_dtype
            writer = start(LatentWriter, stores, latents, dtype, **service())  # adds nothing twice
            missing = {n: answer(writer.missing.remote(n, wanted[n])) for n in stores}
            left = [(store, name) for store, ids in missing.items() for name in ids]
            bar.begin_with(total - len(left))
            _spread(encoders, hire, writer, run, left, bar)
    finally:
        end(*encoders, *([writer] if writer else []))
    return {
        name: {"episodes": len(wanted[name]), "encoded": len(missing[name]), "key": latents.key}
        for name in stores
    }


def _format(encoders: list[Any], hire: Callable[[], Any], stall: Stall) -> LatentFormat:
    """What the encoders make; asking loads the model, so whoever dies of it is replaced."""
    found: list[LatentFormat] = []
    ask = lambda encoder, _: encoder.format.remote()  # noqa: E731
    spread(encoders, ["format"], ask, lambda _, made: found.append(made), stall, hire)
    return found[0]


def _spread(
    encoders: list[Any],
    hire: Callable[[], Any],
    writer: Any,
    run: Context,
    work: list[tuple[str, str]],
    bar: Bar,
) -> None:
    """Give each encoder its next episode as soon as its last one is stored."""
    recorded = _recorded(run.config.world_model)

    def begin(encoder: Any, piece: tuple[str, str]) -> Any:
        store, name = piece
        moments = encoder.encode.remote(run.store_folder(store), name, recorded.get(name))
        # Latents travel encoder -> writer through the object store, never through the driver.
        return writer.add.remote(store, name, moments)

    stall = run.stall(bar, ADVICE, latent_writer=writer)
    spread(encoders, work, begin, lambda _piece, _new: bar.advance(), stall, hire)


def _recorded(config: WorldModelConfig) -> dict[str, Path]:
    """Folders of latents in Ctrl-World's layout, by the ids that its episodes get here."""
    root = config.ctrl_world.latent_videos
    if not root:
        return {}
    found = find_latent_videos(Path(root))
    return {EpisodeKey(split, name).id: path for (split, name), path in found.items()}


def _coder(model: TrainableWorldModel, config: WorldModelConfig) -> LatentCoder:
    if not isinstance(model, LatentCoder):
        raise ValueError(
            f"world_model.kind={config.kind} has no frozen image encoder whose latents could be "
            "kept: use world_model=ctrl_world"
        )
    return model
