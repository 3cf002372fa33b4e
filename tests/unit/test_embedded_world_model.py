"""The embedded world model: its loss, its memory, what it learns, folders."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from configs.world_model import EmbeddedWorldModelConfig, WorldModelConfig
from contracts.types import StartState
from models.build import build_world_model, load_world_model
from models.embedded.rows import noise_of
from models.embedded.world_model import EmbeddedWorldModel, history_rows
from models.interfaces import WorldModelBatch
from models.metrics.image import psnr

SIZE = (16, 24)


def small(**changes: float) -> WorldModelConfig:
    sizes = EmbeddedWorldModelConfig(channels=[32, 48], latent=16)
    for name, value in changes.items():
        setattr(sizes, name, value)
    return WorldModelConfig(embedded=sizes)


def episode(seed: int, frames: int = 17) -> tuple[np.ndarray, np.ndarray]:
    """A soft light at the place that x and y of the pose name; each view has its own ground."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(3, [SIZE[1] - 3, SIZE[0] - 3], (5, 2))
    way = np.concatenate([np.linspace(a, b, 4, endpoint=False) for a, b in pairwise(corners)])
    way = np.concatenate([way, corners[-1:]])[:frames]
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    away = (x - way[:, 0, None, None]) ** 2 + (y - way[:, 1, None, None]) ** 2
    light = np.exp(-away / 18)[:, None, ..., None] * np.array([160, 120, 20])
    ground = np.array([20, 60, 90])[:, None, None, None] * np.ones((3, *SIZE, 3))
    poses = np.zeros((frames, 7), np.float32)
    poses[:, :2] = way / 40
    return np.clip(ground + light, 0, 255).astype(np.uint8), poses


def windows(count: int, seed: int) -> WorldModelBatch:
    rng = np.random.default_rng(seed)
    frames, poses = [], []
    for _ in range(count):
        images, path = episode(int(rng.integers(0, 40)))
        now = int(rng.integers(0, len(images) - 4))
        rows = [*history_rows(now), *range(now, now + 5)]
        frames.append(images[rows])
        poses.append(path[rows])
    ones = np.ones(count, np.float32)
    return WorldModelBatch(np.stack(frames), np.stack(poses), [""] * count, ones)


def start(images: np.ndarray) -> StartState:
    return StartState("real", 0, "push", "push", images[0], np.zeros(7, np.float32), 0.0)


def rollout(
    model: EmbeddedWorldModel, seeds: list[int], chunks: int = 3, lead: int = 0
) -> np.ndarray:
    """Imagine episodes; ``lead`` moves to the poses of the episode that many places further."""
    episodes = [episode(seed) for seed in seeds]
    slots = [model.begin(start(images), seed) for seed, (images, _) in enumerate(episodes)]
    episodes = episodes[lead:] + episodes[:lead]
    parts = []
    for chunk in range(chunks):
        rows = slice(4 * chunk, 4 * chunk + 5)
        parts.append(model.imagine(slots, np.stack([poses[rows] for _, poses in episodes])))
    return np.concatenate(parts, axis=1)


@pytest.fixture(scope="module")
def trained() -> EmbeddedWorldModel:
    model = EmbeddedWorldModel(small(), SIZE, seed=0)
    model.fit_statistics(windows(64, seed=1))
    optimiser = torch.optim.AdamW(model.module().parameters(), 2e-3)
    generator = torch.Generator().manual_seed(0)
    for step in range(200):
        for group in optimiser.param_groups:
            group["lr"] = 2e-3 * (1 - step / 200) + 1e-5
        loss = model.loss(windows(8, seed=step), generator).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.module().parameters(), 1.0)
        optimiser.step()
    return model


def test_follows_the_poses_for_three_chunks_on_unseen_episodes(trained):
    seeds = list(range(100, 108))
    real = np.stack([episode(seed)[0][:13] for seed in seeds])
    imagined = rollout(trained, seeds)
    copied = real[:, :1].repeat(12, axis=1)
    by_chunk = psnr(real[:, 1:], imagined).mean(axis=(0, 2)).reshape(3, 4).mean(axis=1)
    still = psnr(real[:, 1:], copied).mean(axis=(0, 2)).reshape(3, 4).mean(axis=1)
    assert (by_chunk > still + 2.0).all(), (by_chunk, still)
    wrong = psnr(real[:, 1:], rollout(trained, seeds, lead=3)).mean()
    assert by_chunk.mean() > wrong + 3.0, "the poses of other episodes must give other frames"


