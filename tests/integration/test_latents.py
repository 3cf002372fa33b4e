"""``job=latents`` on real recordings: every episode encoded once, and nothing twice."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from configs.world_model import CtrlWorldConfig, WorldModelConfig
from models.ctrl_world.world_model import CtrlWorldModel
from replay.latents import LatentCache
from replay.store import ReplayStore

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.shared]

SAMPLE = Path(os.environ["DROID_SAMPLE_DIR"]).resolve()
SIZE = (64, 64)
TINY = CtrlWorldConfig(
    block_channels=[32, 32],
    heads=[1, 1],
    layers_per_block=1,
    vae_channels=[32, 32, 32, 32],
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    made = CtrlWorldModel(WorldModelConfig(kind="ctrl_world", ctrl_world=TINY), SIZE, seed=0)
    folder = tmp_path_factory.mktemp("model")
    made.save(folder)
    return folder, made


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """The two shortest training episodes."""
    folder = tmp_path_factory.mktemp("recordings")
    for part in ("annotation", "videos"):
        (folder / part / "train").mkdir(parents=True)
    for episode in ("0", "6"):
        os.symlink(SAMPLE / f"videos/train/{episode}", folder / f"videos/train/{episode}")
        shutil.copy(SAMPLE / f"annotation/train/{episode}.json", folder / "annotation/train")
    return folder


@pytest.fixture(scope="module")
def command(model, recordings):
    flag = "world_model.ctrl_world"
    return [
        "job=latents", "robot=recorded", f"robot.path={recordings}",
        f"robot.height={SIZE[0]}", f"robot.width={SIZE[1]}",
        "world_model=ctrl_world", f"world_model.checkpoint={model[0]}",
        f"{flag}.block_channels={TINY.block_channels}", f"{flag}.heads={TINY.heads}",
        f"{flag}.layers_per_block={TINY.layers_per_block}",
        f"{flag}.vae_channels={TINY.vae_channels}",
        "cluster.object_store_mb=100", "cluster.dashboard=false",
    ]  # fmt: skip


def test_every_episode_is_encoded_once(start, events, command, model, tmp_path):
    job = start(tmp_path / "run", *(word.replace(" ", "") for word in command))
    job.strike("EncoderProcess")
    assert job.end() == 0, job.output
    (lost,) = events(job.folder, "lost")
    assert lost["message"].startswith("EncoderProcess, process ")
    store = ReplayStore.open(job.folder / "stores" / "real")
    assert sorted(store.ids()) == ["recorded-train-0000", "recorded-train-0006"]
    cache = LatentCache.open(store.folder, model[1].latent_format())
    for name in store.ids():
        every = range(store.num_frames(name))
        expected = model[1].latent_moments(store.frames(name, every))
        (found,) = cache.windows([(name, every)])
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-5)
    before = sorted((store.folder / f"latents-{cache.format.key}").rglob("data/*"))

    again = start(tmp_path / "run", *(word.replace(" ", "") for word in command))
    assert again.end() == 0, again.output
    ended = [event for event in events(job.folder, "end") if event["stage"] == "latents"]
    assert [event["done"] for event in ended] == [2, 2]
    assert sorted((store.folder / f"latents-{cache.format.key}").rglob("data/*")) == before
