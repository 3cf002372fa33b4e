"""``job=replay_eval`` on the evaluation episodes of a run, and what a second call repeats."""

import json

import pytest

pytestmark = [pytest.mark.long, pytest.mark.ray]


@pytest.fixture(scope="module")
def command(undisturbed, tiny, tmp_path_factory):
    """Two world models of the run side by side: its own and one with random weights."""
    versions = undisturbed / "checkpoints"
    models = f"{{own: {versions / 'world_model' / 'v0001'}, random: scratch}}"
    return tmp_path_factory.mktemp("judged") / "out", [
        *tiny, "job=replay_eval", "task=book", f"replay_eval.run={undisturbed}",
        f"replay_eval.models={models}", f"policy.checkpoint={versions / 'policy' / 'v0000'}",
        f"reward.checkpoint={versions / 'reward' / 'v0000'}", "replay_eval.seconds=1.2",
        "replay_eval.clips=3", "replay_eval.futures=2", "replay_eval.workers=2",
        "replay_eval.batch=2",
    ]  # fmt: skip


def test_every_number_is_there_and_the_same_command_repeats_no_replay(start, command):
    folder, arguments = command
    job = start(folder, *arguments)
    assert job.end() == 0, job.output
    report = json.loads((folder / "replay.json").read_text())
    variants = {one["name"]: one for one in report["variants"]}
    assert list(variants) == ["real", "copy first", "copy last", "own", "random"]
    assert variants["own"]["futures"]["judged"] == 2
    assert "random weights" in variants["random"]["note"]
    assert len(variants["own"]["checksum"]) == 64
    rows = {(row["variant"], row["view"]): row for row in report["table"]}
    assert rows["own", "all"]["clips"] == 3
    assert rows["own", "all"]["fid"] is None
    assert 0 < rows["random", "all"]["psnr"]["value"] < rows["copy last", "all"]["psnr"]["value"]
    assert set(report["unavailable"]) == {"LPIPS", "FID", "FVD"}
    assert {row["truth"] for row in report["success"]} == {"label", "judge"}
    made = {path: path.stat().st_mtime_ns for path in folder.glob("replays/*/*.npz")}
    next(iter(sorted(made))).unlink()

    again = start(folder, *arguments)
    assert again.end() == 0, again.output
    now = {path: path.stat().st_mtime_ns for path in folder.glob("replays/*/*.npz")}
    assert now.keys() == made.keys()
    assert sum(now[path] != made[path] for path in made) == 1
    repeated = json.loads((folder / "replay.json").read_text())
    assert repeated["table"] == report["table"]
    assert repeated["items"] == report["items"]
