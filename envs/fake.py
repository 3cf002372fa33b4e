"""A robot that counts, for tests of everything that moves its data; numpy only."""

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float32

from contracts.constants import CONTROL_HZ, TICKS_PER_FRAME, VIEWS
from contracts.types import Observation, Provenance, RobotState, Trajectory

COUNTING_TASKS = ("count", "wipe")


@dataclass
class CountingRobot:
    """Writes its own clock into whatever it shows, so that a lost or repeated tick is seen.

    Joint 0 is the tick and joint 1 the number of the episode (the first is 0). Every pixel of view
    v is (tick, episode, v) modulo 256. ``gripper_position`` is the last command. The clock advances
    with ``step`` alone. ``fail_at`` makes the step from that tick raise OSError, as a lost
    connection would.
    """

    height: int = 16
    width: int = 16
    fail_at: int | None = None
    tick: int = 0
    episode: int = -1
    instruction: str = ""
    held: bool = True
    closed: bool = False
    executed: list[Float32[np.ndarray, " 8"]] = field(default_factory=list)

    def reset(self, task: str, seed: int) -> str:
        """Start an episode of one of ``COUNTING_TASKS``. Raises ValueError for another task."""
        if task not in COUNTING_TASKS:
            raise ValueError(f"task {task!r} is unknown; this robot knows {COUNTING_TASKS}")
        self.tick, self.episode, self.held, self.executed = 0, self.episode + 1, False, []
        self.instruction = f"{task} from {seed}"
        return self.instruction

    def observe(self) -> Observation:
        images = np.zeros((len(VIEWS), self.height, self.width, 3), np.uint8)
        images[..., 0], images[..., 1] = self.tick % 256, self.episode % 256
        images[..., 2] = np.arange(len(VIEWS))[:, None, None]
        return Observation(images, self.state(), self.instruction)

    def step(self, action: Float32[np.ndarray, " 8"]) -> RobotState:
        if self.tick == self.fail_at:
            raise OSError(f"no answer from the arm at tick {self.tick}")
        self.executed.append(action)
        self.tick += 1
        return self.state()

    def state(self) -> RobotState:
        joints = np.zeros(7, np.float32)
        joints[:2] = self.tick, self.episode
        gripper = float(self.executed[-1][7]) if self.executed else 0.0
        return RobotState(
            joint_position=joints,
            joint_velocity=np.zeros(7, np.float32),
            cartesian_position=np.zeros(6, np.float32),
            gripper_position=gripper,
            time_s=self.tick / CONTROL_HZ,
        )

    def hold(self) -> None:
        self.held = True

    def close(self) -> None:
        self.closed = True


def counting_trajectory(provenance: Provenance, ticks: int, ending: str = "timeout") -> Trajectory:
    """A trajectory whose every row says when it is and who it belongs to.

    At tick t: joint 0 is t, the gripper t / 1000, the pose's x is t / 100, the action asks for
    velocity t / 1000 in every joint and a gripper of t / 1000. Pixels of frame j, view v, are
    (j, seed modulo 256, v). The instruction is "do <task>".
    """
    rows = np.arange(ticks + 1, dtype=np.float32)
    joints, poses = np.zeros((ticks + 1, 7), np.float32), np.zeros((ticks + 1, 6), np.float32)
    joints[:, 0], poses[:, 0] = rows, rows / 100
    frames = np.zeros((ticks // TICKS_PER_FRAME + 1, len(VIEWS), 16, 16, 3), np.uint8)
    frames[..., 0] = np.arange(len(frames))[:, None, None, None]
    frames[..., 1] = provenance.seed % 256
    frames[..., 2] = np.arange(len(VIEWS))[:, None, None]
    return Trajectory(
        provenance=provenance,
        instruction=f"do {provenance.task}",
        actions=np.repeat(rows[:-1, None] / 1000, 8, axis=1),
        joint_position=joints,
        gripper_position=rows / 1000,
        cartesian_position=poses,
        frames=frames,
        ending=ending,
    )
