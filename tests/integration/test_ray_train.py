"""Two Ray Train workers fine-tune pi0.5, whole or sharded, to the same published weights."""

import os
import signal
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from ray import cloudpickle
from safetensors.torch import load_file

from cluster.session import session
from cluster.training import OnStep, fit
from configs.policy import Pi05Config, PolicyConfig
from configs.run import ClusterConfig, RunConfig, TaskOverrides
from configs.training import TrainConfig
from contracts.errors import StoppedError
from contracts.types import Label, Provenance
from envs.fake import counting_trajectory
from learners.policy import PolicySources, train_policy
from learners.selection import Selection
from replay.store import ReplayStore
from services.progress import Reporter

pytestmark = [pytest.mark.long, pytest.mark.ray]

PI05 = Pi05Config(
    vision_width=16,
    vision_depth=1,
    vision_heads=2,
    vision_mlp=16,
    image_size=28,
    text_width=16,
    text_mlp=18,
    expert_width=16,
    expert_mlp=16,
    heads=2,
    head_dim=8,
)


def learner(store: Path, folder: Path, sharding: str, on_step: OnStep) -> dict[str, Any]:
    """Runs in each worker; ``folder`` gets the state and the weights."""
    train = TrainConfig(steps=3, batch=4, warmup=1, ema=0.5, device="cpu", sharding=sharding)
    cfg = PolicyConfig(kind="pi05", horizon=4, execute=2, pi05=PI05, train=train)
    opened = ReplayStore.open(store)
    sources = PolicySources(Selection(opened, opened.ids()))
    result = train_policy(cfg, sources, None, folder / "state", folder / "weights", on_step)
    return {"losses": list(result.losses), "processes": torch.distributed.get_world_size()}


def refuses(on_step: OnStep) -> dict[str, Any]:
    on_step(0, 0.5)
    raise ValueError("no clip has an instruction")


def hangs(on_step: OnStep) -> dict[str, Any]:
    on_step(1, 0.5)
    os.kill(os.getpid(), signal.SIGSTOP)
    return {}


def test_workers_that_share_a_model_equal_workers_that_each_hold_one(tmp_path):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    store = ReplayStore.create_or_open(tmp_path / "store")
    for k in range(4):
        made_by = Provenance(f"e{k}", "real", "wipe", iteration=1, seed=k)
        store.add(counting_trajectory(made_by, 33), Label(f"e{k}", True, "simulator"))
    store.close()
    cluster = ClusterConfig(learner_workers=2, dashboard=False, object_store_mb=100, num_cpus=4)
    found: dict[str, dict[str, Any]] = {}
    run = RunConfig(task={"book": TaskOverrides()}, cluster=cluster)
    with session(run, ["book"]), Reporter(tmp_path) as reporter:
        for sharding in ("ddp", "fsdp"):
            folder = tmp_path / sharding
            folder.mkdir()
            with reporter.stage(sharding, 3, "steps") as bar:
                work = partial(learner, tmp_path / "store", folder, sharding)
                found[sharding] = fit(work, sharding, folder, cluster, bar)
        # the learner's own words alone, though Ray Train would begin it three times more
        with (
            pytest.raises(ValueError, match=r"^refused: no clip has an instruction$"),
            reporter.stage("refused", 3, "steps") as bar,
        ):
            fit(refuses, "refused", tmp_path / "refused", cluster, bar)
        impatient = replace(cluster, learner_workers=1, stall_timeout_s=8)
        with (
            pytest.raises(StoppedError, match=r"^hung: no training step for 8 s, "),
            reporter.stage("hung", 3, "steps") as bar,
        ):
            fit(hangs, "hung", tmp_path / "hung", impatient, bar)
    assert found["fsdp"]["processes"] == found["ddp"]["processes"] == 2
    assert found["fsdp"]["losses"] == pytest.approx(found["ddp"]["losses"], rel=2e-5)
    whole, shared = (
        load_file(tmp_path / sharding / "weights/model.safetensors") for sharding in ("ddp", "fsdp")
    )
    assert whole.keys() == shared.keys()
    for name, tensor in whole.items():
        torch.testing.assert_close(shared[name], tensor, rtol=1e-3, atol=1e-3)
