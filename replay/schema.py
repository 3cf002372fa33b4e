"""The storage format: three Arrow schemas in one readable literal, with a version.

A store is a folder of three Lance tables. ``episodes`` is the commit point: a trajectory exists
when its row there does. ``frames`` rows of a trajectory lie together, from ``first_frame`` on.
``verdicts`` only ever grows; nothing is rewritten when a trajectory is scored again.
"""

import pyarrow as pa

from contracts.constants import ACTION_DIM, NUM_JOINTS

SCHEMA_VERSION = "1"  # raise it with every change below


def _rows_of(columns: int) -> pa.DataType:
    """One fixed-width float32 vector per 15 Hz row."""
    return pa.list_(pa.list_(pa.float32(), columns))


def _table(*fields: pa.Field) -> pa.Schema:
    return pa.schema(fields, metadata={"schema_version": SCHEMA_VERSION})


EPISODES = _table(
    pa.field("trajectory_id", pa.string(), nullable=False),
    pa.field("origin", pa.string(), nullable=False),  # real, demo, recorded, imagined
    pa.field("task", pa.string(), nullable=False),
    pa.field("iteration", pa.int64(), nullable=False),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("policy_version", pa.int64(), nullable=False),  # -1: no policy took part
    pa.field("world_model_version", pa.int64(), nullable=False),  # -1: the real robot
    pa.field("parent", pa.string(), nullable=False),
    pa.field("parent_frame", pa.int64(), nullable=False),
    pa.field("instruction", pa.string(), nullable=False),
    pa.field("ending", pa.string(), nullable=False),
    pa.field("success", pa.bool_()),  # null: nobody labelled it
    pa.field("label_source", pa.string()),
    pa.field("label_operator", pa.string()),
    pa.field("num_ticks", pa.int64(), nullable=False),
    pa.field("num_frames", pa.int64(), nullable=False),
    pa.field("height", pa.int64(), nullable=False),  # of one view, pixels
    pa.field("width", pa.int64(), nullable=False),
    pa.field("first_frame", pa.int64(), nullable=False),  # row of its frame 0 in ``frames``
    pa.field("actions", _rows_of(ACTION_DIM), nullable=False),  # num_ticks rows at 15 Hz
    pa.field("joint_position", _rows_of(NUM_JOINTS), nullable=False),  # num_ticks + 1 rows
    pa.field("gripper_position", pa.list_(pa.float32()), nullable=False),
    pa.field("cartesian_position", _rows_of(6), nullable=False),
)

FRAMES = _table(
    pa.field("trajectory_id", pa.string(), nullable=False),
    pa.field("frame", pa.int64(), nullable=False),  # 5 Hz index inside the trajectory
    pa.field("image", pa.binary(), nullable=False),  # JPEG or PNG, the 3 views top to bottom
)

VERDICTS = _table(
    pa.field("trajectory_id", pa.string(), nullable=False),
    pa.field("p_yes", pa.float64(), nullable=False),  # NaN iff error is not empty
    pa.field("mass", pa.float64(), nullable=False),
    pa.field("reward_version", pa.int64(), nullable=False),
    pa.field("error", pa.string(), nullable=False),
)

VECTORS = ("actions", "joint_position", "gripper_position", "cartesian_position")
LIGHT = tuple(name for name in EPISODES.names if name not in VECTORS)
