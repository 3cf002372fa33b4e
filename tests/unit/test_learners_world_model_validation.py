"""The world model's replay of held-out episodes while it trains."""

from pathlib import Path

import numpy as np
import pytest

from configs.training import TrainConfig
from configs.world_model import EmbeddedWorldModelConfig, WorldModelConfig
from contracts.types import Label, Provenance
from envs.fake import counting_trajectory
from learners.loop import TrainResult
from learners.replay_quality import apart, evaluate_replay
from learners.selection import Selection
from learners.world_model import WorldModelSources, train_world_model
from models.build import build_world_model, load_world_model
from replay.store import ReplayStore


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ReplayStore:
    folder = tmp_path_factory.mktemp("store")
    writer = ReplayStore.create_or_open(folder)
    for k in range(8):
        made_by = Provenance(f"e{k}", "real", "wipe", iteration=1, seed=k)
        writer.add(counting_trajectory(made_by, 33), Label(f"e{k}", True, "simulator"))
    writer.close()
    return ReplayStore.open(folder)


def config(**changes) -> WorldModelConfig:
    sizes = EmbeddedWorldModelConfig(channels=[8, 8, 8], latent=8)
    train = TrainConfig(steps=6, batch=4, warmup=1, checkpoint_every=2, device="cpu")
    given = {"validate_every": 2, "validate_share": 0.3, "replay_chunks": 1} | changes
    given |= {"adapter": "shipped", "adapter_path": "unread"}  # fitting one takes seconds
    return WorldModelConfig(embedded=sizes, train=train, **given)


class KilledError(Exception):
    """The process was killed."""


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Random weights; the scales of a fresh model without data are 1."""
    folder = tmp_path_factory.mktemp("base")
    build_world_model(config(), (16, 16), 0).save(folder)
    return folder


def run(
    cfg: WorldModelConfig, store: ReplayStore, base: Path, folder: Path, last: int = 99
) -> TrainResult:
    def on_step(step: int, loss: float) -> None:
        if step == last:
            raise KilledError

    sources = WorldModelSources(Selection(store, store.ids()))
    return train_world_model(cfg, sources, base, folder / "state", folder / "out", on_step)


def test_no_episode_is_on_both_sides_and_none_comes_back(store):
    names = [f"e{k}" for k in range(40)]
    trained: set[str] = set()
    for count in (2, 3, 5, 10, 40):
        kept, out = (set(side.ids) for side in apart(Selection(store, names[:count]), 0.2))
        assert kept | out == set(names[:count])
        assert kept.isdisjoint(out)
        assert kept
        assert out
        assert out.isdisjoint(trained)
        trained |= kept
    assert 3 <= len(out) <= 14  # of 40, a fifth on average
    with pytest.raises(ValueError, match="needs 2 real episodes or more, there are 1"):
        apart(Selection(store, ["e0"]), 0.2)


def test_published_weights_are_those_of_the_best_replay(store, base, tmp_path):
    """Measured again from the published folder: minus the PSNR of the kept step."""
    cfg = config()
    result = run(cfg, store, base, tmp_path)
    assert [step for step, _ in result.validation] == [2, 4, 6]
    best = min(result.validation, key=lambda one: one[1])
    assert result.kept_step == best[0]
    model = load_world_model(cfg, tmp_path / "out", 1, (16, 16))
    _, held_out = apart(Selection(store, store.ids()), cfg.validate_share)
    episodes = [store.trajectory(name) for name in sorted(held_out.ids)]
    scores = evaluate_replay(model, episodes, chunks=1, seed=cfg.train.seed)
    assert best[1] == pytest.approx(-np.mean(scores.psnr), abs=1e-3)
    assert scores.frames == (4 * len(episodes),)


def test_killed_and_continued_is_the_same_training(store, base, tmp_path):
    whole = run(config(), store, base, tmp_path / "whole")
    with pytest.raises(KilledError):
        run(config(), store, base, tmp_path / "parts", last=5)
    parts = run(config(), store, base, tmp_path / "parts")
    assert parts.resumed_from == 4
    assert parts.validation == whole.validation
    assert parts.losses == whole.losses
    files = [sorted((tmp_path / n / "out").glob("*.safetensors")) for n in ("whole", "parts")]
    assert files[0]
    assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]]


def test_held_out_episodes_are_not_trained_on(store, base, tmp_path):
    """The same losses as a training on the kept episodes alone, whatever is held out."""
    kept, _ = apart(Selection(store, store.ids()), 0.3)
    with_validation = run(config(), store, base, tmp_path / "a")
    sources = WorldModelSources(kept)
    cfg = config(validate_every=0)
    alone = train_world_model(
        cfg, sources, base, tmp_path / "b" / "state", tmp_path / "b" / "out", lambda *_: None
    )
    assert with_validation.losses == alone.losses
    assert alone.validation == ()


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match=r"validate_keep='bst'.*Did you mean"):
        config(validate_keep="bst")
    with pytest.raises(ValueError, match=r"validate_share=1\.5"):
        config(validate_share=1.5)
