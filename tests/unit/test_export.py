"""Buffers as LeRobot and Ctrl-World datasets: what leaves is what was stored, and who made it."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.exporting import export, statistics
from configs.run import RunConfig, TaskOverrides
from contracts.kinematics import flange_pose
from contracts.seeds import in_share
from contracts.types import Label, Provenance, Trajectory, Verdict
from envs.recorded.robot import Choice, RecordedRobot
from replay.exported import Exported, joint_target, padded_actions
from replay.lerobot import LeRobotSizes, LeRobotWriter
from replay.store import ReplayStore

HEIGHT, WIDTH = 32, 48
STORED = ("actions", "joint_position", "gripper_position", "cartesian_position")


def trajectory(name: str, ticks: int, **provenance: object) -> Trajectory:
    """Random rows; smooth pictures that tell their view and frame."""
    rng = np.random.default_rng(ticks)
    source = {"origin": "real", "task": "stack", "iteration": 1, "policy_version": 3} | provenance
    slope = np.linspace(0, 60, HEIGHT)[:, None, None] + np.linspace(0, 60, WIDTH)[None, :, None]
    frames = [[slope + 40 * view + 5 * k for view in range(3)] for k in range(ticks // 3 + 1)]
    return Trajectory(
        provenance=Provenance(trajectory_id=name, seed=ticks, **source),
        instruction=f"do {name[0]}",
        actions=rng.uniform(-1.2, 1.2, (ticks, 8)).astype(np.float32),
        joint_position=rng.normal(size=(ticks + 1, 7)).astype(np.float32),
        gripper_position=rng.random(ticks + 1, np.float32),
        cartesian_position=rng.normal(size=(ticks + 1, 6)).astype(np.float32),
        frames=np.broadcast_to(frames, (ticks // 3 + 1, 3, HEIGHT, WIDTH, 3)).astype(np.uint8),
        ending="done",
    )


REAL = [trajectory("a1", 12), trajectory("a2", 7), trajectory("b1", 9)]
DREAM = {"origin": "imagined", "world_model_version": 2, "parent": "a1", "parent_frame": 1}
DREAMS = [trajectory(f"x{k}", 8 + k, **DREAM) for k in range(4)]
VERDICTS = [
    Verdict("x0", 0.9, 1.0, reward_version=1),
    Verdict("x1", 0.7, 1.0, reward_version=1),
    Verdict("x2", float("nan"), float("nan"), 1, error="out of memory"),
]


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a run with alpha 0.8, in which x0 alone is accepted and x3 was not judged."""
    folder = tmp_path / "run"
    settings = {"each_task": {"alpha": 0.8}, "task": {"stack": {"alpha": None}}}
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"settings": settings}))
    real = ReplayStore.create_or_open(folder / "stores/real")
    for stored, success in zip(REAL, (True, False, None), strict=True):
        label = None if success is None else Label(stored.id, success, "human")
        real.add(stored, label)
    imagined = ReplayStore.create_or_open(folder / "stores/imagined")
    for stored in DREAMS:
        imagined.add(stored, None)
    imagined.add_verdicts(VERDICTS)
    for store in (real, imagined):
        store.close()
    return folder


