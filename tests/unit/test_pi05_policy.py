"""Pi05Policy at tiny widths: determinism, what it looks at, how it is stored."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from configs.policy import Pi05Config, PolicyConfig
from contracts.types import Observation, RobotState
from models.interfaces import PolicyBatch, RewardBatch, TrainablePolicy
from models.pi05.policy import Pi05Policy
from models.pi05.transforms import NormStats, Statistics

HORIZON = 6


def config(**changes) -> PolicyConfig:
    pi05 = Pi05Config(
        vision_width=16,
        vision_depth=1,
        vision_heads=2,
        vision_mlp=16,
        image_size=28,
        text_width=16,
        text_mlp=16,
        expert_width=16,
        expert_mlp=16,
        heads=2,
        head_dim=8,
        **changes,
    )
    return PolicyConfig(kind="pi05", horizon=HORIZON, execute=4, flow_steps=3, pi05=pi05)


def batch(size=3, seed=0) -> PolicyBatch:
    random = np.random.default_rng(seed)
    return PolicyBatch(
        random.integers(0, 256, (size, 3, 18, 32, 3), np.uint8),
        random.normal(size=(size, 7)).astype(np.float32),
        random.random(size, np.float32),
        [f"stack block {n}" for n in range(size)],
        random.uniform(-1, 1, (size, HORIZON, 8)).astype(np.float32),
        np.ones(size, np.float32),
    )


def observation(seed, instruction="open the drawer") -> Observation:
    random = np.random.default_rng(seed)
    joints = random.normal(size=7).astype(np.float32)
    zeros = np.zeros(7, np.float32)
    state = RobotState(joints, zeros, zeros[:6], random.random(), 0.0)
    return Observation(random.integers(0, 256, (3, 18, 32, 3), np.uint8), state, instruction)


@pytest.fixture
def policy():
    policy = Pi05Policy(config(), seed=1)
    policy.fit_statistics(batch(64))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():  # adaRMS starts at zero, where no image reaches the actions
        for value in policy.module().parameters():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return policy


def act(policy, seen, seed=5):
    return policy.act([seen], [seed])[0].actions


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_is_a_trainable_policy(policy):
    assert isinstance(policy, TrainablePolicy)


def test_a_row_is_bitwise_the_same_in_any_batch(policy):
    seen = [observation(n, "go" * (n + 1)) for n in range(4)]
    together = [chunk.actions for chunk in policy.act(seen, [7, 8, 9, 10])]
    backwards = [chunk.actions for chunk in policy.act(seen[::-1], [10, 9, 8, 7])][::-1]
    for n, one in enumerate(seen):
        assert_array_equal(together[n], backwards[n])
        assert_array_equal(together[n], act(policy, one, seed=7 + n))


def test_seed_and_observation_decide_the_actions(policy):
    seen = observation(0)
    first = act(policy, seen)
    assert_array_equal(act(policy, seen), first)
    assert np.abs(act(policy, seen, seed=6) - first).max() > 1e-3
    assert np.abs(act(policy, observation(1)) - first).max() > 1e-3


def test_version_is_on_every_chunk(policy):
    policy.version = 4
    assert [chunk.version for chunk in policy.act([observation(0)] * 2, [1, 2])] == [4, 4]


def test_no_observations_give_no_chunks(policy):
    assert policy.act([], []) == []


@pytest.mark.parametrize(("exterior", "unseen"), [(0, 1), (1, 0)])
def test_only_the_chosen_exterior_and_the_wrist_are_seen(policy, exterior, unseen):
    policy.cfg.pi05.exterior_view = exterior
    seen = observation(0)
    before = act(policy, seen)
    for view, matters in ((unseen, False), (exterior, True), (2, True)):
        images = seen.images.copy()
        images[view] = 255 - images[view]
        changed = act(policy, Observation(images, seen.state, seen.instruction))
        assert (np.abs(changed - before).max() > 1e-5) == matters, view


def test_actions_come_back_in_robot_units(policy):
    """With zero velocity the sample is the noise itself, unnormalised by the quantiles."""
    with torch.no_grad():
        policy.network.action_out_proj.weight.zero_()
        policy.network.action_out_proj.bias.zero_()
    noise = np.linspace(-1, 1, HORIZON * 32, dtype=np.float32).reshape(HORIZON, 32)
    actions = policy.act_from_noise([observation(0)], [noise])[0].actions
    low, high = np.quantile(batch(64).actions.reshape(-1, 8), (0.01, 0.99), axis=0)
    assert_allclose(actions, low + (noise[:, :8] + 1) / 2 * (high - low), atol=1e-5)


def test_loss_of_a_policy_that_predicts_zero(policy):
    with torch.no_grad():
        policy.network.action_out_proj.weight.zero_()
        policy.network.action_out_proj.bias.zero_()
    samples = batch(256)
    loss = policy.loss(samples, generator()).detach().numpy()
    low, high = np.quantile(batch(64).actions.reshape(-1, 8), (0.01, 0.99), axis=0)
    normal = (samples.actions - low) / (high - low) * 2 - 1
    # E[(noise - action)^2] = 1 + action^2; the 24 padding coordinates count as zeros (openpi).
    expected = 1 + np.square(normal).sum((1, 2)) / (HORIZON * 32)
    assert loss.mean() == pytest.approx(expected.mean(), abs=0.02)


def test_loss_is_per_sample_and_a_function_of_the_generator(policy):
    policy.module().eval()
    samples = batch()
    loss = policy.loss(samples, generator()).detach()
    assert_array_equal(policy.loss(samples, generator()).detach(), loss)
    assert not torch.equal(policy.loss(samples, generator(1)), loss)
    images = samples.images.copy()
    images[1] = 0
    changed = PolicyBatch(
        images,
        samples.joint_position,
        samples.gripper_position,
        samples.instructions,
        samples.actions,
        samples.weight,
    )
    moved = (policy.loss(changed, generator()).detach() - loss).abs()
    assert moved[1] > 1e-5
    assert_allclose(moved[[0, 2]], 0, atol=1e-6)


def test_augmentation_happens_in_training_mode_only(policy):
    samples = batch()
    losses = {}
    for training in (True, False):
        for augment in (True, False):
            policy.module().train(training)
            policy.cfg.pi05.augment = augment
            losses[training, augment] = policy.loss(samples, generator()).detach().numpy()
    assert_array_equal(losses[False, True], losses[False, False])
    assert_array_equal(losses[True, False], losses[False, False])
    assert np.abs(losses[True, True] - losses[True, False]).min() > 1e-6


def test_save_and_load_are_bitwise(policy, tmp_path):
    policy.save(tmp_path)
    again = Pi05Policy.load(config(), tmp_path, version=9)
    assert again.version == 9
    seen = observation(0)
    assert_array_equal(act(again, seen), act(policy, seen))
    assert_array_equal(
        again.loss(batch(), generator()).detach(), policy.loss(batch(), generator()).detach()
    )
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert files == [
        "assets/droid/action_space.json",
        "assets/droid/norm_stats.json",
        "model.safetensors",
        "pi05.json",
    ]


def test_a_folder_of_openpi_loads_and_its_action_space_is_taken_on_trust(policy, tmp_path, caplog):
    policy.export_openpi(tmp_path)
    for name in ("pi05.json", "assets/droid/action_space.json"):
        (tmp_path / name).unlink()
    again = Pi05Policy.load(config(), tmp_path, version=0)
    assert_array_equal(act(again, observation(0)), act(policy, observation(0)))
    assert "policy.pi05.action_space=joint_velocity is taken on trust" in caplog.text


@pytest.mark.parametrize(
    ("file", "name", "stored"),
    [
        ("assets/droid/action_space.json", "action_space", "joint_position"),
        ("pi05.json", "tokenizer", "sentencepiece"),
        ("pi05.json", "vision_heads", 4),
    ],
)
def test_weights_made_for_something_else_are_refused(policy, tmp_path, file, name, stored):
    policy.save(tmp_path)
    path = tmp_path / file
    path.write_text(json.dumps({**json.loads(path.read_text()), name: stored}))
    with pytest.raises(ValueError, match=f"{path}.*{name}: stored {stored!r}"):
        Pi05Policy.load(config(), tmp_path, version=0)


@pytest.mark.parametrize("content", ["", "[1, 2", "3"])
def test_a_damaged_identity_is_named(policy, tmp_path, content):
    policy.save(tmp_path)
    (tmp_path / "pi05.json").write_text(content)
    with pytest.raises(ValueError, match=r"pi05\.json is damaged"):
        Pi05Policy.load(config(), tmp_path, version=0)


def test_joint_positions_are_where_velocities_lead(policy):
    """Constant velocity 0.5 is 0.1 rad per tick: deltas 0.1, 0.2, ... of openpi's full recipe."""
    policy.cfg.pi05.action_space = "joint_position"
    samples = batch(1)
    samples.actions[:, :, :7] = 0.5
    policy.stats = NormStats(*[Statistics(*np.repeat([[0], [1], [-1], [1]], 8, axis=1) * 1.0)] * 2)
    given = []
    policy.network.register_forward_pre_hook(lambda _, inputs: given.append(inputs))
    policy.loss(samples, generator())
    deltas = given[0][1][0].numpy()
    assert_allclose(deltas[:, 0], 0.1 * np.arange(1, HORIZON + 1), atol=1e-5)
    assert_allclose(deltas[:, 7], samples.actions[0, :, 7], atol=1e-5)
    with torch.no_grad():
        policy.network.action_out_proj.weight.zero_()
        policy.network.action_out_proj.bias.zero_()
    # Nothing moves the noise, so deltas come back as the velocities that they were made of.
    actions = policy.act_from_noise([observation(0)], [given[0][1][0].numpy()])[0].actions
    assert_allclose(actions, samples.actions[0], atol=1e-5)


