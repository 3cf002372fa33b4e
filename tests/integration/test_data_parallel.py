"""Two learner processes train as one, whole or sharded, resumed or not."""

import hashlib
from collections.abc import Callable
from dataclasses import astuple, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, multiprocessing

from configs.policy import Pi05Config, PolicyConfig
from configs.reward import QwenRewardConfig, RewardConfig
from configs.training import TrainConfig
from configs.world_model import CtrlWorldConfig, WorldModelConfig
from contracts.types import Clip
from learners.loop import shard, train
from learners.selection import my_share
from learners.validation import Validation
from models.ctrl_world.world_model import CtrlWorldModel
from models.interfaces import Batch, PolicyBatch, RewardBatch, Trainable, WorldModelBatch
from models.lora import merged_state
from models.pi05.policy import Pi05Policy
from models.qwen_reward.reward import QwenReward
from models.qwen_reward.tiny import write_tiny

pytestmark = pytest.mark.long

HORIZON = 4
PI05 = Pi05Config(
    vision_width=16,
    vision_depth=2,
    vision_heads=2,
    vision_mlp=16,
    image_size=28,
    text_width=16,
    text_mlp=18,
    expert_width=16,
    expert_mlp=16,
    heads=2,
    head_dim=8,
    recompute=True,
)
CTRL_WORLD = CtrlWorldConfig(  # sharding gathers hundreds of tensors one by one, and that is slow
    block_channels=[32, 32], heads=[1, 1], layers_per_block=1, vae_channels=[32, 32, 32, 32]
)
PLAN = TrainConfig(
    steps=4, batch=4, warmup=1, learning_rate=0.01, checkpoint_every=2, device="cpu", ema=0.5
)


class KilledError(Exception):
    """The process was killed."""


class RowNoise(Pi05Policy):
    """Draws the noise of a row from the row itself: the same whichever process takes the row."""

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, PolicyBatch)
        return torch.cat([self._row_loss(batch, slice(n, n + 1)) for n in range(len(batch.weight))])

    def _row_loss(self, batch: PolicyBatch, row: slice) -> Tensor:
        one = PolicyBatch(*(value[row] for value in astuple(batch)))
        digest = hashlib.sha256(one.actions.tobytes()).digest()
        own = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        return super().loss(one, own)


def policy(folder: Path, lora_rank: int = 0) -> RowNoise:
    pi05 = replace(PI05, lora_rank=lora_rank)
    cfg = PolicyConfig(kind="pi05", horizon=HORIZON, execute=2, flow_steps=2, pi05=pi05)
    made = RowNoise(cfg, seed=0)
    made.fit_statistics(policy_batch(0, slice(None)))
    return made


def policy_batch(step: int, rows: slice) -> PolicyBatch:
    rng = np.random.default_rng(step)
    words = ["open the drawer", "close it", "go", "stack"]
    return PolicyBatch(
        rng.integers(0, 256, (4, 3, 18, 32, 3), np.uint8)[rows],
        rng.normal(size=(4, 7)).astype(np.float32)[rows],
        rng.random(4, np.float32)[rows],
        words[rows],
        rng.uniform(-1, 1, (4, HORIZON, 8)).astype(np.float32)[rows],
        np.array([0.5, 1.5, 1, 1], np.float32)[rows],
    )


def world_model(folder: Path) -> CtrlWorldModel:
    cfg = WorldModelConfig(kind="ctrl_world", ctrl_world=CTRL_WORLD)
    return CtrlWorldModel(cfg, frame_size=(64, 64), seed=0)


def world_model_batch(step: int, rows: slice) -> WorldModelBatch:
    rng = np.random.default_rng(step)
    return WorldModelBatch(
        rng.integers(0, 256, (2, 11, 3, 64, 64, 3), np.uint8)[rows],
        rng.normal(size=(2, 11, 7)).astype(np.float32)[rows],
        ["go", "stop"][rows],
        np.ones(2, np.float32)[rows],
    )


def reward(folder: Path) -> QwenReward:
    """Of the tiny checkpoint in ``folder/qwen``: transformers writes files as process 0 alone."""
    qwen = QwenRewardConfig(path=str(folder / "qwen"), recompute=True)
    return QwenReward(RewardConfig(kind="qwen", num_frames=4, qwen=qwen), seed=0)


def reward_batch(step: int, rows: slice) -> RewardBatch:
    frames = np.random.default_rng(step).integers(0, 256, (2, 4, 3, 64, 64, 3), np.uint8)
    clips = [Clip(one, (0, 1, 2, 3), "open the drawer") for one in frames]
    return RewardBatch(clips[rows], np.array([True, False])[rows])


MAKE: dict[str, tuple[Callable[..., Trainable], Callable[[int, slice], Batch]]] = {
    "policy": (policy, policy_batch),
    "adapters": (partial(policy, lora_rank=2), policy_batch),
    "world_model": (world_model, world_model_batch),
    "reward": (reward, reward_batch),
}


