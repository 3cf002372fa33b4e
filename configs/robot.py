"""Which robot collects the real rollouts."""

from dataclasses import dataclass

from configs.checks import at_least, inside, one_of

ROBOTS = ("mujoco", "recorded")
INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3", "any")
TASKS = {  # name -> longest episode in 15 Hz ticks
    "stack": 180,
    "book": 150,
    "erase": 240,
    "scoop": 300,
    "draw": 300,
}


@dataclass
class RobotConfig:
    """``mujoco`` simulates a DROID rig; ``recorded`` hands out recordings (docs/datasets.md)."""

    kind: str = "mujoco"
    path: str = ""  # robot=recorded: folder in Ctrl-World's or LeRobot's layout
    limit: int = 0  # of its episodes at most so many, chosen by hash; 0: all
    instruction: str = "language_instruction"  # LeRobot: which of DROID's three texts
    holdout: float = 0.05  # LeRobot: share of episodes held out where no split is named
    untitled: bool = True  # recordings without an instruction are the task "untitled"
    count: int = 2  # robots that collect side by side
    height: int = 48  # of one stored view, pixels
    width: int = 80
    renderer: str = "auto"  # egl: OpenGL; ray: no system package; auto: egl where it works
    resource: str = "robot"  # the Ray resource that marks the robot's host

    def __post_init__(self) -> None:
        one_of("robot.kind", self.kind, ROBOTS)
        one_of("robot.renderer", self.renderer, ("auto", "egl", "ray"))
        one_of("robot.instruction", self.instruction, INSTRUCTIONS)
        at_least("robot.count", self.count, 1)
        at_least("robot.limit", self.limit, 0)
        inside("robot.holdout", self.holdout, -1e-9, 1)
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 16:
            raise ValueError(
                f"robot.height={self.height} and robot.width={self.width} must be multiples of 8, "
                "at least 16"
            )
        if self.kind == "recorded" and not self.path:
            raise ValueError(
                "robot=recorded needs robot.path=<folder with annotation/ and videos/, or with "
                "meta/, data/ and videos/>"
            )
