"""Recorded episodes: rows, pictures and labels as the files have them, and bad files named."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from envs.recorded.annotation import read_annotation
from envs.recorded.episode import task_name
from envs.recorded.robot import Choice, RecordedRobot, read_episodes
from envs.recorded.video import read_video

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))


def level(view: int, frame: int) -> int:
    """Grey of a synthetic frame: no two of an episode are closer than 10 levels."""
    return 20 + 70 * view + 10 * frame


def write_video(file: Path, levels: list[int], size: tuple[int, int] = (32, 64)) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=5)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for grey in levels:
            frame = av.VideoFrame.from_ndarray(np.full((*size, 3), grey, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def content(rows: int, **changes: object) -> dict[str, object]:
    """An annotation whose every number tells its row and column; None removes a key."""
    table = {
        "texts": ["Stack the red cube!"],
        "success": 1,
        "observation.state.joint_position": [[k + c / 10 for c in range(7)] for k in range(rows)],
        "observation.state.gripper_position": [k / 100 for k in range(rows)],
        "observation.state.cartesian_position": [
            [-k - c / 10 for c in range(6)] for k in range(rows)
        ],
        "action.joint_velocity": [[100 + k + c / 10 for c in range(7)] for k in range(rows)],
        "action.gripper_position": [k / 50 for k in range(rows)],
    }
    return {key: value for key, value in (table | changes).items() if value is not None}


def write_episode(
    folder: Path, name: str, rows: int, frames: tuple[int, int, int], **changes: object
) -> None:
    split, episode = name.split("/")
    file = folder / "annotation" / split / f"{episode}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content(rows, **changes)))
    for view, count in enumerate(frames):
        video = folder / "videos" / split / episode / f"{view}.mp4"
        write_video(video, [level(view, k) for k in range(count)])


def test_an_episode_is_read_as_it_was_written(tmp_path):
    write_episode(tmp_path, "train/3", 11, (4, 4, 4))
    ((trajectory, label),) = read_episodes(tmp_path, 16, 32)
    assert trajectory.id == "recorded-train-0003"
    assert trajectory.provenance.task == "stack_the_red_cube"
    assert (trajectory.instruction, trajectory.ending) == ("Stack the red cube!", "done")
    assert (label.success, label.source, label.trajectory_id) == (True, "recording", trajectory.id)
    assert trajectory.num_ticks == 10
    np.testing.assert_allclose(trajectory.actions[9], [109 + c / 10 for c in range(7)] + [9 / 50])
    np.testing.assert_allclose(trajectory.joint_position[10], [10 + c / 10 for c in range(7)])
    np.testing.assert_allclose(trajectory.gripper_position, np.arange(11) / 100)
    np.testing.assert_allclose(trajectory.cartesian_position[4], [-4 - c / 10 for c in range(6)])
    expected = [[level(view, frame) for view in range(3)] for frame in range(4)]
    seen = trajectory.frames.astype(int)
    assert seen.shape == (4, 3, 16, 32, 3)
    assert np.abs(seen - np.array(expected)[:, :, None, None, None]).max() <= 4  # h264 of a plane


@pytest.mark.parametrize(
    ("rows", "frames", "kept_rows", "kept_frames"),
    [
        (10, (4, 4, 4), 10, 4),  # 9 ticks: frames at ticks 0, 3, 6, 9
        (12, (4, 4, 4), 12, 4),  # tick 11 comes before the next frame
        (13, (5, 5, 5), 13, 5),
        (12, (5, 5, 5), 12, 4),  # one frame too many, as in droid_new_setup's 0013
        (13, (5, 4, 5), 12, 4),  # one view lost its last frame: the rows behind it go, too
        (1, (1, 1, 1), 1, 1),
    ],
)
def test_rows_and_frames_are_trimmed_together(tmp_path, rows, frames, kept_rows, kept_frames):
    write_episode(tmp_path, "val/0", rows, frames)
    ((trajectory, _),) = read_episodes(tmp_path, 16, 32)
    assert len(trajectory.joint_position) == len(trajectory.actions) + 1 == kept_rows
    assert len(trajectory.frames) == kept_frames


def test_an_episode_with_5_hz_states_alone_is_interpolated_and_says_so(tmp_path):
    """Two frames, 0.2 s apart; the second turn angle goes from 3.0 to -3.0 through pi."""
    rows = {key: None for key in content(1) if key.startswith(("observation", "action"))}
    states = [[0.0, 3.0, 6.0, 3.0, 0.0, -1.0, 0.0], [0.3, 0.0, 6.0, -3.0, 0.3, -1.0, 0.6]]
    joints = [[0.0] * 8, [0.6, -0.3, 0, 0, 0, 0, 0.9, 0.6]]
    write_episode(tmp_path, "val/2", 1, (2, 2, 2), states=states, joints=joints, **rows)
    robot = RecordedRobot(tmp_path, 16, 32)
    ((trajectory, _),) = robot.episodes()
    (note,) = robot.notes
    assert "5 Hz without commands" in note
    pose = trajectory.cartesian_position
    np.testing.assert_allclose(pose[[0, 3]], [row[:6] for row in states], atol=1e-6)
    turned = 2 * np.pi - 6.0
    np.testing.assert_allclose(pose[1], [0.1, 2, 6, 3 + turned / 3, 0.1, -1], atol=1e-6)
    np.testing.assert_allclose(pose[2, 3], 3 + 2 * turned / 3 - 2 * np.pi, atol=1e-6)
    np.testing.assert_allclose(
        trajectory.joint_position[1], [0.2, -0.1, 0, 0, 0, 0, 0.3], atol=1e-6
    )
    np.testing.assert_allclose(trajectory.gripper_position, [0, 0.2, 0.4, 0.6], atol=1e-6)
    wanted = [[1.0, -0.5, 0, 0, 0, 0, 1.5, grip] for grip in (0.2, 0.4, 0.6)]
    np.testing.assert_allclose(trajectory.actions, wanted, atol=1e-5)


@pytest.mark.shared
def test_interpolated_states_of_real_episodes_are_near_the_recorded_ones(tmp_path):
    wholes = {file: json.loads(file.read_text()) for file in SAMPLE.glob("annotation/*/*.json")}
    wholes = {file: whole for file, whole in wholes.items() if "joints" in whole}
    assert wholes  # the sample's val episodes
    for file, whole in wholes.items():
        known = {k: v for k, v in whole.items() if not k.startswith(("observation", "action"))}
        stripped = tmp_path / "annotation" / file.parent.name / file.name
        stripped.parent.mkdir(parents=True, exist_ok=True)
        stripped.write_text(json.dumps(known))
        ours, theirs = read_annotation(stripped), read_annotation(file)
        rows = min(len(ours.actions), len(theirs.actions))
        np.testing.assert_array_equal(
            ours.cartesian_position[:rows:3], theirs.cartesian_position[:rows:3]
        )
        away = np.abs(ours.joint_position[:rows] - theirs.joint_position[:rows])
        assert np.mean(away) < 0.002  # rad; an arm moves ten times as far in a tick
        assert not RecordedRobot(SAMPLE, 16, 32).notes


def test_bad_episodes_are_named_and_the_others_read(tmp_path):
    for episode in range(8):
        write_episode(tmp_path, f"train/{episode}", 7, (3, 3, 3))
    annotation, videos = tmp_path / "annotation/train", tmp_path / "videos/train"
    (annotation / "0.json").write_text('{"texts": [')
    (annotation / "1.json").write_text(json.dumps(content(7, **{"action.joint_velocity": None})))
    (annotation / "2.json").write_text(
        json.dumps(content(7, **{"action.gripper_position": [0, 0]}))
    )
    (videos / "3/1.mp4").unlink()
    (videos / "4/2.mp4").write_bytes((videos / "4/2.mp4").read_bytes()[:400])
    write_video(videos / "5/0.mp4", [0])
    (annotation / "6.json").write_text(
        json.dumps(content(7, **{"action.gripper_position": [0.0] * 6 + [float("nan")]}))
    )
    robot = RecordedRobot(tmp_path, 16, 32)
    for _ in range(2):  # reading again does not report twice
        assert [trajectory.id for trajectory, _ in robot.episodes()] == ["recorded-train-0007"]
        reasons = {item.episode: item.reason for item in robot.skipped}
        assert [item.episode for item in robot.skipped] == [f"train/{k}" for k in range(7)]
    assert f"{annotation / '0.json'} is no readable json" in reasons["train/0"]
    assert "no 15 Hz rows: action.joint_velocity missing" in reasons["train/1"]
    assert "rows disagree in number" in reasons["train/2"]
    assert f"{videos / '3/1.mp4'} is no readable video" in reasons["train/3"]
    assert f"{videos / '4/2.mp4'} is no readable video" in reasons["train/4"]
    assert f"{videos / '5/0.mp4'} has 1 frames, its episode's rows ask for 3" in reasons["train/5"]
    assert "action.gripper_position has numbers that are not finite" in reasons["train/6"]


def test_a_folder_without_one_usable_episode_is_an_error(tmp_path):
    frame_rate_only = {key: None for key in content(1) if "." in key}
    write_episode(tmp_path, "val/0002", 7, (3, 3, 3), **frame_rate_only)
    with pytest.raises(ValueError, match=r"no usable episode; expected 15 Hz[^:]*1 skipped") as e:
        list(read_episodes(tmp_path, 16, 32))
    assert str(tmp_path) in str(e.value)
    assert "val/0002" in str(e.value)


@pytest.mark.parametrize("split", ["", "test"])
def test_a_folder_without_annotations_is_refused_at_once(tmp_path, split):
    with pytest.raises(ValueError, match=r"expected annotation/ and videos/ in it"):
        read_episodes(tmp_path, 16, 32, split)


def test_splits_and_numbers_order_the_episodes(tmp_path):
    for name in ("val/2", "train/10", "train/9", "train/100"):
        write_episode(tmp_path, name, 1, (1, 1, 1))
    robot = RecordedRobot(tmp_path, 16, 32)
    ids = [trajectory.id for trajectory, _ in robot.episodes()]
    assert ids == [f"recorded-{n}" for n in ("train-0009", "train-0010", "train-0100", "val-0002")]
    assert robot.tasks() == {"stack_the_red_cube": ids}
    assert RecordedRobot(tmp_path, 16, 32, Choice("val")).tasks() == {"stack_the_red_cube": ids[3:]}


@pytest.mark.parametrize("texts", [None, [], [""], ["  "]])
def test_an_episode_without_an_instruction_is_untitled(tmp_path, texts):
    write_episode(tmp_path, "train/0", 4, (2, 2, 2), texts=texts, success=None)
    ((trajectory, label),) = read_episodes(tmp_path, 16, 32)
    assert (trajectory.instruction, trajectory.provenance.task, label) == ("", "untitled", None)


def test_videos_may_lie_where_the_annotation_says(tmp_path):
    named = [{"video_path": f"elsewhere/{view}.mp4"} for view in range(3)]
    write_episode(tmp_path, "train/0", 1, (1, 1, 1), videos=named)
    (tmp_path / "videos/train/0").rename(tmp_path / "elsewhere")
    ((trajectory, _),) = read_episodes(tmp_path, 16, 32)
    assert abs(int(trajectory.frames[0, 2, 0, 0, 0]) - level(2, 0)) <= 4
    for bad, message in (([{"path": "x"}] * 3, "without a video_path"), (named[:2], "2 videos")):
        write_episode(tmp_path, "train/0", 1, (1, 1, 1), videos=bad)
        with pytest.raises(ValueError, match=message):
            read_annotation(tmp_path / "annotation/train/0.json")


def test_task_names():
    assert task_name("Put the  BLUE block, in (the) bowl.") == "put_the_blue_block_in_the_bowl"
    assert task_name("Würfel stapeln") == "würfel_stapeln"
    assert task_name("?!") == "untitled"


def real_annotations() -> list[Path]:
    """Of any folder in this layout; those with 15 Hz rows."""
    files = sorted(SAMPLE.glob("annotation/*/*.json"))
    return [file for file in files if "action.joint_velocity" in json.loads(file.read_text())]


@pytest.mark.shared
def test_real_episodes_agree_with_their_annotations():
    """``states`` is Ctrl-World's own 5 Hz copy of pose and gripper, made when it was recorded."""
    read = {t.id: (t, label) for t, label in RecordedRobot(SAMPLE, 24, 40).episodes()}
    files = real_annotations()
    assert len(read) == len(files) > 0
    for file in files:
        said = json.loads(file.read_text())
        trajectory, label = read[f"recorded-{file.parent.name}-{file.stem.zfill(4)}"]
        assert len(trajectory.frames) == said["video_length"]
        assert trajectory.num_ticks == said["raw_length"] - 1
        np.testing.assert_array_equal(trajectory.poses, np.array(said["states"], np.float32))
        assert label.success == bool(said["success"])
        assert trajectory.instruction == said["texts"][0]
        assert np.abs(trajectory.actions[:, :7]).max() <= 1  # DROID clips joint velocities
        assert 0 <= trajectory.actions[:, 7].min() <= trajectory.actions[:, 7].max() <= 1