def test_a_slot_never_depends_on_its_batch(trained):
    seeds = [100, 101, 102, 103, 104, 105]
    together = rollout(trained, seeds, chunks=2)
    for row in (0, 3, 5):
        images, poses = episode(seeds[row])
        slot = trained.begin(start(images), row)
        alone = [trained.imagine([slot], poses[None, 4 * k : 4 * k + 5]) for k in range(2)]
        np.testing.assert_array_equal(np.concatenate(alone, axis=1)[0], together[row])


def test_noise_follows_seed_and_chunk():
    model = EmbeddedWorldModel(small(sigma_max=1.0), SIZE, seed=0)
    model.fit_statistics(windows(32, seed=1))
    images, _ = episode(0)
    poses = np.zeros((3, 5, 7), np.float32)
    slots = [model.begin(start(images), seed) for seed in (1, 1, 2)]
    first = model.imagine(slots, poses)
    np.testing.assert_array_equal(first[0], first[1])
    assert (first[0] != first[2]).any()
    keys = ([1, 1], [1, 1], [2, 1])
    for slot, key, path in zip(slots, keys, poses, strict=True):
        _, _, noise = model._inputs(slot, path)
        assert torch.equal(noise, noise_of(key, (4, 16, 6, 3)))


def test_a_fresh_model_keeps_the_current_frame():
    """With a silent network D(x) = x / (1 + sigma^2), so what is left of the noise is small."""
    model = EmbeddedWorldModel(small(sigma_max=1000.0), SIZE, seed=0)
    batch = windows(32, seed=1)
    model.fit_statistics(batch)
    images, poses = episode(0)
    slot = model.begin(start(images), 0)
    kept = psnr(images[:1].repeat(4, 0)[None], model.imagine([slot], poses[None, :5]))
    rebuilt = model._net.latents.decode(slot.latents[0][None]).numpy()
    ceiling = psnr(images[:1], rebuilt)
    np.testing.assert_allclose(kept[0], ceiling.repeat(4, 0), atol=0.3)


def test_less_noise_at_the_start_leaves_less_of_it_in_the_frames():
    images, poses = episode(0)
    left = []
    for share in (1.0, 0.25, 0.0):
        model = EmbeddedWorldModel(small(sigma_max=8.0, start_noise=share), SIZE, seed=0)
        model.fit_statistics(windows(32, seed=1))
        slot = model.begin(start(images), 0)
        model.imagine([slot], poses[None, :5])
        left.append(float((slot.latents[1] - slot.latents[0]).norm()))
    assert left[1] == pytest.approx(left[0] / 4, rel=1e-3)
    assert left[2] == pytest.approx(0, abs=1e-5)


def test_preconditioning_is_karras_with_unit_data():
    model = EmbeddedWorldModel(small(), SIZE, seed=0)
    with torch.no_grad():
        model._net.unet.out.bias.fill_(0.5)  # its weights start at zero: the network says 0.5
    noisy = torch.full((1, 4, 16, 6, 3), 2.0)
    known, poses = torch.zeros(1, 7, 16, 6, 3), torch.zeros(1, 11, 10)
    carried = torch.zeros_like(noisy)
    clean = model._net.denoise(noisy, torch.tensor([3.0]), known, carried, poses).detach()
    np.testing.assert_allclose(clean.numpy(), 2.0 / 10 + 0.5 * 3 / 10**0.5, rtol=1e-5)


