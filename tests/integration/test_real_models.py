"""pi0.5 itself, at its smallest, drives the simulated robot; test_recorded.py has the rest."""

import numpy as np
import pytest

from configs.policy import Pi05Config, PolicyConfig
from models.build import build_policy
from models.interfaces import PolicyBatch
from replay.store import ReplayStore


@pytest.mark.ray
def test_pi05_acts_on_physics(start, smallest, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    config = PolicyConfig(kind="pi05", flow_steps=2, pi05=Pi05Config(image_size=56))
    policy = build_policy(config, 2)
    rng = np.random.default_rng(0)
    policy.fit_statistics(
        PolicyBatch(
            rng.integers(0, 256, (4, 3, 64, 128, 3), np.uint8),
            rng.normal(size=(4, 7)).astype(np.float32),
            rng.random(4, np.float32),
            ["open the book"] * 4,
            rng.uniform(-1, 1, (4, config.horizon, 8)).astype(np.float32),
            np.ones(4, np.float32),
        )
    )
    policy.save(base)
    job = start(
        tmp_path / "run", *smallest, "job=evaluate", "task=book", f"policy.checkpoint={base}",
        "each_task.max_ticks=15", "evaluation.episodes=2",
    )  # fmt: skip
    assert job.end() == 0, job.output
    played = ReplayStore.open(job.folder / "stores" / "evaluation")
    first, second = (played.trajectory(f"evaluation-base-book-000{k}") for k in (0, 1))
    assert len(first.actions) == 15
    assert not np.array_equal(first.actions, second.actions)
    assert "Embedded models" not in job.output
