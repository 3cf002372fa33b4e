"""LeRobot's own code opens what we export, and we open what it writes (LEROBOT_PYTHON)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest

from contracts.types import Provenance, Trajectory, Verdict
from envs.recorded.robot import RecordedRobot
from replay.exported import Exported, padded_actions
from replay.lerobot import LeRobotWriter

pytestmark = pytest.mark.lerobot

PEER = Path(__file__).with_name("lerobot_peer.py")
CAMERAS = [f"observation.images.{name}_left" for name in ("exterior_1", "exterior_2", "wrist")]
HEIGHT, WIDTH = 48, 80


def lerobot(command: str, root: Path, file: Path) -> None:
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(root.parent / "hf"),
        "PATH": os.environ["PATH"],
    }
    done = subprocess.run(
        [os.environ["LEROBOT_PYTHON"], PEER, command, root, file],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def pictures(count: int, seed: int) -> np.ndarray:
    """Smooth pictures that differ from row to row and view to view."""
    slope = np.linspace(0, 80, HEIGHT)[:, None, None] + np.linspace(0, 40, WIDTH)[None, :, None]
    levels = [[slope + 40 * view + 4 * row + 3 * seed for view in range(3)] for row in range(count)]
    return np.broadcast_to(levels, (count, 3, HEIGHT, WIDTH, 3)).astype(np.uint8)


def trajectory(name: str, ticks: int) -> Trajectory:
    rng = np.random.default_rng(ticks)
    return Trajectory(
        provenance=Provenance(name, "imagined", "stack", 1, 5, policy_version=2, parent="p"),
        instruction=f"do {name}",
        actions=rng.uniform(-1, 1, (ticks, 8)).astype(np.float32),
        joint_position=rng.normal(size=(ticks + 1, 7)).astype(np.float32),
        gripper_position=rng.random(ticks + 1, np.float32),
        cartesian_position=rng.normal(size=(ticks + 1, 6)).astype(np.float32),
        frames=pictures(ticks // 3 + 1, ticks),
        ending="done",
    )


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    return float(10 * np.log10(255**2 / np.mean((one.astype(float) - other.astype(float)) ** 2)))


def test_lerobot_reads_every_row_and_picture_of_an_export(tmp_path):
    made = [trajectory("a", 20), trajectory("b", 13)]
    verdict = Verdict("a", 0.9, 1.0, reward_version=4)
    writer = LeRobotWriter(tmp_path / "exported")
    for each, judged in zip(made, (verdict, None), strict=True):
        writer.add(Exported(each, judged is not None, False, judged, each.cartesian_position))
    writer.close()
    lerobot("read", tmp_path / "exported", tmp_path / "answer.npz")
    seen = np.load(tmp_path / "answer.npz")
    assert (int(seen["fps"]), int(seen["num_episodes"])) == (15, 2)
    joints = np.concatenate([each.joint_position for each in made])
    np.testing.assert_array_equal(seen["observation.state.joint_position"], joints)
    actions = np.concatenate([padded_actions(each) for each in made])
    np.testing.assert_array_equal(seen["action.joint_velocity"], actions[:, :7])
    np.testing.assert_array_equal(seen["action.gripper_position"], actions[:, 7])
    np.testing.assert_array_equal(seen["episode_index"], [0] * 21 + [1] * 14)
    assert seen["task"].tolist() == ["do a"] * 21 + ["do b"] * 14
    assert seen["is_episode_successful"].tolist() == [True] * 21 + [False] * 14
    np.testing.assert_allclose(seen["vlaw.p_yes"], [0.9] * 21 + [-1] * 14, rtol=1e-6)
    assert seen["vlaw.origin"].tolist() == ["imagined"] * 35
    exact = np.quantile(joints.astype(np.float64), 0.99, axis=0)
    np.testing.assert_allclose(seen["stats.joints.q99"], exact)
    for view, name in enumerate(CAMERAS):
        rows = [np.repeat(t.frames[:, view], 3, axis=0)[: t.num_ticks + 1] for t in made]
        expected = np.concatenate(rows)
        shown = np.moveaxis(seen[name], 1, -1)
        assert min(psnr(a, b) for a, b in zip(shown, expected, strict=True)) > 38


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """What LeRobot wrote (AV1, its default codec), and the arrays it was given."""
    folder = tmp_path_factory.mktemp("written")
    rng = np.random.default_rng(0)
    widths = {"observation.state.joint_position": 7, "observation.state.cartesian_position": 6}
    widths |= {"action.joint_velocity": 7}
    given = {k: rng.uniform(-1, 1, (2, 16, n)).astype(np.float32) for k, n in widths.items()}
    for name in ("observation.state.gripper_position", "action.gripper_position"):
        given[name] = rng.random((2, 16), np.float32)
    given["is_episode_successful"] = np.array([[True] * 16, [False] * 16])
    for view, name in enumerate(CAMERAS):
        given[name] = np.stack([pictures(16, seed)[:, view] for seed in (0, 20)])
    np.savez(folder / "given.npz", **given)
    lerobot("write", folder / "dataset", folder / "given.npz")
    return folder / "dataset", given


def test_we_read_what_lerobot_wrote(written):
    folder, given = written
    assert json.loads((folder / "meta/info.json").read_text())["codebase_version"] == "v3.0"
    robot = RecordedRobot(folder, HEIGHT, WIDTH)
    episodes = sorted(robot.episodes(), key=lambda pair: pair[0].id[-6:])
    assert robot.skipped == []
    assert [label.success for _, label in episodes] == [True, False]
    for episode, (made, _) in enumerate(episodes):
        assert made.instruction == f"do {episode}"
        for name, array in (
            ("observation.state.joint_position", made.joint_position),
            ("observation.state.cartesian_position", made.cartesian_position),
            ("observation.state.gripper_position", made.gripper_position),
        ):
            np.testing.assert_array_equal(array, given[name][episode])
        np.testing.assert_array_equal(
            made.actions[:, :7], given["action.joint_velocity"][episode, :15]
        )
        np.testing.assert_array_equal(
            made.actions[:, 7], given["action.gripper_position"][episode, :15]
        )
        for view, name in enumerate(CAMERAS):
            expected = given[name][episode, ::3]
            shown = made.frames[:, view]
            assert min(psnr(a, b) for a, b in zip(shown, expected, strict=True)) > 34
