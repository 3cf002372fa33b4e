"""LeRobot datasets of DROID, versions 2.1 and 3.0, written here as their layout says, read back."""

import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from contracts.seeds import in_share
from envs.recorded.robot import Choice, RecordedRobot

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = Path(os.environ.get("DROID_SAMPLE_DIR", ROOT / "../shared/data/droid_sample"))
CAMERAS = [f"observation.images.{name}_left" for name in ("exterior_1", "exterior_2", "wrist")]
TEXTS = ["language_instruction", "language_instruction_2", "language_instruction_3"]
WIDTHS = {  # of the features of droid_1.0.1 that are needed
    "observation.state.gripper_position": 1,
    "observation.state.cartesian_position": 6,
    "observation.state.joint_position": 7,
    "action.gripper_position": 1,
    "action.joint_position": 7,
    "action.joint_velocity": 7,
}
LENGTHS = (13, 10, 7)
SIZE = (32, 64)


def value(name: str, episode: int, row: int, column: int) -> float:
    """Tells its feature, episode, row and column; float32 holds it exactly."""
    return 100 * list(WIDTHS).index(name) + 20 * episode + row + column / 8


def grey(episode: int, view: int, row: int) -> int:
    return 10 + 70 * episode + 20 * view + row


def features(**changes: object) -> dict[str, object]:
    found = {name: {"dtype": "float32", "shape": [width]} for name, width in WIDTHS.items()}
    found |= {name: {"dtype": "string", "shape": [1]} for name in TEXTS}
    found |= {"is_episode_successful": {"dtype": "bool", "shape": [1]}}
    found |= {name: {"dtype": "video", "shape": [*SIZE, 3]} for name in CAMERAS}
    return {name: what for name, what in (found | changes).items() if what is not None}


def rows(episode: int, **changes: np.ndarray) -> pa.Table:
    """The parquet rows of one episode; features of shape (1,) are plain numbers, as LeRobot's."""
    count, columns = LENGTHS[episode], {}
    for name, width in WIDTHS.items():
        table = [[value(name, episode, k, c) for c in range(width)] for k in range(count)]
        array = changes.get(name, np.array(table, np.float32))
        columns[name] = pa.array(array[:, 0]) if width == 1 else pa.array(array.tolist())
    for number, name in enumerate(TEXTS):
        text = f"{'Stack it' if episode else ''}{'!' * number if episode else ''}"
        columns[name] = [text] * count
    columns["is_episode_successful"] = [episode != 1] * count
    columns["episode_index"] = pa.array([episode] * count, pa.int64())
    return pa.table(columns)


