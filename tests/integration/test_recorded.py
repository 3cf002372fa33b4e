"""The loop on real DROID episodes: nothing moves, everything is trained and imagined."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from replay.store import ReplayStore

pytestmark = [pytest.mark.ray, pytest.mark.shared]

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))


@pytest.fixture(scope="module")
def job(start, tiny, tmp_path_factory):
    started = start(
        tmp_path_factory.mktemp("recorded") / "run",
        *tiny, "robot=recorded", f"robot.path={SAMPLE}", "policy.train.steps=4",
        "method.iterations=1", "each_task.imagine=2", "each_task.alpha=0.1",
        "imagination.max_chunks=2",
    )  # fmt: skip
    assert started.end() == 0, started.output
    return started


def annotations(split: str) -> dict[str, dict]:
    """What the files say, by the ids that their episodes get here."""
    files = (SAMPLE / "annotation" / split).glob("*.json")
    return {f"recorded-{split}-{f.stem.zfill(4)}": json.loads(f.read_text()) for f in files}


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


def test_recordings_are_d_real_and_the_held_out_ones_judge_the_world_model(job):
    real = ReplayStore.open(job.folder / "stores" / "real")
    said = annotations("train")
    assert sorted(real.ids()) == sorted(said)
    assert {name: real.label(name).success for name in said} == {
        name: bool(content["success"]) for name, content in said.items()
    }
    held_out = ReplayStore.open(job.folder / "stores" / "evaluation")
    assert sorted(held_out.ids()) == sorted(annotations("val"))
    (replay,) = json.loads((job.folder / "report.json").read_text())["replays"]
    assert replay["episodes"] == 2


def test_two_trajectories_of_every_instruction_begin_where_a_recording_began(job):
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