def config(folder: Path, job: str = "export", **changes: object) -> RunConfig:
    made = RunConfig(job=job, out=str(folder), task={"stack": TaskOverrides()})
    made.export.to = "somewhere"
    for name, value in changes.items():
        setattr(made.export, name, value)
    return made


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(float) - other.astype(float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def check_round_trip(folder: Path, originals: list[Trajectory]) -> None:
    episodes = list(RecordedRobot(folder, HEIGHT, WIDTH).episodes())
    found = {int(made.id.rsplit("-", 1)[1]): (made, label) for made, label in episodes}
    assert sorted(found) == list(range(len(originals)))
    for number, original in enumerate(originals):
        made, _ = found[number]
        for name in STORED:
            np.testing.assert_array_equal(getattr(made, name), getattr(original, name))
        assert made.instruction == original.instruction
        assert psnr(made.frames, original.frames) > 38
    labels = {number: label.success for number, (_, label) in found.items() if label}
    assert labels == {0: True, 1: False}  # no model's verdict comes back as a label


@pytest.mark.parametrize("form", ["lerobot", "ctrl_world"])
def test_what_was_exported_is_read_back(run, tmp_path, form):
    export(config(run, format=form), run, tmp_path / "out")
    check_round_trip(tmp_path / "out", REAL + DREAMS)
    assert not (tmp_path / "out.partial").exists()


def test_a_lerobot_dataset_says_who_made_each_episode(run, tmp_path):
    export(config(run), run, tmp_path / "out")
    (file,) = (tmp_path / "out/data").glob("*/*.parquet")
    rows = pq.read_table(file).to_pylist()
    first = {row["vlaw.trajectory_id"]: row for row in rows if row["is_first"]}
    assert list(first) == [t.id for t in REAL + DREAMS]

    def column(name: str) -> list:
        return [row[name] for row in first.values()]

    assert column("is_episode_successful") == [True, False, False, True, False, False, False]
    assert column("vlaw.labelled") == [True, True] + 5 * [False]
    assert column("vlaw.origin") == 3 * ["real"] + 4 * ["imagined"]
    assert column("vlaw.policy_version") == 7 * [3]
    assert column("vlaw.world_model_version") == 3 * [-1] + 4 * [2]
    assert column("vlaw.parent") == 3 * [""] + 4 * ["a1"]
    np.testing.assert_allclose(column("vlaw.p_yes"), 3 * [-1] + [0.9, 0.7, -1, -1], rtol=1e-6)
    assert column("vlaw.reward_version") == 3 * [-1] + [1, 1, -1, -1]
    assert column("task_category") == 7 * ["stack"]
    last = [row for row in rows if row["is_last"]]
    assert [row["reward"] for row in last] == column("is_episode_successful")
    assert [row["frame_index"] for row in last] == [t.num_ticks for t in REAL + DREAMS]
    assert [row["index"] for row in rows] == list(range(len(rows)))
    assert {row["timestamp"] for row in rows if row["frame_index"] == 3} == {np.float32(0.2)}


def test_derived_columns_follow_droid_s_law():
    """target = joints + 0.2 velocity; beyond 1 the whole vector is scaled; the last row holds."""
    made = trajectory("a", 3)
    made.actions[0, :7] = [0.5, -1, 0, 0, 0, 0, 0]
    made.actions[1, :7] = [2, 1, 0, 0, 0, 0, 0]
    moved = joint_target(made) - made.joint_position
    np.testing.assert_allclose(moved[0, :3], [0.1, -0.2, 0], atol=1e-6)
    np.testing.assert_allclose(moved[1, :3], [0.2, 0.1, 0], atol=1e-6)
    np.testing.assert_array_equal(moved[3], 0)
    padded = padded_actions(made)
    np.testing.assert_array_equal(padded[3], [0] * 7 + [made.actions[2, 7]])
    still = trajectory("b", 0)
    np.testing.assert_array_equal(padded_actions(still), [[0] * 7 + [still.gripper_position[0]]])


def test_only_successes_leaves_what_the_policy_trains_on(run, tmp_path):
    export(config(run, only_successes=True, format="ctrl_world"), run, tmp_path / "out")
    said = [json.loads(f.read_text()) for f in sorted((tmp_path / "out").glob("annotation/*/*"))]
    assert sorted(content["vlaw.trajectory_id"] for content in said) == ["a1", "x0"]


def test_ctrl_world_s_files_hold_what_its_scripts_ask_for(run, tmp_path):
    out = tmp_path / "out"
    export(config(run, format="ctrl_world", holdout=0.5), run, out)
    stored = REAL + DREAMS
    sides = ["val" if in_share(0.5, "export", t.id) else "train" for t in stored]
    assert {"train", "val"} == set(sides)
    wanted = {side: set() for side in sides}
    for number, (original, side) in enumerate(zip(stored, sides, strict=True)):
        said = json.loads((out / f"annotation/{side}/{number}.json").read_text())
        count = original.num_ticks // 3 + 1
        assert (said["video_length"], said["raw_length"]) == (count, original.num_ticks + 1)
        np.testing.assert_array_equal(np.float32(said["states"]), original.poses)
        np.testing.assert_array_equal(
            np.float32(said["joints"])[:, :7], original.joint_position[::3]
        )
        pose = flange_pose(joint_target(original))
        np.testing.assert_allclose(said["action.cartesian_position"], pose, atol=1e-5)
        assert said["videos"][2]["video_path"] == f"videos/{side}/{number}/2.mp4"
        wanted[side] |= {(number, k) for k in range(count - 4)}
    for side, expected in wanted.items():
        samples = json.loads((out / f"{side}_sample.json").read_text())
        assert {(s["episode_id"], s["frame_ids"][0]) for s in samples} == expected
    states = np.concatenate([t.poses for t in stored]).astype(np.float64)
    stat = json.loads((out / "stat.json").read_text())
    expected = np.quantile(states, [0.01, 0.99], axis=0)
    np.testing.assert_allclose([stat["state_01"], stat["state_99"]], expected, rtol=1e-12)


def test_a_full_file_is_followed_by_the_next(tmp_path):
    """Sizes of zero megabytes: every episode begins new files."""
    writer = LeRobotWriter(tmp_path / "out", LeRobotSizes(data_mb=0, video_mb=0))
    for made in REAL:
        pose = np.zeros((made.num_ticks + 1, 6), np.float32)
        writer.add(Exported(made, made is REAL[0], made is not REAL[2], None, pose))
    writer.close()
    assert len(list((tmp_path / "out/data").glob("*/*.parquet"))) == 3
    assert len(list((tmp_path / "out/videos").glob("*/*/*.mp4"))) == 9
    check_round_trip(tmp_path / "out", REAL)


def test_stats_are_numpy_s(run, tmp_path):
    export(config(run), run, tmp_path / "out")
    stats = json.loads((tmp_path / "out/meta/stats.json").read_text())
    joints = np.concatenate([t.joint_position for t in REAL + DREAMS]).astype(np.float64)
    found = stats["observation.state.joint_position"]
    for name, expected in (
        ("min", joints.min(axis=0)),
        ("mean", joints.mean(axis=0)),
        ("std", joints.std(axis=0)),
        ("q01", np.quantile(joints, 0.01, axis=0)),
        ("q90", np.quantile(joints, 0.90, axis=0)),
    ):
        np.testing.assert_allclose(found[name], expected, rtol=1e-9, atol=1e-12)
    assert found["count"] == [len(joints)]
    reader = ReplayStore.open(run / "stores/real"), ReplayStore.open(run / "stores/imagined")
    pictures = [s.trajectory(name).frames[:, 1] for s in reader for name in s.ids()]
    pixels = np.concatenate([p.reshape(-1, 3) for p in pictures]) / 255
    image = stats["observation.images.exterior_2_left"]
    np.testing.assert_allclose(np.ravel(image["mean"]), pixels.mean(axis=0), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(image["std"]), pixels.std(axis=0), rtol=1e-9)
    np.testing.assert_allclose(np.ravel(image["max"]), pixels.max(axis=0))


def test_statistics_of_a_buffer(run, tmp_path):
    statistics(config(run, "statistics", stores=["real"]), run, tmp_path / "stats")
    norm = json.loads((tmp_path / "stats/norm_stats.json").read_text())["norm_stats"]
    actions = np.concatenate([t.actions for t in REAL]).astype(np.float64)
    np.testing.assert_allclose(norm["actions"]["q99"], np.quantile(actions, 0.99, axis=0))
    state = np.concatenate([t.joint_position[:-1] for t in REAL]).astype(np.float64)
    np.testing.assert_allclose(norm["state"]["q01"][:7], np.quantile(state, 0.01, axis=0))
    states = np.concatenate([t.poses for t in REAL]).astype(np.float64)
    stat = json.loads((tmp_path / "stats/stat.json").read_text())
    np.testing.assert_allclose(stat["state_99"], np.quantile(states, 0.99, axis=0))


def test_errors_name_the_flag_and_leave_nothing_behind(run, tmp_path):
    (tmp_path / "there").mkdir()
    for changes, target, message in (
        ({}, "there", r"export.to=somewhere exists"),
        ({"to": ""}, "out", r"job=export needs export.to=<folder"),
        ({"stores": ["demos"]}, "out", r"is no run with a store at .*stores/demos"),
    ):
        with pytest.raises(ValueError, match=message):
            export(config(run, **changes), run, tmp_path / target)
    ReplayStore.create_or_open(run / "stores/demos").close()
    with pytest.raises(ValueError, match=r"zero trajectories to write"):
        export(config(run, stores=["demos"]), run, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    export(config(run), run, tmp_path / "out")  # what the failed call left is replaced
    assert len(RecordedRobot(tmp_path / "out", HEIGHT, WIDTH, Choice())) == 7


def test_frames_of_two_sizes_are_refused(tmp_path):
    writer = LeRobotWriter(tmp_path / "out")
    small, pose = REAL[0], np.zeros((13, 6), np.float32)
    writer.add(Exported(small, True, True, None, pose))
    large = Trajectory(
        small.provenance, "x", small.actions, small.joint_position, small.gripper_position,
        small.cartesian_position, np.zeros((5, 3, 64, 96, 3), np.uint8), "done",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"frames of 64 x 96, the ones before it 32 x 48"):
        writer.add(Exported(large, True, True, None, pose))
