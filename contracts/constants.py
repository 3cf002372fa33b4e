"""Conventions of a DROID rig that every package shares, each stated once."""

VIEWS = ("exterior_1", "exterior_2", "wrist")  # order of axis 0 of every image stack
CONTROL_HZ = 15  # one *tick*
FRAME_HZ = 5  # one *frame*: all three views at one time step
TICKS_PER_FRAME = CONTROL_HZ // FRAME_HZ
NEW_FRAMES = 4  # a world-model call answers with 4 frames that were not known before
TICKS_PER_CHUNK = NEW_FRAMES * TICKS_PER_FRAME  # 12 ticks = 0.8 s
NUM_JOINTS = 7
ACTION_DIM = 8  # 7 joint velocities and the gripper
RAD_PER_TICK = 0.2  # what a joint velocity of 1.0 asks for in one tick (DROID robot_ik_solver)
NO_VERSION = (
    -1
)  # "no model made this": a demonstration has no policy, a real episode no world model
