"""Ctrl-World as a world model: what learners and imagination rely on, at a tiny width."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from configs.world_model import CtrlWorldConfig, WorldModelConfig
from contracts.protocols import WorldModel
from contracts.types import StartState
from models.ctrl_world.world_model import CtrlWorldModel, Slot
from models.interfaces import (
    LatentCoder,
    PolicyBatch,
    Trainable,
    TrainableWorldModel,
    WorldModelBatch,
)

SIZE = (64, 64)


def config(**changes) -> WorldModelConfig:
    return WorldModelConfig(
        kind="ctrl_world",
        ctrl_world=CtrlWorldConfig(
            block_channels=[32, 32, 32, 64],
            heads=[1, 1, 1, 2],
            layers_per_block=1,
            vae_channels=[32, 32, 32, 32],
            sampler_steps=2,
            **changes,
        ),
    )


@pytest.fixture(scope="module")
def model() -> CtrlWorldModel:
    torch.set_num_threads(1)
    return CtrlWorldModel(config(), SIZE, seed=0)


def start(seed: int) -> StartState:
    frame = np.random.default_rng(seed).integers(0, 256, (3, *SIZE, 3), dtype=np.uint8)
    return StartState("real", 0, "stack", "stack it", frame, np.zeros(7, np.float32), 0.0)


def poses(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (5, 7)).astype(np.float32)


def windows(count: int) -> WorldModelBatch:
    rng = np.random.default_rng(0)
    return WorldModelBatch(
        rng.integers(0, 256, (count, 11, 3, *SIZE, 3), dtype=np.uint8),
        rng.uniform(-1, 1, (count, 11, 7)).astype(np.float32),
        ["stack it"] * count,
        np.ones(count, np.float32),
    )


def test_it_is_a_trainable_world_model(model: CtrlWorldModel) -> None:
    checked: TrainableWorldModel = model  # for the type checker
    assert isinstance(checked, Trainable)
    assert isinstance(checked, WorldModel)
    assert isinstance(checked, TrainableWorldModel)
    assert isinstance(checked, LatentCoder)
    assert model.history_offsets[2:] == (-28, -20, -12, -4)


def test_company_never_changes_a_trajectory(model: CtrlWorldModel) -> None:
    together = [model.begin(start(i), seed=i) for i in range(3)]
    alone = model.begin(start(1), seed=1)
    for chunk in range(2):
        asked = np.stack([poses(10 * chunk + i) for i in range(3)])
        many = model.imagine(together, asked)
        one = model.imagine([alone], asked[1:2])
        assert np.array_equal(many[1], one[0])
    assert torch.equal(together[1].latents[-1], alone.latents[-1])
    assert not np.array_equal(many[0], many[1])


def test_slots_that_share_kernels_keep_their_own_noise_history_and_length(
    model: CtrlWorldModel,
) -> None:
    """Groups of two and one, of slots that are one and two chunks old; the same up to rounding."""
    sharing = CtrlWorldModel(config(batch_slots=2), SIZE, seed=0)

    def dream(dreamer: CtrlWorldModel) -> tuple[list[Slot], np.ndarray]:
        slots = [dreamer.begin(start(i), seed=i) for i in range(3)]
        dreamer.imagine(slots[:1], poses(7)[None])
        return slots, dreamer.imagine(slots, np.stack([poses(i) for i in range(3)]))

    (alone, frames), (together, shared) = dream(model), dream(sharing)
    assert np.abs(frames.astype(int) - shared).max() <= 1
    for one, other in zip(alone, together, strict=True):
        assert len(one.latents) == len(other.latents)
        torch.testing.assert_close(one.latents[-1], other.latents[-1], atol=1e-3, rtol=1e-4)
    assert not torch.allclose(together[0].latents[-1], together[1].latents[-1], atol=0.1)


def test_another_worker_continues_a_slot(model: CtrlWorldModel) -> None:
    other = CtrlWorldModel(config(), SIZE, seed=0)
    slot = model.begin(start(0), seed=5)
    model.imagine([slot], poses(0)[None])
    moved = Slot(slot.seed, slot.instruction, list(slot.latents), list(slot.poses))
    expected = model.imagine([slot], poses(1)[None])
    assert np.array_equal(other.imagine([moved], poses(1)[None]), expected)


def test_seed_and_chunk_decide_the_noise(model: CtrlWorldModel) -> None:
    slots = [model.begin(start(0), seed=seed) for seed in (1, 2)]
    assert not torch.equal(slots[0].latents[0], slots[1].latents[0])
    for slot in slots:
        slot.latents[0] = torch.zeros_like(slot.latents[0])
    later = Slot(1, "stack it", slots[0].latents * 2, [poses(0)[0]])  # one chunk on, nothing new
    first, second, third = model.imagine([*slots, later], np.stack([poses(0)] * 3))
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_poses_and_history_reach_the_prediction(model: CtrlWorldModel) -> None:
    """The first pose of a slot must matter ten frames later: through history and its pose."""

    def last(first_pose: float) -> torch.Tensor:
        slot = model.begin(start(0), seed=0)
        changed = poses(0)
        changed[0, 0] = first_pose
        model.imagine([slot], changed[None])
        slot.latents[1] = slot.latents[0]  # leaves the remembered pose as the only difference
        model.imagine([slot], poses(1)[None])
        return slot.latents[-1]

    assert torch.equal(last(0.3), last(0.3))
    assert not torch.equal(last(0.3), last(0.7))


def test_only_unet_and_action_encoder_train(model: CtrlWorldModel) -> None:
    network = model.module()
    network.zero_grad()
    model.loss(windows(2), torch.Generator().manual_seed(0)).mean().backward()
    with_gradient = {
        name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None
    }
    assert with_gradient == {"unet", "action_encoder"}
    assert all(p.grad is not None for p in network.unet.parameters())


def test_a_few_steps_learn_one_batch() -> None:
    model = CtrlWorldModel(config(), SIZE, seed=0)
    batch = windows(1)
    latents = model.latents(batch, torch.Generator().manual_seed(0))
    optimiser = torch.optim.AdamW([p for p in model.module().parameters() if p.requires_grad], 1e-3)
    losses = []
    for _ in range(8):
        loss = model.latent_loss(latents, batch, torch.Generator().manual_seed(1)).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_loss_repeats_with_its_generator_and_checkpointing(model: CtrlWorldModel) -> None:
    batch = windows(2)
    first = model.loss(batch, torch.Generator().manual_seed(3))
    assert torch.equal(first, model.loss(batch, torch.Generator().manual_seed(3)))
    assert not torch.equal(first, model.loss(batch, torch.Generator().manual_seed(4)))
    saving = CtrlWorldModel(config(gradient_checkpointing=True), SIZE, seed=0)
    saving.module().train()
    torch.testing.assert_close(first, saving.loss(batch, torch.Generator().manual_seed(3)))


def test_the_wrong_batch_is_named(model: CtrlWorldModel) -> None:
    batch = PolicyBatch(
        np.zeros((1, 3, *SIZE, 3), np.uint8),
        np.zeros((1, 7), np.float32),
        np.zeros(1, np.float32),
        [""],
        np.zeros((1, 15, 8), np.float32),
        np.ones(1, np.float32),
    )
    with pytest.raises(ValueError, match="PolicyBatch"):
        model.loss(batch, torch.Generator())


def test_saved_and_loaded_models_dream_the_same(tmp_path: Path) -> None:
    model = CtrlWorldModel(config(), SIZE, seed=7)
    model.fit_statistics(windows(4))
    model.save(tmp_path)
    stat = json.loads((tmp_path / "stat.json").read_text())
    assert stat["state_99"] == pytest.approx([0.98] * 7, abs=0.1)  # uniform on -1..1
    loaded = CtrlWorldModel.load(config(), tmp_path, version=3)
    assert loaded.version == 3
    assert loaded.frame_size == SIZE
    frames = [m.imagine([m.begin(start(0), 0)], poses(0)[None]) for m in (model, loaded)]
    assert np.array_equal(*frames)


def test_a_refused_call_leaves_its_slots_alone(model: CtrlWorldModel) -> None:
    slot = model.begin(start(0), seed=0)
    with pytest.raises(ValueError, match="1 slots need as many rows of poses, got 2"):
        model.imagine([slot], np.stack([poses(0)] * 2))
    with pytest.raises(ValueError, match=r"robot\.height"):
        model.begin(replace(start(0), frame=np.zeros((3, 64, 128, 3), np.uint8)), seed=0)
    assert (len(slot.latents), len(slot.poses)) == (1, 0)
    assert len(model.imagine([], np.zeros((0, 5, 7), np.float32))) == 0


def test_frames_that_do_not_suit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"robot\.height=64 robot\.width=128"):
        CtrlWorldModel(config(), (48, 80), seed=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"history_ids": [0, 0, -8, -6, -4, -1]}, "history_ids"),
        ({"history_ids": [0, 0]}, "history_ids"),
        ({"context_dim": 128}, "text_projection"),
        ({"dtype": "float16"}, "dtype"),
        ({"latents_dtype": "bfloat16"}, "latents_dtype"),
        ({"batch_slots": 0}, "batch_slots"),
    ],
)
def test_configurations_that_cannot_work_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_bfloat16_imagines_nearly_the_same(model: CtrlWorldModel) -> None:
    half = CtrlWorldModel(config(dtype="bfloat16"), SIZE, seed=0)
    noise = torch.randn(5, 4, 24, 8, generator=torch.Generator().manual_seed(0))
    exact, rough = (
        m.predict([m.begin(start(0), 0)], poses(0)[None], noise[None]) for m in (model, half)
    )
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    assert (rough - exact).norm() < 0.05 * exact.norm()