def test_bfloat16_changes_actions_by_its_rounding_alone(policy):
    seen = observation(0)
    single = act(policy, seen)
    policy.cfg.pi05.dtype = "bfloat16"
    low = act(policy, seen)
    assert low.dtype == np.float32
    assert 0 < np.abs(low - single).max() < 0.1


def test_adapters_train_alone_and_are_published_merged(policy, tmp_path):
    """A new policy adapts from its first ``module()`` on; what it saves loads without adapters."""
    policy.cfg.pi05.lora_rank = 2
    before = act(policy, observation(0))
    network = policy.module()
    assert_array_equal(act(policy, observation(0)), before)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert {name.partition(".")[0] for name in trained if ".lora_" not in name} == {
        "action_in_proj",
        "action_out_proj",
        "time_mlp_in",
        "time_mlp_out",
    }
    assert not [name for name in trained if "vision_tower" in name]
    policy.loss(batch(), generator()).mean().backward()
    assert not [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    with torch.no_grad():
        for value in network.parameters():
            if value.requires_grad:
                value.add_(0.1)
    policy.save(tmp_path)
    again = Pi05Policy.load(config(), tmp_path, version=0)
    assert not [name for name in again.network.state_dict() if "lora" in name]
    after = act(policy, observation(0))
    assert np.abs(after - before).max() > 1e-3
    assert_allclose(act(again, observation(0)), after, atol=1e-4)


def test_statistics_are_needed(tmp_path):
    fresh = Pi05Policy(config(), seed=0)
    for call in (
        lambda: act(fresh, observation(0)),
        lambda: fresh.loss(batch(), generator()),
        lambda: fresh.save(tmp_path),
    ):
        with pytest.raises(ValueError, match="call fit_statistics"):
            call()


def test_other_batches_are_refused(policy):
    with pytest.raises(ValueError, match="got RewardBatch"):
        policy.loss(RewardBatch([], np.zeros(0, bool)), generator())


def test_without_noise_every_seed_gives_the_same_plan(policy):
    seen = observation(0)
    assert np.abs(act(policy, seen, seed=1) - act(policy, seen, seed=2)).max() > 1e-4
    policy.cfg = replace(policy.cfg, noise=0.0)
    assert_array_equal(act(policy, seen, seed=1), act(policy, seen, seed=2))
