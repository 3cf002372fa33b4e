"""One iteration of Algorithm 1 by the command line, and the same command once more."""

import json
import shutil
from pathlib import Path

import pytest

from cluster.checkpoints import checksum
from configs.robot import RobotConfig
from envs.mujoco.robot import MujocoRobot
from replay.store import ReplayStore

pytestmark = pytest.mark.ray

STAGES = [
    "demonstrations", "evaluate base", "1 collect", "1 train world model", "1 replay quality",
    "1 calibration", "1 imagine", "1 score", "1 truth", "1 train policy", "evaluate vlaw-1",
    "train control", "evaluate control",
]  # fmt: skip


@pytest.fixture
def report(undisturbed):
    return json.loads((undisturbed / "report.json").read_text(encoding="utf-8"))


def store(run: Path, name: str) -> ReplayStore:
    return ReplayStore.open(run / "stores" / name)


def test_every_stage_begins_and_ends_in_the_order_of_the_paper(undisturbed, events):
    assert [event["stage"] for event in events(undisturbed, "begin")] == STAGES
    ends = events(undisturbed, "end")
    assert [event["stage"] for event in ends] == STAGES
    assert {event["outcome"] for event in ends} == {"done"}
    done = {event["stage"]: event["done"] for event in ends}
    assert done["1 score"] == 6 + 24  # D_real too: its labels are what P('yes') is held against
    assert done["train control"] == done["1 train policy"] == 60


def test_the_stores_hold_exactly_what_was_asked_for(undisturbed):
    evaluated = [
        f"evaluation-{p}-book-000{k}" for p in ("base", "control", "vlaw-1") for k in (0, 1)
    ]
    assert sorted(store(undisturbed, "real").ids()) == [f"real-1-book-000{k}" for k in range(6)]
    assert sorted(store(undisturbed, "evaluation").ids()) == evaluated
    assert len(store(undisturbed, "demos").ids()) == 2
    assert sorted(store(undisturbed, "imagined").ids()) == [
        f"imagined-1-book-{k:05d}" for k in range(24)
    ]


def test_physics_says_of_every_imagined_trajectory_what_its_actions_do(undisturbed, report):
    """A robot that executes them itself, from its parent's seed, sees the same."""
    imagined, real = store(undisturbed, "imagined"), store(undisturbed, "real")
    told = json.loads((undisturbed / "stages" / "1 truth.json").read_text())["result"]["book"]
    judged = {name for name, verdict in imagined.verdicts().items() if not verdict.error}
    assert set(told) == judged
    robot = MujocoRobot(RobotConfig(height=24, width=40))
    for name in sorted(told)[:4]:
        dream = imagined.trajectory(name)
        robot.reset("book", real.provenance(dream.provenance.parent).seed)
        open_for = 0
        for action in dream.actions:
            robot.step(action)
            open_for = open_for + 1 if robot.privileged_success() else 0
            if open_for == 6:
                break
        assert told[name] == (open_for > 0)
    (row,) = report["truths"]
    assert row["accepted"] + row["rejected"] == len(judged)
    assert row["accepted_true"] + row["rejected_true"] == sum(told.values())


def test_every_policy_is_evaluated_from_the_same_starts(undisturbed):
    found = store(undisturbed, "evaluation")
    for k in (0, 1):
        names = [f"evaluation-{policy}-book-000{k}" for policy in ("base", "vlaw-1", "control")]
        starts = {found.trajectory(name).frames[0].tobytes() for name in names}
        assert len(starts) == 1
        assert [found.provenance(name).policy_version for name in names] == [0, 1, 9000]
    assert len({found.trajectory(i).frames[0].tobytes() for i in found.ids()}) == 2


