"""Training from stored latents: equal to encoding every window anew, and never from wrong ones."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.training import TrainConfig
from configs.world_model import CtrlWorldConfig, WorldModelConfig
from contracts.types import Provenance
from envs.fake import counting_trajectory
from learners.selection import Selection
from learners.world_model import WorldModelData, WorldModelSources, train_world_model
from models.ctrl_world.autoencoder import encoder_checksum
from models.ctrl_world.diffusion import TrainingDraws, training_loss
from models.ctrl_world.history import upstream_offsets
from models.ctrl_world.latent_videos import find_latent_videos, read_latent_videos
from models.ctrl_world.latents import check_scale
from models.ctrl_world.world_model import CtrlWorldModel
from models.interfaces import LatentBatch, WorldModelBatch
from replay.latents import LatentCache
from replay.store import ReplayStore

SIZE = (64, 64)
SHAPE = (4, 24, 8)
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", "../shared/data/droid_sample"))


def config() -> WorldModelConfig:
    return WorldModelConfig(
        kind="ctrl_world",
        checkpoint="scratch",
        adapter="shipped",  # none is fitted to these few windows
        adapter_path="not read by a learner",
        ctrl_world=CtrlWorldConfig(
            block_channels=[32, 32],
            heads=[1, 1],
            layers_per_block=1,
            vae_channels=[32, 32, 32, 32],
        ),
        train=TrainConfig(steps=2, batch=3, warmup=0, checkpoint_every=2, device="cpu"),
    )


@pytest.fixture(scope="module")
def model() -> CtrlWorldModel:
    torch.set_num_threads(1)
    return CtrlWorldModel(config(), SIZE, seed=0)


def store_of(folder: Path, **ticks: int) -> ReplayStore:
    store = ReplayStore.create_or_open(folder)
    for name, count in ticks.items():
        trajectory = counting_trajectory(Provenance(name, "real", "wipe", 1, seed=0), count)
        rng = np.random.default_rng(ord(name))
        shape = (len(trajectory.frames), 3, *SIZE, 3)
        frames = rng.integers(0, 256, shape, dtype=np.uint8)
        store.add(replace(trajectory, frames=frames), None)
    store.close()
    return ReplayStore.open(folder)


def extract(store: ReplayStore, model: CtrlWorldModel, ids: list[str]) -> None:
    cache = LatentCache.create_or_open(store.folder, model.latent_format())
    for name in ids:
        frames = store.frames(name, range(store.num_frames(name)))
        cache.add(name, model.latent_moments(frames))
    cache.close()


def data_of(store: ReplayStore, model: CtrlWorldModel, stored: bool = True) -> WorldModelData:
    wanted = model.latent_format() if stored else None
    sources = WorldModelSources(Selection(store, store.ids()))
    return WorldModelData(sources, model.history_offsets, 1.0, TrainConfig(batch=3), wanted)


def test_stored_latents_have_the_loss_of_the_frames_that_they_stand_for(
    tmp_path: Path, model: CtrlWorldModel
) -> None:
    store = store_of(tmp_path, a=15, b=24)
    assert not data_of(store, model).from_latents
    extract(store, model, ["a", "b"])
    frames, latents = data_of(store, model, stored=False).sample(1), data_of(store, model).sample(1)
    assert isinstance(frames, WorldModelBatch)
    assert isinstance(latents, LatentBatch)
    assert latents.instructions == frames.instructions
    np.testing.assert_array_equal(latents.poses, frames.poses)
    losses = [model.loss(b, torch.Generator().manual_seed(5)) for b in (frames, latents)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
    other = model.loss(latents, torch.Generator().manual_seed(6))
    assert not torch.allclose(losses[0], other, rtol=1e-2)


def test_windows_of_several_spacings_stay_inside_their_episode(
    tmp_path: Path, model: CtrlWorldModel
) -> None:
    """Pose x is t / 100 at tick t, 3 ticks a frame: 6 frames, so a spacing of 2 meets the end."""
    store, config = store_of(tmp_path, a=15), TrainConfig(batch=64)
    sources = WorldModelSources(Selection(store, ["a"]))
    batch = WorldModelData(sources, upstream_offsets(), 1.0, config).sample(0)
    frames = np.rint(batch.poses[:, :, 0] * 100 / 3).astype(int)
    now = frames[:, 6]
    assert set(now) == {0, 1}
    assert frames.max() == 5
    still = (frames[:, :6] == now[:, None]).all(axis=1)
    apart = frames[:, 7] - now
    assert set(apart) == {1, 2}
    np.testing.assert_array_equal(frames[:, 10], np.minimum(now + 4 * apart, 5))
    np.testing.assert_array_equal(frames[~still][:, :6], 0)  # one second back is before the start
    assert 0 < still[now > 0].sum() < len(now[now > 0])
    again = WorldModelData(sources, upstream_offsets(), 1.0, config)
    np.testing.assert_array_equal(again.sample(0).poses, batch.poses)
    assert not np.array_equal(again.sample(1).poses, batch.poses)
    assert model.window_offsets == ((*model.history_offsets, 0, 1, 2, 3, 4),)


def test_half_precision_latents_move_the_loss_by_their_rounding(
    tmp_path: Path, model: CtrlWorldModel
) -> None:
    batch = data_of(store_of(tmp_path, a=24), model).sample(0)
    assert isinstance(batch, WorldModelBatch)
    moments = np.stack([model.latent_moments(window) for window in batch.frames])
    both = [
        LatentBatch(m, batch.poses, batch.instructions, batch.weight)
        for m in (moments, moments.astype(np.float16).astype(np.float32))
    ]
    exact, rounded = (model.loss(b, torch.Generator().manual_seed(5)) for b in both)
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(exact, rounded, rtol=2e-3, atol=1e-4)


def test_latents_that_do_not_cover_everything_are_not_used(
    tmp_path: Path, model: CtrlWorldModel
) -> None:
    store = store_of(tmp_path, a=15, b=15)
    extract(store, model, ["a"])
    assert not data_of(store, model).from_latents
    other = CtrlWorldModel(config(), SIZE, seed=1)
    assert encoder_checksum(other.network.vae) != encoder_checksum(model.network.vae)
    extract(store, model, ["b"])
    assert data_of(store, model).from_latents
    assert not data_of(store, other).from_latents  # another VAE made them


def test_latents_of_a_trajectory_of_another_length_are_refused(
    tmp_path: Path, model: CtrlWorldModel
) -> None:
    store = store_of(tmp_path, a=15)
    cache = LatentCache.create_or_open(store.folder, model.latent_format())
    cache.add("a", np.zeros((5, 2, *SHAPE), np.float32))
    cache.close()
    with pytest.raises(ValueError, match="holds latents of 5 frames for 'a', which has 6"):
        data_of(store, model)


def test_the_learner_trains_alike_from_frames_and_from_latents(tmp_path: Path) -> None:
    cfg, store = config(), store_of(tmp_path / "store", a=15, b=24)
    base = CtrlWorldModel(cfg, SIZE, seed=3)
    (tmp_path / "base").mkdir()
    base.save(tmp_path / "base")
    sources = WorldModelSources(Selection(store, store.ids()))

    def trained(name: str) -> tuple[float, ...]:
        folders = tmp_path / f"{name}-state", tmp_path / name
        return train_world_model(cfg, sources, tmp_path / "base", *folders, lambda *_: None).losses

    frames = trained("frames")
    extract(store, base, ["a", "b"])
    assert trained("latents") == pytest.approx(frames, rel=1e-4)
    after = CtrlWorldModel.load(cfg, tmp_path / "latents", 1)
    assert after.latent_format() == base.latent_format()  # the VAE stays as it is
    assert not torch.equal(after.network.unet.conv_in.weight, base.network.unet.conv_in.weight)


def write_views(folder: Path, views: list[torch.Tensor]) -> Path:
    folder.mkdir(parents=True)
    for number, view in enumerate(views):
        torch.save(view, folder / f"{number}.pt")
    return folder


def views(frames: int, scale: float = 1.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [scale * torch.randn(frames, 4, 8, 8, generator=generator) for _ in range(3)]


def test_upstreams_latents_are_stacked_and_have_no_deviation(tmp_path: Path) -> None:
    made = views(7)
    folder = write_views(tmp_path / "latent_videos" / "train" / "12", made)
    assert find_latent_videos(tmp_path) == {("train", "12"): folder}
    moments = read_latent_videos(folder, 6, SHAPE)  # the recorder's last tick has no state
    assert moments.shape == (6, 2, *SHAPE)
    assert torch.equal(moments[:, 0, :, 8:16], made[1][:6])
    assert torch.equal(moments[5, 0, :, 16:], made[2][5])
    assert not moments[:, 1].any()
    with pytest.raises(ValueError, match="no latent_videos/<split>/<episode>/ in it"):
        find_latent_videos(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("scale", "guess"),
    [(1 / 0.18215, "were not multiplied"), (0.18215, "twice"), (200.0, "another VAE")],
)
def test_latents_of_another_scale_are_refused(tmp_path: Path, scale: float, guess: str) -> None:
    folder = write_views(tmp_path / "latent_videos" / "train" / "12", views(6, scale))
    with pytest.raises(ValueError, match=rf"0\.pt: latents with a standard deviation.*{guess}"):
        read_latent_videos(folder, 6, SHAPE)


@pytest.mark.parametrize("frames", [5, 8])
def test_latents_of_other_frames_than_the_states_are_refused(tmp_path: Path, frames: int) -> None:
    made = views(6)
    made[1] = views(frames)[1]
    folder = write_views(tmp_path / "latent_videos" / "val" / "1", made)
    with pytest.raises(ValueError, match=rf"1\.pt has {frames} frames.* states have 6"):
        read_latent_videos(folder, 6, SHAPE)


def test_damaged_latents_are_named(tmp_path: Path) -> None:
    folder = write_views(tmp_path / "latent_videos" / "val" / "1", views(6))
    with pytest.raises(ValueError, match=r"0\.pt has latents of \(4, 8, 8\).*robot\.height"):
        read_latent_videos(folder, 6, (4, 72, 40))
    whole = (folder / "2.pt").read_bytes()
    (folder / "2.pt").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"2\.pt is no whole file"):
        read_latent_videos(folder, 6, SHAPE)
    torch.save(views(6)[2].fill_(float("nan")), folder / "2.pt")
    with pytest.raises(ValueError, match=r"2\.pt has latents that are NaN"):
        read_latent_videos(folder, 6, SHAPE)
    torch.save({"a": torch.zeros(1)}, folder / "2.pt")
    with pytest.raises(ValueError, match=r"2\.pt holds no tensor"):
        read_latent_videos(folder, 6, SHAPE)
    (folder / "2.pt").unlink()
    with pytest.raises(ValueError, match=r"2\.pt is missing"):
        read_latent_videos(folder, 6, SHAPE)


@pytest.mark.shared
def test_real_latents_are_scaled_and_unscaled_ones_are_noticed() -> None:
    found = find_latent_videos(SAMPLE)
    assert len(found) == len(list(SAMPLE.glob("annotation/*/*.json")))
    for folder in found.values():
        count = len(torch.load(folder / "0.pt", weights_only=True))
        moments = read_latent_videos(folder, count, (4, 72, 40))
        with pytest.raises(ValueError, match="were not multiplied"):
            check_scale(moments[:, 0] / 0.18215, str(folder))
        with pytest.raises(ValueError, match="twice"):
            check_scale(moments[:, 0] * 0.18215, str(folder))


@pytest.mark.shared
def test_a_silent_network_has_the_loss_of_the_real_latents_spread() -> None:
    """With v = 0 the loss is E[(eps - sigma z)^2] / (sigma^2 + 1): between 1 and E[z^2]."""
    folder = find_latent_videos(SAMPLE)["train", "0"]
    moments = read_latent_videos(folder, 56, (4, 72, 40))
    clips = torch.stack([moments[start : start + 11, 0] for start in (0, 20, 40)])
    draws = TrainingDraws.sample(tuple(clips.shape), torch.Generator().manual_seed(0))
    silent = torch.zeros_like(clips)
    losses = training_loss(lambda *_: silent, clips, torch.zeros(3, 11, 8), draws)
    spread = float((clips[:, 6:] ** 2).mean())
    assert 0.9 * min(spread, 1) < losses.mean() < 1.1 * max(spread, 1)