def run(kind: str, root: Path, name: str, killed_at: int = 0, **changes) -> dict[str, Any]:
    """Train one learner in this process, with whichever others there are."""
    make, draw = MAKE[kind]
    model, folder = make(root), root / name

    def on_step(step: int, loss: float) -> None:
        if step == killed_at:
            raise KilledError

    def measure() -> float:
        """Calls the model as scoring and imagining do, not only by its loss."""
        probe = draw(99, slice(0, 1))
        return model.loss(probe, torch.Generator().manual_seed(0)).item()

    size = PLAN if draw is policy_batch else replace(PLAN, batch=2, steps=2)
    plan = replace(size, **changes)
    checks = Validation(every=2, measure=measure, keep="last")
    sample = lambda step: draw(step, my_share(plan.batch))  # noqa: E731
    try:
        result = train(model, sample, plan, folder / kind, on_step, checks)
    except KilledError:
        return {}
    saved = folder / f"{kind}-saved-{shard()[0]}"
    saved.mkdir()
    model.save(saved)  # by each process alone: the model must be whole again
    return {
        "losses": list(result.losses),
        "validation": [value for _, value in result.validation],
        "resumed_from": result.resumed_from,
        "weights": dict(merged_state(model.module())),
    }


def work(rank: int, folder: str) -> None:
    """What process ``rank`` of two does, written down for the test to read."""
    out = Path(folder)
    rendezvous = f"file://{out / 'rendezvous'}"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=2)
    found: dict[str, dict[str, Any]] = {}
    for kind in MAKE:
        for sharding in ("ddp", "fsdp"):
            found[f"{kind} {sharding}"] = run(kind, out, sharding, sharding=sharding)
    for kind in ("policy", "adapters"):
        run(kind, out, "parts", killed_at=3, sharding="fsdp")
        dist.barrier()
        found[f"{kind} resumed"] = run(kind, out, "parts", sharding="fsdp")
    run("policy", out, "crossed", killed_at=2, sharding="fsdp")
    torch.save(found, out / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("pair")
    write_tiny(folder / "qwen", seed=0)
    multiprocessing.spawn(work, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    return folder, first, second


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("alone")
    return {kind: run(kind, folder, "alone") for kind in ("policy", "adapters")}


def agree(found: dict[str, Any], expected: dict[str, Any], exactly: bool = False) -> None:
    if exactly:
        assert found["losses"] == expected["losses"]
    assert found["losses"] == pytest.approx(expected["losses"], rel=2e-5)
    assert found["validation"] == pytest.approx(expected["validation"], rel=2e-4)
    assert found["weights"].keys() == expected["weights"].keys()
    for name, tensor in expected["weights"].items():
        limit = 0.0 if exactly else 2e-3
        torch.testing.assert_close(
            found["weights"][name],
            tensor,
            rtol=limit,
            atol=limit,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("sharding", ["ddp", "fsdp"])
@pytest.mark.parametrize("kind", ["policy", "adapters"])
def test_two_processes_train_as_one(pair, alone, kind, sharding):
    agree(pair[1][f"{kind} {sharding}"], alone[kind])


@pytest.mark.parametrize("kind", list(MAKE))
def test_sharded_training_equals_whole_models_side_by_side(pair, kind):
    agree(pair[1][f"{kind} fsdp"], pair[1][f"{kind} ddp"])


@pytest.mark.parametrize("kind", [f"{k} {s}" for k in MAKE for s in ("ddp", "fsdp")])
def test_both_processes_end_with_the_same_weights(pair, kind):
    agree(pair[2][kind], pair[1][kind], exactly=True)


@pytest.mark.parametrize("kind", ["policy", "adapters"])
def test_resumed_sharded_training_equals_an_unbroken_one_bit_by_bit(pair, kind):
    assert pair[1][f"{kind} resumed"]["resumed_from"] == 2
    agree(pair[1][f"{kind} resumed"], pair[1][f"{kind} fsdp"], exactly=True)


def test_one_process_continues_what_two_sharded_ones_began(pair, alone):
    found = run("policy", pair[0], "crossed")
    assert found["resumed_from"] == 2
    agree(found, alone["policy"])


def test_checkpoints_of_adapters_hold_what_is_trained_alone(pair):
    stored = load_file(pair[0] / "fsdp/adapters/step-00000004/weights.safetensors")
    assert {name for name in stored if ".lora_" not in name} == {
        f"{layer}.{part}"
        for layer in ("action_in_proj", "action_out_proj", "time_mlp_in", "time_mlp_out")
        for part in ("weight", "bias")
    }
    assert not [name for name in stored if "vision_tower" in name]


def test_a_process_saves_the_whole_model_by_itself(pair):
    for kind in ("policy", "adapters"):
        saved = [load_file(pair[0] / f"fsdp/{kind}-saved-{r}/model.safetensors") for r in (0, 1)]
        assert saved[0].keys() == saved[1].keys()
        for name, tensor in saved[0].items():
            assert torch.equal(tensor, saved[1][name]), name
        assert not [name for name in saved[0] if "lora" in name or "base_layer" in name]
