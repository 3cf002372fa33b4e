"""Two learner processes train as one: equal weights, and the batch of a single process."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn

from configs.training import TrainConfig
from learners.loop import train
from learners.selection import my_share
from models.interfaces import Batch, WorldModelBatch


class Regression:
    """Fits the sum of the mean pose; no noise, so that processes share nothing but gradients."""

    def __init__(self) -> None:
        self.version = -1
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))

    def module(self) -> nn.Module:
        return self.net

    def fit_statistics(self, batch: Batch) -> None:
        raise AssertionError("a loop fits no statistics")

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        assert isinstance(batch, WorldModelBatch)
        poses = torch.from_numpy(batch.poses).mean(dim=1)
        return (self.net(poses)[:, 0] - poses.sum(dim=1)).square()

    def save(self, folder: Path) -> None:
        raise AssertionError("a loop publishes nothing")


def sample(step: int) -> WorldModelBatch:
    poses = np.random.default_rng(step).normal(size=(8, 11, 7)).astype(np.float32)[my_share(8)]
    frames = np.zeros((len(poses), 11, 3, 8, 8, 3), np.uint8)
    return WorldModelBatch(frames, poses, ["go"] * len(poses), np.ones(len(poses), np.float32))


def work(rank: int, world: int, folder: str) -> None:
    """Train six steps as process ``rank`` of ``world`` and write down what came of it."""
    out = Path(folder)
    if world > 1:
        rendezvous = f"file://{out / 'rendezvous'}"
        dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    model = Regression()
    plan = TrainConfig(
        steps=6, batch=8, warmup=1, learning_rate=0.01, checkpoint_every=3, device="cpu"
    )
    result = train(model, sample, plan, out / f"state{world}", lambda step, loss: None)
    weights = dict(model.net.state_dict())
    torch.save({"weights": weights, "losses": list(result.losses)}, out / f"{world}-{rank}.pt")
    if world > 1:
        dist.destroy_process_group()


def test_two_processes_train_as_one(tmp_path):
    work(0, 1, str(tmp_path))
    multiprocessing.spawn(work, args=(2, str(tmp_path)), nprocs=2)
    names = ("1-0.pt", "2-0.pt", "2-1.pt")
    alone, first, second = (torch.load(tmp_path / n, weights_only=True) for n in names)
    assert first["losses"] == second["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for name, tensor in alone["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], tensor, rtol=1e-4, atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "state2").iterdir()) == [
        "step-00000003",
        "step-00000006",
    ]