def write_video(file: Path, greys: list[int], rate: int = 15) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream(
            "libx264", rate=rate, options={"g": "2", "preset": "ultrafast"}
        )
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        for level in greys:
            frame = av.VideoFrame.from_ndarray(np.full((*SIZE, 3), level, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_info(folder: Path, version: str, **changes: object) -> None:
    (folder / "meta").mkdir(parents=True, exist_ok=True)
    info = {"codebase_version": version, "fps": 15, "chunks_size": 2, "features": features()}
    info |= {"total_episodes": 3, "splits": {"train": "0:3"}}
    (folder / "meta/info.json").write_text(json.dumps(info | changes))


def write_v2(folder: Path) -> Path:
    """One parquet and three videos per episode, two episodes per chunk."""
    write_info(folder, "v2.1")
    lines = []
    for episode, length in enumerate(LENGTHS):
        chunk = f"chunk-{episode // 2:03d}"
        data = folder / f"data/{chunk}/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(episode), data)
        for view, name in enumerate(CAMERAS):
            greys = [grey(episode, view, row) for row in range(length)]
            write_video(folder / f"videos/{chunk}/{name}/episode_{episode:06d}.mp4", greys)
        tasks = ["Stack it" if episode else ""]
        lines.append(json.dumps({"episode_index": episode, "tasks": tasks, "length": length}))
    (folder / "meta/episodes.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def write_v3(folder: Path) -> Path:
    """Episodes 0 and 1 share a data file; all three share a video per camera."""
    write_info(folder, "v3.0")
    for number, group in enumerate(((0, 1), (2,))):
        data = folder / f"data/chunk-000/file-{number:03d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.concat_tables([rows(k) for k in group]), data, row_group_size=8)
    for view, name in enumerate(CAMERAS):
        greys = [grey(k, view, row) for k, length in enumerate(LENGTHS) for row in range(length)]
        write_video(folder / f"videos/{name}/chunk-000/file-000.mp4", greys)
    index = []
    for episode, length in enumerate(LENGTHS):
        row = {"episode_index": episode, "tasks": ["Stack it" if episode else ""]}
        row |= {"length": length, "data/chunk_index": 0, "data/file_index": episode // 2}
        for name in CAMERAS:
            start = sum(LENGTHS[:episode]) / 15
            row |= {f"videos/{name}/{part}_index": 0 for part in ("chunk", "file")}
            row |= {f"videos/{name}/from_timestamp": start}
            row |= {f"videos/{name}/to_timestamp": start + length / 15}
        index.append(row)
    file = folder / "meta/episodes/chunk-000/file-000.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(index), file)
    return folder


@pytest.fixture(params=[write_v2, write_v3], ids=["v2.1", "v3.0"])
def dataset(request, tmp_path):
    return request.param(tmp_path / "droid")


def read(folder: Path, choice: Choice | None = None) -> list:
    return list(RecordedRobot(folder, 16, 32, choice).episodes())


def test_episodes_are_read_as_they_were_written(dataset):
    found = read(dataset)
    assert [label.success for _, label in found] == [True, False, True]
    assert [t.instruction for t, _ in found] == ["", "Stack it", "Stack it"]
    for episode, (trajectory, _) in enumerate(found):
        length = LENGTHS[episode]
        assert int(trajectory.id.rsplit("-", 1)[1]) == episode
        assert trajectory.num_ticks == length - 1
        stored = {
            "observation.state.joint_position": trajectory.joint_position,
            "observation.state.cartesian_position": trajectory.cartesian_position,
            "observation.state.gripper_position": trajectory.gripper_position[:, None],
            "action.joint_velocity": trajectory.actions[:, :7],
            "action.gripper_position": trajectory.actions[:, 7:],
        }
        for name, array in stored.items():
            expected = [
                [value(name, episode, k, c) for c in range(WIDTHS[name])] for k in range(len(array))
            ]
            np.testing.assert_array_equal(array, np.array(expected, np.float32))
        wanted = [[grey(episode, v, row) for v in range(3)] for row in range(0, length, 3)]
        seen = trajectory.frames.astype(int)
        assert seen.shape == (len(wanted), 3, 16, 32, 3)
        assert np.abs(seen - np.array(wanted)[:, :, None, None, None]).max() <= 3


def test_the_instruction_is_the_one_that_was_asked_for(dataset):
    for number, name in enumerate(TEXTS):
        robot = RecordedRobot(dataset, 16, 32, Choice(instruction=name))
        texts = [t.instruction for t, _ in robot.episodes()]
        assert texts == ["", "Stack it" + "!" * number, "Stack it" + "!" * number]
        assert [len(ids) for ids in robot.tasks().values()] == [1, 2]  # untitled, stack_it
    texts = [t.instruction for t, _ in read(dataset, Choice(instruction="any"))]
    assert texts[0] == ""
    assert {text.rstrip("!") for text in texts[1:]} == {"Stack it"}
    assert texts == [t.instruction for t, _ in read(dataset, Choice(instruction="any"))]


def test_splits_are_the_dataset_s_own_or_follow_from_the_hash(dataset):
    for share in (0.0, 0.5, 1.0):
        sides = {}
        for split in ("train", "val"):
            robot = RecordedRobot(dataset, 16, 32, Choice(split, holdout=share))
            sides[split] = {int(name[-6:]) for name in robot.ids()}
        held_out = {k for k in range(3) if in_share(share, "recorded", k)}
        assert sides == {"train": set(range(3)) - held_out, "val": held_out}
    write_info(dataset, json.loads((dataset / "meta/info.json").read_text())["codebase_version"],
               splits={"train": "0:2", "val": "2:3"})  # fmt: skip
    assert RecordedRobot(dataset, 16, 32, Choice("val")).ids() == ["recorded-val-000002"]


def test_a_limit_chooses_some_and_a_larger_one_adds_to_them(dataset):
    chosen = [set(RecordedRobot(dataset, 16, 32, Choice(limit=k)).ids()) for k in (1, 2, 3, 0)]
    assert [len(ids) for ids in chosen] == [1, 2, 3, 3]
    assert chosen[0] < chosen[1] < chosen[2] == chosen[3]


def test_known_episodes_are_not_opened(dataset):
    robot = RecordedRobot(dataset, 16, 32)
    ids = robot.ids()
    for file in dataset.glob("data/**/*.parquet"):
        file.unlink()
    assert list(robot.episodes(known=ids)) == []
    assert robot.skipped == []


def test_commanded_velocities_may_follow_from_commanded_joints(dataset):
    version = json.loads((dataset / "meta/info.json").read_text())["codebase_version"]
    write_info(dataset, version, features=features(**{"action.joint_velocity": None}))
    robot = RecordedRobot(dataset, 16, 32)
    assert "derived from action.joint_position" in robot.notes[0]
    # target - joints = 400 + ... - 200 ... = 200 rad in every entry: far beyond 0.2, so clipped
    assert all((t.actions[:, :7] == 1).all() for t, _ in robot.episodes())


@pytest.mark.shared
def test_derived_velocities_are_close_to_the_recorded_ones():
    """On real episodes: how far DROID's law, applied to rows, is from what was sent."""
    errors = []
    for file in SAMPLE.glob("annotation/*/*.json"):
        said = json.loads(file.read_text())
        if "action.joint_velocity" not in said:
            continue
        joints = np.array(said["observation.state.joint_position"])
        derived = (np.array(said["action.joint_position"]) - joints) / 0.2
        errors.append(np.abs(np.clip(derived, -1, 1) - np.array(said["action.joint_velocity"])))
    assert np.median(np.concatenate(errors)) < 0.03
    assert np.quantile(np.concatenate(errors), 0.99) < 0.25


def damage_rows(dataset: Path, what: str) -> str:
    """Damage the rows of episode 2 and nothing else; the words that must tell about it."""
    v2 = (dataset / "meta/episodes.jsonl").exists()
    data = next(iter(dataset.glob("data/*/episode_000002.parquet" if v2 else "data/*/file-001.*")))
    if what == "cut":
        data.write_bytes(data.read_bytes()[:-200])
        return f"{data} is missing, cut off"
    if what == "missing":
        data.unlink()
        return f"{data} is missing, cut off"
    if what == "short":
        pq.write_table(rows(2).slice(0, 5), data)
        return f"{data} has 5 rows of episode 2, the index in meta/ says 7"
    bad = np.array(rows(2)["observation.state.joint_position"].to_pylist(), np.float32)
    bad[4, 3] = np.nan
    pq.write_table(rows(2, **{"observation.state.joint_position": bad}), data)
    return f"{data}: observation.state.joint_position of episode 2 is not finite in row 4"


def damage_video(dataset: Path, what: str) -> str:
    """The same of its second camera's video, in version 2."""
    video = sorted(dataset.glob("videos/**/episode_000002.mp4"))[1]
    if what == "cut":
        video.write_bytes(video.read_bytes()[:600])
        return f"{video} is no readable video"
    if what == "missing":
        video.unlink()
        return f"{video} is no readable video"
    if what == "short":
        write_video(video, [50] * 4)
        return f"{video} has 4 frames, its episode's rows ask for 7"
    write_video(video, [50] * 7, rate=10)
    return f"{video} plays 10 frames per second, its dataset has 15"


@pytest.mark.parametrize("what", ["cut", "missing", "short", "nan"])
def test_a_bad_episode_is_named_and_the_others_are_read(dataset, what):
    words = damage_rows(dataset, what)
    robot = RecordedRobot(dataset, 16, 32)
    assert [int(t.id[-6:]) for t, _ in robot.episodes()] == [0, 1]
    (skipped,) = robot.skipped
    assert skipped.episode.endswith("/000002")
    assert words in skipped.reason


@pytest.mark.parametrize("what", ["cut", "missing", "short", "rate"])
def test_a_bad_video_of_version_2_is_named(tmp_path, what):
    dataset = write_v2(tmp_path)
    words = damage_video(dataset, what)
    robot = RecordedRobot(dataset, 16, 32)
    assert [int(t.id[-6:]) for t, _ in robot.episodes()] == [0, 1]
    assert words in robot.skipped[0].reason


def test_a_shared_video_that_is_cut_off_costs_the_episodes_behind_the_cut(tmp_path):
    dataset = write_v3(tmp_path)
    video = dataset / f"videos/{CAMERAS[2]}/chunk-000/file-000.mp4"
    write_video(video, [grey(0, 2, row) for row in range(13)] + [99] * 4)
    robot = RecordedRobot(dataset, 16, 32)
    assert [int(t.id[-6:]) for t, _ in robot.episodes()] == [0]
    first, second = [item.reason for item in robot.skipped]
    assert f"{video} has 4 frames at 0.866667 s, its episode's rows ask for 10" in first
    assert f"{video} has 0 frames at 1.53333 s, its episode's rows ask for 7" in second


def test_episodes_without_an_instruction_can_be_left_out(dataset):
    robot = RecordedRobot(dataset, 16, 32, Choice(untitled=False))
    assert [t.instruction for t, _ in robot.episodes()] == ["Stack it"] * 2
    assert "episode 000000" in robot.skipped[0].reason
    assert "robot.untitled=true" in robot.skipped[0].reason
    assert list(robot.tasks()) == ["stack_it"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fps": 10}, r"says fps 10: DROID and the models here run at 15 Hz"),
        ({"codebase_version": "v1.6"}, r"codebase_version 'v1.6' is none of v2.0, v2.1, v3.0"),
        ({"features": features(**{CAMERAS[1]: None})}, rf"has no video {CAMERAS[1]}; its cameras"),
        (
            {"features": features(**{"observation.state.joint_position": None})},
            r"lacks observation.state.joint_position",
        ),
        (
            {
                "features": features(
                    **{"action.joint_velocity": None, "action.joint_position": None}
                )
            },
            r"lacks action.joint_position .* there must be action.joint_velocity",
        ),
        ({"features": None}, r"names no features"),
        (
            {"data_path": "data/{what}.parquet"},
            r"data_path='data/\{what\}.parquet' asks for 'what'",
        ),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused_when_it_is_opened(dataset, changes, message):
    version = json.loads((dataset / "meta/info.json").read_text())["codebase_version"]
    write_info(dataset, version, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read(dataset)
    assert str(dataset / "meta/info.json") in str(error.value)


def test_a_damaged_index_is_named(tmp_path):
    two, three = write_v2(tmp_path / "two"), write_v3(tmp_path / "three")
    (two / "meta/episodes.jsonl").write_text('{"episode_index": 0, "tasks"')
    with pytest.raises(ValueError, match=r"episodes.jsonl is no whole list of episodes"):
        RecordedRobot(two, 16, 32)
    index = three / "meta/episodes/chunk-000/file-000.parquet"
    index.write_bytes(index.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"file-000.parquet is no whole index of episodes"):
        RecordedRobot(three, 16, 32)
    (three / "meta/info.json").write_text("{")
    with pytest.raises(ValueError, match=r"info.json is no readable json"):
        RecordedRobot(three, 16, 32)


def test_other_folders_are_refused_with_what_was_expected(tmp_path):
    with pytest.raises(ValueError, match=r"holds no recordings: expected annotation/ .*LeRobot"):
        RecordedRobot(tmp_path, 16, 32)
    (tmp_path / "1.0.1").mkdir()
    (tmp_path / "1.0.1/droid-train.tfrecord-00000-of-00001").touch()
    with pytest.raises(ValueError, match=r"It holds RLDS files: port them with LeRobot's"):
        RecordedRobot(tmp_path, 16, 32)


def test_if_no_episode_is_left_the_reasons_are_given(dataset):
    for file in dataset.glob("data/**/*.parquet"):
        file.unlink()
    with pytest.raises(ValueError, match=r"has no usable episode; (?s:.*)3 skipped"):
        read(dataset)
