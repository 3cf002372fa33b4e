"""The embedded policy: flow matching, determinism, learning, folders."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from configs.policy import EmbeddedPolicyConfig, PolicyConfig
from contracts.panda import RESET_JOINTS
from contracts.types import Observation, RobotState
from models.build import build_policy, load_policy, see_once
from models.embedded.policy import EmbeddedPolicy, _of_flange, _of_joints, centred, sample_flow
from models.embedded.seen import LIGHTS, SeenPolicy
from models.interfaces import PolicyBatch, Rows

WORDS = ("push the red block", "push the blue block")


def small(**changes: int) -> PolicyConfig:
    sizes = EmbeddedPolicyConfig(width=32, layers=1, points=8, views=[2], words=32)
    return PolicyConfig(horizon=changes.get("horizon", 6), execute=6, embedded=sizes)


def scene(rng: np.random.Generator, side: int) -> np.ndarray:
    """The wrist view is bright on one side."""
    images = rng.integers(0, 60, (3, 16, 24, 3), dtype=np.uint8)
    images[2, :, 12 * side : 12 * side + 12] += 150
    return images


def demonstrations(count: int, horizon: int = 6) -> PolicyBatch:
    """Joint 0 moves to the bright side, joint 1 by the colour named, the gripper closes midway."""
    rng = np.random.default_rng(0)
    side, colour = rng.integers(0, 2, (2, count))
    actions = np.zeros((count, horizon, 8), np.float32)
    actions[..., 0] = 0.8 * (side[:, None] - 0.5)
    actions[..., 1] = 0.6 * (colour[:, None] - 0.5)
    actions[:, horizon // 2 :, 7] = 1.0
    return PolicyBatch(
        images=np.stack([scene(rng, which) for which in side]),
        joint_position=(RESET_JOINTS + rng.normal(0, 0.05, (count, 7))).astype(np.float32),
        gripper_position=rng.random(count).astype(np.float32),
        instructions=[WORDS[which] for which in colour],
        actions=actions,
        weight=np.ones(count, np.float32),
    )


def observe(batch: PolicyBatch, row: int) -> Observation:
    still = np.zeros(7, np.float32)
    state = RobotState(
        batch.joint_position[row], still, still[:6], float(batch.gripper_position[row]), 0.0
    )
    return Observation(batch.images[row], state, batch.instructions[row])


def train(policy: EmbeddedPolicy, batch: PolicyBatch, steps: int) -> list[float]:
    optimiser = torch.optim.AdamW(policy.module().parameters(), 3e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        loss = policy.loss(batch, generator).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return losses


@pytest.fixture(scope="module")
def trained() -> EmbeddedPolicy:
    policy = EmbeddedPolicy(small(), seed=0)
    batch = demonstrations(32)
    policy.fit_statistics(batch)
    train(policy, batch, 260)
    return policy


def test_imitates_what_image_words_and_tick_ask_for(trained):
    batch = demonstrations(32)
    rows = range(16)
    chunks = trained.act([observe(batch, row) for row in rows], list(rows))
    actions = np.stack([chunk.actions for chunk in chunks])
    error = np.abs(actions - batch.actions[:16])
    # blind guesses would be off by 0.4, 0.3 and 0.5
    assert error[..., 0].mean() < 0.15, "the side is in the wrist view"
    assert error[..., 1].mean() < 0.15, "the colour is in the instruction"
    assert error[..., 7].mean() < 0.15, "the grip is in the tick"


def test_a_row_is_bitwise_the_same_in_every_batch(trained):
    batch = demonstrations(7)
    seen = [observe(batch, row) for row in range(7)]
    seeds = [11, 12, 13, 14, 15, 16, 2**40]
    together = trained.act(seen, seeds)
    order = [3, 6, 0, 5, 2, 4, 1]
    shuffled = trained.act([seen[row] for row in order], [seeds[row] for row in order])
    for place, row in enumerate(order):
        alone = trained.act([seen[row]], [seeds[row]])[0]
        np.testing.assert_array_equal(alone.actions, together[row].actions)
        np.testing.assert_array_equal(shuffled[place].actions, together[row].actions)


def test_seeds_make_different_chunks_and_equal_seeds_equal_ones(trained):
    seen = observe(demonstrations(1), 0)
    first, again, other = trained.act([seen] * 3, [1, 1, 2])
    np.testing.assert_array_equal(first.actions, again.actions)
    assert np.abs(first.actions - other.actions).max() > 1e-4


def test_without_noise_every_seed_gives_the_same_plan(trained, tmp_path):
    batch = demonstrations(1)
    trained.save(tmp_path)
    spread = {}
    for noise in (0.0, 0.5, 1.0):
        acting = load_policy(replace(small(), noise=noise), tmp_path, 0)
        plans = [acting.act([observe(batch, 0)], [seed])[0].actions for seed in range(6)]
        spread[noise] = np.ptp(plans, axis=0).mean()
    assert spread[0.0] == 0
    assert 0 < spread[0.5] < spread[1.0]


def test_actions_stay_within_their_limits():
    policy = EmbeddedPolicy(small(), seed=3)
    batch = demonstrations(4)
    wild = PolicyBatch(
        batch.images,
        batch.joint_position,
        batch.gripper_position,
        batch.instructions,
        50 * np.random.default_rng(0).normal(size=(4, 6, 8)).astype(np.float32),
        batch.weight,
    )
    policy.fit_statistics(wild)
    actions = np.stack([c.actions for c in policy.act([observe(batch, 0)] * 8, range(8))])
    assert actions[..., :7].min() == -1.0
    assert actions[..., :7].max() == 1.0
    assert actions[..., 7].min() == 0.0
    assert actions[..., 7].max() == 1.0


def test_times_are_beta_and_noise_is_normal():
    time, noise = sample_flow(40_000, (1, 2), torch.Generator().manual_seed(0))
    assert float(time.mean()) == pytest.approx(0.6, abs=0.01)  # Beta(1.5, 1): 1.5 / 2.5
    assert float((time < 0.25).float().mean()) == pytest.approx(0.125, abs=0.01)  # 0.25 ** 1.5
    assert float(time.min()) >= 0.001
    assert float(noise.square().mean()) == pytest.approx(1.0, abs=0.02)


def test_a_silent_network_already_answers_for_normal_data():
    """What the line from data to noise gives away is no part of the loss: with c(t) x for an answer
    the error of unit data is 1 / (t^2 + (1 - t)^2) on average, that of resting columns less."""
    policy = EmbeddedPolicy(small(), seed=0)
    batch = demonstrations(64)
    policy.fit_statistics(batch)
    with torch.no_grad():
        for parameter in policy._net.velocity.out.parameters():
            parameter.zero_()
    time = np.linspace(0, 1, 4001)[1:]
    density = 1.5 * np.sqrt(time) / len(time)  # of Beta(1.5, 1)
    spread = time**2 + (1 - time) ** 2
    columns = policy.prepare(batch).actions.numpy().reshape(-1, 8).var(axis=0)
    expected = np.mean(
        [(density * ((1 - time) ** 2 + time**2 * column) / spread**2).sum() for column in columns]
    )
    losses = [
        policy.loss(batch, torch.Generator().manual_seed(seed)).mean().item() for seed in range(10)
    ]
    assert np.mean(losses) == pytest.approx(expected, rel=0.03)


def test_a_singular_posture_is_no_error(trained):
    batch = demonstrations(1)
    straight = PolicyBatch(
        batch.images,
        np.zeros((1, 7), np.float32),
        batch.gripper_position,
        batch.instructions,
        batch.actions,
        batch.weight,
    )
    actions = trained.act([observe(straight, 0)], [0])[0].actions
    assert np.isfinite(actions).all()
    assert np.abs(actions[:, :7]).max() <= 1.0


def test_actions_pass_through_the_flange_and_back():
    batch = demonstrations(8)
    seen = _of_flange(batch.joint_position, batch.actions)
    back = _of_joints(batch.joint_position, seen)
    np.testing.assert_allclose(back, batch.actions, atol=1e-4)
    # faster than the joints go: slower as a whole, in the same direction
    faster = _of_joints(
        batch.joint_position, np.concatenate([5 * seen[..., :7], seen[..., 7:]], -1)
    )
    assert np.abs(faster[..., :7]).max() <= 1 + 1e-6
    cosine = (faster[..., :7] * back[..., :7]).sum(-1) / (
        np.linalg.norm(faster[..., :7], axis=-1) * np.linalg.norm(back[..., :7], axis=-1)
    )
    np.testing.assert_allclose(cosine, 1.0, atol=1e-4)


def test_training_repeats_with_its_seeds_and_leaves_the_global_generator_alone():
    batch = demonstrations(8)
    torch.manual_seed(5)
    runs = [train(EmbeddedPolicy(small(), seed=1), batch, 3) for _ in range(2)]
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))
    assert runs[0] == runs[1]
    assert train(EmbeddedPolicy(small(), seed=2), batch, 1)[0] != runs[0][0]


def test_a_saved_policy_acts_the_same(trained, tmp_path):
    trained.save(tmp_path)
    loaded = load_policy(small(), tmp_path, 4)
    seen = [observe(demonstrations(2), row) for row in range(2)]
    for mine, theirs in zip(trained.act(seen, [1, 2]), loaded.act(seen, [1, 2]), strict=True):
        np.testing.assert_array_equal(mine.actions, theirs.actions)
        assert theirs.version == 4
    with pytest.raises(ValueError, match="horizon is 6 in the folder, 7 in the config"):
        load_policy(small(horizon=7), tmp_path, 4)


def test_a_frozen_encoder_stays_as_it_was_loaded(trained, tmp_path):
    trained.save(tmp_path)
    config = small()
    config.embedded.freeze_encoder = True
    loaded = EmbeddedPolicy.load(config, tmp_path, 0)
    before = {name: value.clone() for name, value in loaded.module().state_dict().items()}
    train(loaded, demonstrations(8), 2)
    changed = {n for n, v in loaded.module().state_dict().items() if not torch.equal(v, before[n])}
    assert changed
    assert all(name.startswith("velocity.") for name in changed)


def test_frozen_encoders_need_to_look_once(trained, tmp_path, monkeypatch):
    """Without changes of light, windows that were seen before have the loss of windows that are
    looked at anew, and only the head gets a gradient."""
    monkeypatch.setattr("models.embedded.seen.LIGHT", 0.0)
    trained.save(tmp_path)
    config = small()
    config.embedded.freeze_encoder = True
    policy = load_policy(config, tmp_path, 0)
    batch = demonstrations(10)
    seen = see_once(config, policy, [demonstrations(10), demonstrations(3)], seed=0)
    assert isinstance(seen, SeenPolicy)
    assert len(seen) == 13
    index = torch.tensor([3, 1, 9, 1])
    mine = seen.loss(Rows(index), torch.Generator().manual_seed(1))
    generator = torch.Generator().manual_seed(1)
    torch.randint(LIGHTS, (4,), generator=generator)
    windows = policy.prepare(batch).rows(index)
    looked = policy.look(centred(windows.images), windows.proprio, windows.words)
    expected = policy.loss_seen(looked, windows.without_images(), generator)
    torch.testing.assert_close(mine, expected)
    mine.mean().backward()
    moved = {name for name, p in seen.module().named_parameters() if p.grad is not None}
    assert moved == {n for n, _ in seen.module().named_parameters() if n.startswith("velocity.")}
    with pytest.raises(ValueError, match="trained on by Rows"):
        seen.loss(batch, generator)


def test_encoders_that_learn_look_at_every_step(trained):
    assert see_once(small(), trained, [demonstrations(3)], seed=0) is None


def test_default_sizes_stay_small_and_take_other_frame_sizes(tmp_path):
    policy = EmbeddedPolicy(PolicyConfig(), seed=0)
    assert sum(p.numel() for p in policy.module().parameters()) < 1_300_000
    policy.save(tmp_path, half=True)
    assert (tmp_path / "model.safetensors").stat().st_size < 2_600_000
    batch = demonstrations(1, horizon=15)
    seen = observe(batch, 0)
    larger = Observation(seen.images.repeat(4, 1).repeat(4, 2), seen.state, seen.instruction)
    assert np.isfinite(policy.act([larger], [0])[0].actions).all()


def test_refuses_unknown_kinds_and_uneven_arguments(trained):
    config = small()
    config.kind = "gpt"
    with pytest.raises(ValueError, match="choose embedded or pi05"):
        build_policy(config, 0)
    with pytest.raises(ValueError, match="2 observations need as many seeds"):
        trained.act([observe(demonstrations(1), 0)] * 2, [1])
