"""One tiny loop through pi0.5, Ctrl-World and Qwen3-VL instead of their small substitutes."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from configs.reward import RewardConfig
from models.build import build_reward
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
def test_the_published_classes_run_the_loop_on_physics(start, tmp_path):
    """P('yes') of random weights is about one in the vocabulary's size: alpha accepts it."""
    base = tmp_path / "base"
    base.mkdir()
    build_reward(RewardConfig(kind="qwen"), 2).save(base)
    job = start(
        tmp_path / "run",
        *SMALLEST, "task=book", f"reward.checkpoint={base}", "each_task.rollouts=4",
        "each_task.max_ticks=15", "demos.per_task=2", "evaluation.episodes=1",
        "evaluation.control=false",
    )  # fmt: skip
    assert job.end() == 0, job.output
    report = json.loads((job.folder / "report.json").read_text(encoding="utf-8"))
    made = sorted((row["kind"], row["version"]) for row in report["lineage"])
    assert made == [("policy", 0), ("policy", 1), ("reward", 0), ("world_model", 1)]
    dreams = ReplayStore.open(job.folder / "stores" / "imagined")
    first, second = (dreams.trajectory(f"imagined-1-book-0000{k}") for k in (0, 1))
    assert len(first.actions) == 12
    assert len(first.frames) == 5
    assert not np.array_equal(first.frames[1:], second.frames[1:])
    assert all(0.0001 < v.p_yes < 0.1 for v in dreams.verdicts(reward_version=0).values())
    assert "Embedded models" not in job.output


@pytest.mark.ray
@pytest.mark.shared
def test_the_published_classes_are_all_trained_on_recordings(start, tmp_path):
    """All nine episodes: those without an instruction, which Qwen3-VL cannot judge, get one."""
    recordings = tmp_path / "recordings"
    for file in SAMPLE.glob("annotation/*/*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["texts"] = [content["texts"][0] or "Do something else"]
        named = recordings / file.relative_to(SAMPLE)
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(json.dumps(content), encoding="utf-8")
    (recordings / "videos").symlink_to(SAMPLE.resolve() / "videos")
    job = start(tmp_path / "run", *SMALLEST, "robot=recorded", f"robot.path={recordings}",
                "robot.untitled=false", "each_task.alpha=0.9")  # fmt: skip
    assert job.end() == 0, job.output
    report = json.loads((job.folder / "report.json").read_text(encoding="utf-8"))
    made = sorted((row["kind"], row["version"]) for row in report["lineage"])
    assert made == [("policy", 0), ("reward", 1), ("world_model", 1)]
    assert "no task may update the policy" in job.output
    sizes = {path.name for path in (job.folder / "checkpoints" / "reward" / "v0001").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= sizes
