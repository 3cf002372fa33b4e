"""The loop on real DROID episodes through pi0.5, Ctrl-World and Qwen3-VL at their smallest:
nothing moves, everything is trained and imagined."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from replay.store import ReplayStore

pytestmark = [pytest.mark.long, pytest.mark.ray, pytest.mark.shared]

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """All nine episodes. Those without an instruction, which Qwen3-VL cannot judge, get one."""
    folder = tmp_path_factory.mktemp("recordings")
    for file in SAMPLE.glob("annotation/*/*.json"):
        content = json.loads(file.read_text(encoding="utf-8"))
        content["texts"] = [content["texts"][0] or "Do something else"]
        named = folder / file.relative_to(SAMPLE)
        named.parent.mkdir(parents=True, exist_ok=True)
        named.write_text(json.dumps(content), encoding="utf-8")
    (folder / "videos").symlink_to(SAMPLE.resolve() / "videos")
    return folder


@pytest.fixture(scope="module")
def job(start, smallest, recordings, tmp_path_factory):
    """The published classes are all trained on the recordings, and dream of them."""
    started = start(
        tmp_path_factory.mktemp("recorded") / "run",
        *smallest, "robot=recorded", f"robot.path={recordings}", "robot.untitled=false",
    )  # fmt: skip
    assert started.end() == 0, started.output
    return started


@pytest.fixture(scope="module")
def annotations(recordings):
    """What the files say, by the ids that their episodes get here."""

    def read(split: str) -> dict[str, dict]:
        files = (recordings / "annotation" / split).glob("*.json")
        return {f"recorded-{split}-{f.stem.zfill(4)}": json.loads(f.read_text()) for f in files}

    return read


def test_the_report_says_that_nothing_was_evaluated(job):
    report = json.loads((job.folder / "report.json").read_text())
    assert report["evaluations"] == []
    assert (
        "robot=recorded: nothing moved, so no policy was evaluated on a robot." in report["notes"]
    )
    assert "nothing moved" in job.output
    assert "nothing moved" in (job.folder / "report.html").read_text()
    kinds = [(row["kind"], row["version"]) for row in report["lineage"]]
    assert kinds == [("policy", 0), ("policy", 1), ("reward", 1), ("world_model", 1)]


def test_recordings_are_d_real_and_the_held_out_ones_judge_the_world_model(job, annotations):
    real = ReplayStore.open(job.folder / "stores" / "real")
    said = annotations("train")
    assert sorted(real.ids()) == sorted(said)
    assert {name: real.label(name).success for name in said} == {
        name: bool(content["success"]) for name, content in said.items()
    }
    held_out = ReplayStore.open(job.folder / "stores" / "evaluation")
    assert sorted(held_out.ids()) == sorted(annotations("val"))
    (replay,) = json.loads((job.folder / "report.json").read_text())["replays"]
    assert replay["episodes"] == 1  # as world_model.replay_episodes says


def test_two_trajectories_of_every_instruction_begin_where_a_recording_began(job, annotations):
    imagined = ReplayStore.open(job.folder / "stores" / "imagined")
    real = ReplayStore.open(job.folder / "stores" / "real")
    said = annotations("train")
    instructions = {content["texts"][0] for content in said.values()}
    dreams = [imagined.trajectory(name) for name in imagined.ids()]
    assert sorted(dream.instruction for dream in dreams) == sorted(2 * list(instructions))
    for dream in dreams:
        parent = dream.provenance.parent
        assert said[parent]["texts"][0] == dream.instruction
        joints = np.float32(said[parent]["observation.state.joint_position"][0])
        np.testing.assert_array_equal(dream.joint_position[0], joints)
        first = real.trajectory(parent).frames[0].astype(int)
        others = [real.trajectory(i).frames[0].astype(int) for i in said if i != parent]
        distance = np.abs(dream.frames[0] - first).mean()
        assert distance < 2  # levels: stored as JPEG once more
        assert distance < min(np.abs(dream.frames[0] - other).mean() for other in others)


def test_what_is_imagined_and_judged_comes_from_the_published_classes(job):
    dreams = ReplayStore.open(job.folder / "stores" / "imagined")
    first, second = (dreams.trajectory(name) for name in dreams.ids()[:2])
    assert len(first.actions) == 12
    assert len(first.frames) == 5
    assert not np.array_equal(first.frames[1:], second.frames[1:])
    assert all(0.0001 < v.p_yes < 0.1 for v in dreams.verdicts(reward_version=1).values())
    sizes = {path.name for path in (job.folder / "checkpoints" / "reward" / "v0001").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= sizes
