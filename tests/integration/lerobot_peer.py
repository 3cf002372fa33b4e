"""LeRobot's own reader and writer; runs in LeRobot's environment, not in ours."""

import sys

import numpy as np


def read(root: str, answer: str) -> None:
    """Every row of a dataset as LeRobot gives it: numbers, texts, and the picture of every row."""
    from lerobot.datasets import LeRobotDataset  # noqa: PLC0415

    data = LeRobotDataset("local/exported", root=root, video_backend="pyav", return_uint8=True)
    items = [data[row] for row in range(len(data))]
    columns = {key: np.stack([np.asarray(item[key]) for item in items]) for key in items[0]}
    columns |= {"fps": data.fps, "num_episodes": data.num_episodes}
    columns["stats.joints.q99"] = data.meta.stats["observation.state.joint_position"]["q99"]
    np.savez(answer, **columns)


def write(root: str, columns: str) -> None:
    """Two episodes with droid_1.0.1's features, from arrays of (episode, row, ...)."""
    from lerobot.datasets import LeRobotDataset  # noqa: PLC0415

    given = dict(np.load(columns))
    features = {}
    for name, array in given.items():
        kind = "video" if ".images." in name else array.dtype.name
        shape = array.shape[2:] or (1,)
        features[name] = {"dtype": kind, "shape": shape, "names": None}
        if kind == "video":
            features[name]["names"] = ["height", "width", "channels"]
    features["language_instruction"] = {"dtype": "string", "shape": (1,), "names": None}
    data = LeRobotDataset.create("local/written", 15, features, root=root, robot_type="Franka")
    for episode in range(2):
        for row in range(len(given["action.joint_velocity"][episode])):
            frame = {name: np.atleast_1d(array[episode, row]) for name, array in given.items()}
            text = f"do {episode}"
            data.add_frame(frame | {"language_instruction": text, "task": text})
        data.save_episode()
    data.finalize()


if __name__ == "__main__":
    {"read": read, "write": write}[sys.argv[1]](*sys.argv[2:])
