"""One tiny loop through pi0.5, Ctrl-World and Qwen3-VL instead of their small substitutes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs.policy import Pi05Config, PolicyConfig
from models.build import build_policy
from models.interfaces import PolicyBatch
from replay.store import ReplayStore

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))
SMALLEST = [
    "policy=pi05", "world_model=ctrl_world", "reward=qwen",
    "robot.height=64", "robot.width=128",
    "policy.pi05.image_size=56", "policy.flow_steps=2",
    "world_model.ctrl_world.sampler_steps=1", "world_model.ctrl_world.guidance=1",
    "world_model.replay_episodes=1", "world_model.replay_chunks=1",
    *(
        f"{learner}.train.{setting}"
        for learner in ("policy", "world_model", "reward")
        for setting in ("steps=2", "batch=2", "warmup=1")
    ),
    "method.iterations=1", "each_task.imagine=2", "each_task.alpha=0.0001",
    "imagination.max_chunks=1", "cluster.object_store_mb=100", "cluster.dashboard=false",
]  # fmt: skip


@pytest.mark.ray
def test_pi05_acts_on_physics(start, tmp_path):
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
        tmp_path / "run", *SMALLEST, "job=evaluate", "task=book", f"policy.checkpoint={base}",
        "each_task.max_ticks=15", "evaluation.episodes=2",
    )  # fmt: skip
    assert job.end() == 0, job.output
    played = ReplayStore.open(job.folder / "stores" / "evaluation")
    first, second = (played.trajectory(f"evaluation-base-book-000{k}") for k in (0, 1))
    assert len(first.actions) == 15
    assert not np.array_equal(first.actions, second.actions)
    assert "Embedded models" not in job.output


@pytest.mark.ray
@pytest.mark.shared
def test_the_published_classes_are_all_trained_on_recordings(start, tmp_path):
    """All nine episodes: those without an instruction, which Qwen3-VL cannot judge, get one.

    P('yes') of random weights is about one in the vocabulary's size: alpha accepts it.
    """
    recordings = tmp_path / "recordings"
    for file in SAMPLE.glob("annotation/*/*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["texts"] = [content["texts"][0] or "Do something else"]
        named = recordings / file.relative_to(SAMPLE)
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(json.dumps(content), encoding="utf-8")
    (recordings / "videos").symlink_to(SAMPLE.resolve() / "videos")
    job = start(tmp_path / "run", *SMALLEST, "robot=recorded", f"robot.path={recordings}",
                "robot.untitled=false", "evaluation.control=false")  # fmt: skip
    assert job.end() == 0, job.output
    report = json.loads((job.folder / "report.json").read_text(encoding="utf-8"))
    made = sorted((row["kind"], row["version"]) for row in report["lineage"])
    assert made == [("policy", 0), ("policy", 1), ("reward", 1), ("world_model", 1)]
    dreams = ReplayStore.open(job.folder / "stores" / "imagined")
    first, second = (dreams.trajectory(name) for name in dreams.ids()[:2])
    assert len(first.actions) == 12
    assert len(first.frames) == 5
    assert not np.array_equal(first.frames[1:], second.frames[1:])
    assert all(0.0001 < v.p_yes < 0.1 for v in dreams.verdicts(reward_version=1).values())
    sizes = {path.name for path in (job.folder / "checkpoints" / "reward" / "v0001").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= sizes