def test_the_gate_takes_the_carrying_back():
    """Where all that the network says is an open gate, the frame is the current one again."""
    model = EmbeddedWorldModel(small(), SIZE, seed=0)
    with torch.no_grad():
        model._net.unet.out.bias[-4:] = 1.0  # the gates of the four frames
    generator = torch.Generator().manual_seed(0)
    known = torch.randn(1, 7, 16, 6, 3, generator=generator)
    carried = torch.randn(1, 4, 16, 6, 3, generator=generator)
    nothing, poses = torch.zeros(1, 4, 16, 6, 3), torch.zeros(1, 11, 10)
    sigma = torch.tensor([1e4])
    clean = model._net.denoise(nothing, sigma, known, carried, poses).detach()
    scale = model._net.residual_std[:, None, None, None]
    np.testing.assert_allclose(
        carried + clean * scale, known[:, 6:].repeat(1, 4, 1, 1, 1), atol=1e-3
    )


def test_the_loss_of_a_silent_network_is_one():
    """E (c_skip (y + sigma n) - y)^2 = sigma^2 / (1 + sigma^2) for unit y, and the weight is its
    inverse: Karras et al. 2022 choose it so that every noise level starts at one."""
    model = EmbeddedWorldModel(small(history_noise=0.0), SIZE, seed=0)
    batch = windows(64, seed=1)
    model.fit_statistics(batch)
    losses = [model.loss(batch, torch.Generator().manual_seed(s)).mean().item() for s in range(5)]
    assert np.mean(losses) == pytest.approx(1.0, rel=0.05)


def test_history_begins_with_the_first_frame_and_is_clipped_there():
    assert EmbeddedWorldModel.history_offsets[1:] == (-12, -8, -4, -2, -1)
    assert history_rows(0) == [0, 0, 0, 0, 0, 0]
    assert history_rows(3) == [0, 0, 0, 0, 1, 2]
    assert history_rows(300) == [0, 288, 292, 296, 298, 299]


def test_a_slot_remembers_the_rows_that_training_would_show():
    model = EmbeddedWorldModel(small(), SIZE, seed=0)
    images, _ = episode(0)
    slot = model.begin(start(images), 0)
    path = np.arange(17, dtype=np.float32)[:, None] * np.ones(7, np.float32) / 100
    for chunk in range(3):
        model.imagine([slot], path[None, 4 * chunk : 4 * chunk + 5])
    assert len(slot.latents) == 13
    np.testing.assert_array_equal(np.stack(slot.poses), path[:13])
    known, poses, _ = model._inputs(slot, path[12:17])
    for row, frame in enumerate([0, 0, 4, 8, 10, 11, 12]):
        assert torch.equal(known[row], slot.latents[frame])
    np.testing.assert_allclose(poses[:, 0], path[[0, 0, 4, 8, 10, 11, *range(12, 17)], 0])


def test_a_saved_model_imagines_the_same(trained, tmp_path):
    trained.save(tmp_path)
    loaded = load_world_model(small(), tmp_path, 3, SIZE)
    assert loaded.version == 3
    assert isinstance(loaded, EmbeddedWorldModel)
    np.testing.assert_array_equal(rollout(loaded, [100], 1), rollout(trained, [100], 1))
    with pytest.raises(ValueError, match=r"views of \(16, 24\) pixels, the robot's are \(48, 80\)"):
        load_world_model(small(), tmp_path, 3, (48, 80))
    with pytest.raises(ValueError, match="latent is 16 in the folder, 12 in the config"):
        load_world_model(small(latent=12), tmp_path, 3, SIZE)


def test_default_sizes_fit_a_repository(tmp_path):
    model = build_world_model(WorldModelConfig(), (48, 80), 0)
    assert sum(p.numel() for p in model.module().parameters()) < 1_700_000
    assert isinstance(model, EmbeddedWorldModel)
    model.save(tmp_path, half=True)
    assert (tmp_path / "model.safetensors").stat().st_size < 3_500_000


def test_refusals(trained):
    images, poses = episode(0)
    with pytest.raises(ValueError, match="multiples of"):
        EmbeddedWorldModel(small(), (20, 24), seed=0)
    with pytest.raises(ValueError, match="does not fit a world model"):
        trained.begin(start(images[:, :, :8]), 0)
    with pytest.raises(ValueError, match="1 slots need as many rows of poses, got 2"):
        trained.imagine([trained.begin(start(images), 0)], np.stack([poses[:5]] * 2))
    with pytest.raises(ValueError, match="multiples of 8"):
        EmbeddedWorldModelConfig(channels=[30])