@pytest.mark.shared
def test_real_actions_move_the_joints_of_their_own_row():
    """A joint velocity of 1 asks for 0.2 rad per tick; the arm follows within one or two ticks, so
    row k correlates best with the motion just behind it, not with motion that came before."""
    for file in real_annotations():
        annotation = read_annotation(file)
        asked = annotation.actions[:-1, :7].ravel()
        moved = np.diff(annotation.joint_position, axis=0)
        behind = np.corrcoef(asked[:-7], moved[1:].ravel())[0, 1]
        before = np.corrcoef(asked[14:], moved[:-2].ravel())[0, 1]
        assert behind > max(0.85, before)


@pytest.mark.shared
def test_real_pictures_are_block_means_of_the_video():
    file = next(iter(sorted(SAMPLE.glob("videos/*/*/1.mp4"))))
    with av.open(str(file)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    height, width, _ = whole[0].shape
    small = read_video(file, height // 4, width // 4)
    assert len(small) == len(whole)
    for frame in (0, len(whole) - 1):
        blocks = whole[frame].reshape(height // 4, 4, width // 4, 4, 3).mean(axis=(1, 3))
        assert np.abs(small[frame] - blocks).max() <= 1
    np.testing.assert_array_equal(read_video(file, height, width), np.stack(whole))
    large = read_video(file, 2 * height, 2 * width)[0]
    smooth = Image.fromarray(whole[0]).resize((2 * width, 2 * height), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(large, np.asarray(smooth))