def test_every_imagined_trajectory_has_a_story_and_a_verdict(undisturbed):
    imagined, real = store(undisturbed, "imagined"), store(undisturbed, "real")
    verdicts = imagined.verdicts(reward_version=0)
    assert sorted(verdicts) == sorted(imagined.ids())
    assert all(0.1 < v.p_yes < 0.9 and not v.error for v in verdicts.values())
    parents = [imagined.provenance(name).parent for name in imagined.ids()]
    assert {name: parents.count(name) for name in real.ids()} == dict.fromkeys(real.ids(), 4)
    for name in imagined.ids():
        dream = imagined.trajectory(name)
        story = dream.provenance
        assert (story.origin, story.policy_version, story.world_model_version) == ("imagined", 0, 1)
        assert (len(dream.actions), len(dream.frames)) == (6 * 12, 1 + 6 * 4)
        begin = real.trajectory(story.parent)
        assert dream.joint_position[0].tolist() == begin.joint_position[0].tolist()


def test_the_report_counts_what_was_played_and_imagined(undisturbed, report):
    assert (undisturbed / "report.html").stat().st_size > 10_000
    rows = [(row["stage"], row["task"], row["n"], row["control"]) for row in report["evaluations"]]
    assert rows == [
        ("base", "book", 2, False), ("vlaw-1", "book", 2, False), ("control", "book", 2, True),
    ]  # fmt: skip
    labels = [
        store(undisturbed, "evaluation").label(f"evaluation-base-book-000{k}") for k in (0, 1)
    ]
    assert report["evaluations"][0]["successes"] == sum(label.success for label in labels)
    (imagined,) = report["imagined"]
    counts = ("requested", "accepted", "rejected", "errors", "real_episodes")
    assert [imagined[key] for key in counts] == [24, 24, 0, 0, 6]


def test_the_lineage_tells_what_lies_in_the_checkpoints(undisturbed, report):
    versions = {(row["kind"], row["version"]): row for row in report["lineage"]}
    assert sorted(versions) == [
        ("policy", 0), ("policy", 1), ("policy", 9000), ("reward", 0), ("world_model", 1),
    ]  # fmt: skip
    for (kind, version), row in versions.items():
        folder = undisturbed / "checkpoints" / kind / f"v{version:04d}"
        assert row["checksum"] == checksum(folder)
    assert len({row["checksum"] for row in versions.values()}) == 5
    assert versions["policy", 1]["parent"] == versions["policy", 9000]["parent"] == "policy v0"
    assert versions["policy", 1]["data"]["imagined successes"] == 24
    assert versions["world_model", 1]["data"] == {"real episodes": 6, "D_DROID episodes": 2}


def test_the_same_command_again_has_nothing_to_do(undisturbed, start, loop, events, tmp_path):
    """Nor where the folder was moved to."""
    moved = shutil.copytree(undisturbed, tmp_path / "moved")
    before = {path: path.stat().st_mtime_ns for path in (moved / "stages").iterdir()}
    again = start(moved, *loop)
    assert again.end() == 0, again.output
    assert [event["stage"] for event in events(moved, "begin")] == STAGES
    assert {p: p.stat().st_mtime_ns for p in (moved / "stages").iterdir()} == before
    assert again.vanish() == {}
    assert [path.name for path in again.log.parent.iterdir()] == ["output.txt"]  # no stray logs


def test_every_stage_was_expected_and_the_report_says_what_it_took(undisturbed, report):
    rows = {row["stage"]: row for row in report["costs"]}
    expected = {name for name, row in rows.items() if row["expected"]}
    assert expected == {*STAGES, "1 train reward"} - {"1 replay quality"}
    for name in STAGES:
        assert rows[name]["spent"]["seconds"] > 0, name
    assert rows["1 train reward"]["spent"] is None  # the labels of D_real show one outcome only
    grown = sum(row["spent"]["disk_bytes"] for row in rows.values() if row["spent"])
    stored = sum(p.stat().st_size for p in (undisturbed / "stores").rglob("*") if p.is_file())
    assert grown > stored  # checkpoints, too
    assert 'http-equiv="refresh"' not in (undisturbed / "report.html").read_text("utf-8")
