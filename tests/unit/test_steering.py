"""DSRL: the noise's mean, what SAC makes of real decisions, and the policy that comes out."""

import math

import numpy as np
import pytest
import torch

from configs.method import SteeringConfig
from configs.policy import EmbeddedPolicyConfig, PolicyConfig
from configs.run import MethodConfig, RunConfig, TaskOverrides
from configs.training import TrainConfig
from contracts.panda import RESET_JOINTS
from contracts.seeds import fold
from contracts.types import Label, Observation, Provenance, RobotState
from envs.fake import counting_trajectory
from learners.selection import Selection
from learners.steering import SteeringSources, _exported, _sac, decisions, train_steering
from models.embedded.policy import EmbeddedPolicy
from models.embedded.rows import noise_of
from models.embedded.steering import Steering, chunk_mean, with_mean
from replay.store import ReplayStore

CFG = PolicyConfig(
    embedded=EmbeddedPolicyConfig(width=32, layers=1, points=8, words=32),
    train=TrainConfig(device="cpu"),
)
SHORT = SteeringConfig(steps=1000, batch=64, width=32, learning_rate=1e-3, bound=2.0, discount=0.9)
TICKS = 24  # two decisions: at the frames of ticks 0 and 12


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    EmbeddedPolicy(CFG, seed=0).save(folder)
    return folder


def own_mean(seed: int, decision: int) -> np.ndarray:
    """Of the noise that the robot's loop gives a decision, in units of its standard deviation."""
    noise = noise_of([fold(seed, decision)], (CFG.horizon, 8)).numpy()
    return noise.mean(axis=0) * math.sqrt(CFG.horizon)


def played(folder, count: int, good) -> Selection:
    store = ReplayStore.create_or_open(folder)
    for seed in range(count):
        made_by = Provenance(f"real-{seed:03d}", "real", "book", 1, seed=seed, policy_version=0)
        store.add(
            counting_trajectory(made_by, TICKS),
            Label(made_by.trajectory_id, bool(good(seed)), "simulator"),
        )
    store.close()
    store = ReplayStore.open(folder)
    return Selection(store, store.ids())


def test_a_chunk_takes_another_mean_and_keeps_what_is_around_it():
    noise = torch.randn(5, 15, 8, generator=torch.Generator().manual_seed(0))
    wanted = torch.linspace(-1, 1, 40).view(5, 8)
    found = with_mean(noise, wanted)
    torch.testing.assert_close(chunk_mean(found), wanted)
    torch.testing.assert_close(
        found - found.mean(dim=1, keepdim=True), noise - noise.mean(dim=1, keepdim=True)
    )
    assert chunk_mean(torch.ones(1, 16, 8)).tolist() == [[4.0] * 8]


def test_decisions_are_those_that_the_robot_took(base, tmp_path):
    """Their frames, their noise, in order, with failures among them."""
    data = played(tmp_path, 3, lambda seed: seed == 1)
    found = list(decisions(CFG, SteeringSources(data, {0: base})))
    assert [one.success for one in found] == [False, True, False]
    for seed, one in enumerate(found):
        assert one.features.shape == (2, 8 * 13 + 17 + 32)
        for k in range(2):
            np.testing.assert_allclose(one.noise[k], own_mean(seed, k), atol=1e-5)
    still = PolicyConfig(embedded=CFG.embedded, execute=10)
    with pytest.raises(ValueError, match=r"policy\.execute=10 must be a multiple of 3"):
        list(decisions(still, SteeringSources(data, {0: base})))


def test_it_steers_to_the_noise_that_succeeded(base, tmp_path):
    """Success needs a high first mean at the last decision: chosen ones rise from 0 to near 2."""
    data = played(tmp_path / "store", 150, lambda seed: own_mean(seed, 1)[0] > 0.5)
    told = []
    result = train_steering(
        CFG, SHORT, SteeringSources(data, {0: base}), tmp_path / "out", lambda s, _: told.append(s)
    )
    assert told[-1] == result.steps == result.kept_step == 1000
    steered = EmbeddedPolicy.load(CFG, tmp_path / "out", 1)
    assert steered.steering is not None
    features = next(iter(decisions(CFG, SteeringSources(data, {0: base})))).features[1:]
    own = torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    chosen = steered.steering(torch.from_numpy(features).expand(200, -1), own)
    assert chosen[:, 0].mean() > 1.0
    assert chosen[:, 1:].mean(dim=0).abs().max() < 1.0
    assert chosen.abs().max() <= 2.0
    old, new = (EmbeddedPolicy.load(CFG, folder, 0).module() for folder in (base, tmp_path / "out"))
    for before, after in zip(old.parameters(), new.parameters(), strict=True):
        torch.testing.assert_close(before, after, rtol=0, atol=0)  # the policy itself stays


def test_nothing_to_steer_towards_is_said(base, tmp_path):
    data = played(tmp_path / "store", 3, lambda _: False)
    with pytest.raises(ValueError, match="none of the 3 real episodes succeeded"):
        train_steering(
            CFG, SHORT, SteeringSources(data, {0: base}), tmp_path / "out", lambda *_: None
        )


def test_what_is_exported_is_sac_s_own_actor(base, tmp_path):
    data = played(tmp_path, 4, lambda seed: seed == 0)
    known = list(decisions(CFG, SteeringSources(data, {0: base})))
    model = _sac(known, SHORT, 3, torch.device("cpu"))
    steering = _exported(model, SHORT)
    seen = known[0].features
    with torch.no_grad():
        mine = steering(torch.from_numpy(seen), torch.zeros(2, 8)).numpy()
    np.testing.assert_allclose(mine, 2.0 * model.predict(seen, deterministic=True)[0], atol=1e-5)


def test_an_actor_that_chooses_the_own_noise_changes_nothing(base):
    class Own(Steering):
        def forward(self, features, own):
            return own

    policy = EmbeddedPolicy.load(CFG, base, 0)
    still = np.zeros(7, np.float32)
    images = np.random.default_rng(0).integers(0, 255, (3, 16, 16, 3), dtype=np.uint8)
    state = RobotState(RESET_JOINTS.astype(np.float32), still, still[:6], 0.0, 0.0)
    seen = Observation(images, state, "do book")
    before = policy.act([seen], [5])[0].actions
    policy.steering = Own(8 * 13 + 17 + 32, 8, 32, 1.0)
    np.testing.assert_array_equal(policy.act([seen], [5])[0].actions, before)


def test_only_the_small_policy_can_be_steered():
    with pytest.raises(ValueError, match=r"method=dsrl steers .* not of policy=pi05"):
        RunConfig(
            task={"book": TaskOverrides()},
            method=MethodConfig(kind="dsrl"),
            policy=PolicyConfig(kind="pi05", checkpoint="scratch"),
        )
