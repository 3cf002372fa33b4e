"""15 Hz rows of recordings that hold states at 5 Hz only, as Ctrl-World's ``droid_new_setup``."""

import numpy as np
from jaxtyping import Float64

from contracts.constants import NUM_JOINTS, TICKS_PER_FRAME
from contracts.droid_features import GRIPPER, GRIPPER_TARGET, JOINTS, POSE, VELOCITY

STATES, FULL_JOINTS = "states", "joints"  # one row per frame: pose and gripper; joints and gripper
WIDTHS = {STATES: (7,), FULL_JOINTS: (NUM_JOINTS + 1,)}
RADIANS_PER_TICK = 0.2  # that a velocity of 1.0 asks for (``robot_ik_solver`` of DROID)
NOTE = (
    "states are recorded at 5 Hz without commands: rows between frames are interpolated and "
    "actions are the measured motion. Good for world models and judgements; a policy that is "
    "trained on them commands too little, since an arm does not do all it is told"
)

Rows = dict[str, np.ndarray]


def interpolate(states: Float64[np.ndarray, "n 7"], joints: Float64[np.ndarray, "n 8"]) -> Rows:
    """Rows by their DROID names: n frames make 3 (n - 1) + 1 of them; each third is recorded.

    Angles take the short way round. The gripper's target is where it is one tick later.
    """
    frames = np.arange(len(states)) * TICKS_PER_FRAME
    ticks = np.arange(frames[-1] + 1)
    table = np.concatenate([states, joints[:, :NUM_JOINTS]], axis=1)
    table[:, 3:6] = np.unwrap(table[:, 3:6], axis=0)
    rows = np.stack([np.interp(ticks, frames, column) for column in table.T], axis=1)
    rows[:, 3:6] = (rows[:, 3:6] + np.pi) % (2 * np.pi) - np.pi
    rows[frames] = np.concatenate([states, joints[:, :NUM_JOINTS]], axis=1)  # not even rounded
    pose, gripper, angles = rows[:, :6], rows[:, 6], rows[:, 7:]
    after = np.minimum(ticks + 1, ticks[-1])
    return {
        JOINTS: angles.astype(np.float32),
        GRIPPER: gripper.astype(np.float32),
        POSE: pose.astype(np.float32),
        VELOCITY: ((angles[after] - angles) / RADIANS_PER_TICK).astype(np.float32),
        GRIPPER_TARGET: gripper[after].astype(np.float32),
    }
