"""Feature names of ``droid_1.0.1`` in LeRobot's format, shared by who reads and who writes it.

Source: huggingface/lerobot 7427f31, ``examples/port_datasets/port_droid.py``. All rows are at
15 Hz. Names that begin with ``vlaw.`` are ours; LeRobot carries features that it does not know.
"""

CAMERAS = (  # in the order of ``constants.VIEWS``
    "observation.images.exterior_1_left",
    "observation.images.exterior_2_left",
    "observation.images.wrist_left",
)
INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3")
JOINTS = "observation.state.joint_position"  # rad
GRIPPER = "observation.state.gripper_position"  # 0 open, 1 closed
POSE = "observation.state.cartesian_position"  # flange in the base frame: m, extrinsic xyz rad
VELOCITY = "action.joint_velocity"  # 1.0 asks for 0.2 rad in one tick
JOINT_TARGET = "action.joint_position"  # rad
POSE_TARGET = "action.cartesian_position"
GRIPPER_TARGET = "action.gripper_position"
SUCCESS = "is_episode_successful"
LABELLED = "vlaw.labelled"  # False where SUCCESS is not the word of a person or the simulator
DATA_PATH = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"  # version 3
VIDEO_PATH = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
EPISODES_PATH = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
