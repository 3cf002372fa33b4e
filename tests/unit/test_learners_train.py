"""The three learners end to end on tiny models: crash and repeat change no bit of the weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from configs.policy import EmbeddedPolicyConfig, PolicyConfig
from configs.reward import EmbeddedRewardConfig, RewardConfig
from configs.training import TrainConfig
from configs.world_model import EmbeddedWorldModelConfig, WorldModelConfig
from contracts.types import Label, Provenance
from envs.fake import counting_trajectory
from learners.audited import RewardSources
from learners.loop import OnStep, TrainResult
from learners.policy import PolicySources, train_policy
from learners.reward import train_reward
from learners.selection import Selection
from learners.world_model import WorldModelSources, train_world_model
from models.adapter import FittedAdapter
from replay.store import ReplayStore

Learner = Callable[[Selection, "Path | None", Path, Path, OnStep], TrainResult]
TINY = TrainConfig(steps=4, batch=4, warmup=1, checkpoint_every=2, ema=0.5, device="cpu")


def policy(
    data: Selection, base: Path | None, state: Path, out: Path, on_step: OnStep
) -> TrainResult:
    cfg = PolicyConfig(embedded=EmbeddedPolicyConfig(width=32, layers=1), train=TINY)
    return train_policy(cfg, PolicySources(data), base, state, out, on_step)


def world_model(
    data: Selection, base: Path | None, state: Path, out: Path, on_step: OnStep
) -> TrainResult:
    sizes = EmbeddedWorldModelConfig(channels=[8, 8, 8], latent=8)
    cfg = WorldModelConfig(embedded=sizes, train=TINY)
    return train_world_model(cfg, WorldModelSources(data), base, state, out, on_step)


def reward(
    data: Selection, base: Path | None, state: Path, out: Path, on_step: OnStep
) -> TrainResult:
    cfg = RewardConfig(embedded=EmbeddedRewardConfig(width=4), train=TINY)
    return train_reward(cfg, RewardSources(data), base, state, out, on_step)


LEARNERS = pytest.mark.parametrize("learner", [policy, world_model, reward])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """Ten episodes of 33 ticks, every second one a success."""
    folder = tmp_path_factory.mktemp("store")
    store = ReplayStore.create_or_open(folder)
    for k in range(10):
        made_by = Provenance(f"e{k}", "real", "wipe", iteration=1, seed=k)
        store.add(counting_trajectory(made_by, 33), Label(f"e{k}", k % 2 == 0, "simulator"))
    store.close()
    opened = ReplayStore.open(folder)
    return Selection(opened, opened.ids())


def quiet(step: int, loss: float) -> None:
    """Nobody watches."""


class KilledError(Exception):
    """The process was killed."""


def killed(step: int, loss: float) -> None:
    if step == 3:
        raise KilledError


def weights(folder: Path) -> dict[str, bytes]:
    return {
        name: array.tobytes() for name, array in load_file(folder / "model.safetensors").items()
    }


@LEARNERS
def test_crash_and_repeat_give_the_same_weights(tmp_path, data, learner: Learner):
    whole = learner(data, None, tmp_path / "s1", tmp_path / "whole", quiet)
    with pytest.raises(KilledError):
        learner(data, None, tmp_path / "s2", tmp_path / "parts", killed)
    assert not (tmp_path / "parts").exists()
    parts = learner(data, None, tmp_path / "s2", tmp_path / "parts", quiet)
    assert (whole.resumed_from, parts.resumed_from) == (0, 2)
    assert whole.losses == parts.losses
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")
    repeated = learner(data, None, tmp_path / "s2", tmp_path / "parts", killed)
    assert repeated.resumed_from == 4
    assert weights(tmp_path / "whole") == weights(tmp_path / "parts")


@LEARNERS
def test_training_begins_at_the_base_and_keeps_its_statistics(tmp_path, data, learner: Learner):
    """Buffers (normalisation) of a base stay bit by bit; some parameters move."""
    learner(data, None, tmp_path / "s1", tmp_path / "base", quiet)
    learner(data, tmp_path / "base", tmp_path / "s2", tmp_path / "tuned", quiet)
    before, after = weights(tmp_path / "base"), weights(tmp_path / "tuned")
    assert before.keys() == after.keys()
    statistics = [name for name in before if name.endswith(("mean", "std"))]
    assert statistics
    assert all(before[name] == after[name] for name in statistics)
    assert any(before[name] != after[name] for name in before)


def test_world_model_comes_with_the_adapter_of_its_robot(tmp_path, data):
    """The counting arm turns joint 0 by 1 rad a tick whatever is asked: learned from real rows."""
    result = world_model(data, None, tmp_path / "s", tmp_path / "out", quiet)
    adapter = FittedAdapter.load(tmp_path / "out")
    rows = data.store.episodes([data.ids[0]])[0]
    joints, _ = adapter.predict(
        rows.joint_position[6:7],
        rows.joint_position[6:7] - rows.joint_position[5:6],
        rows.gripper_position[6:7],
        rows.actions[None, 6:18],
        np.zeros((1, 3, 6, 8, 3), np.uint8),
    )
    assert joints[0, :, 0] == pytest.approx(rows.joint_position[7:19, 0], abs=0.05)
    assert result.numbers["adapter mm at 12 ticks"] < result.numbers["no motion mm at 12 ticks"]
