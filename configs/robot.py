"""Which robot collects the real rollouts."""

from dataclasses import dataclass

from configs.checks import at_least, one_of

ROBOTS = ("mujoco", "recorded")
TASKS = {  # name -> longest episode in 15 Hz ticks
    "stack": 180,
    "book": 150,
    "erase": 240,
    "scoop": 300,
    "draw": 300,
}


@dataclass
class RobotConfig:
    """``mujoco`` simulates a DROID rig; ``recorded`` replays episodes of Ctrl-World's layout."""

    kind: str = "mujoco"
    path: str = ""  # robot=recorded: folder with annotation/ and videos/
    count: int = 2  # robots that collect side by side
    height: int = 48  # of one stored view, pixels
    width: int = 80
    renderer: str = "auto"  # egl: OpenGL; ray: no system package; auto: egl where it works
    resource: str = "robot"  # the Ray resource that marks the robot's host

    def __post_init__(self) -> None:
        one_of("robot.kind", self.kind, ROBOTS)
        one_of("robot.renderer", self.renderer, ("auto", "egl", "ray"))
        at_least("robot.count", self.count, 1)
        if self.height % 8 or self.width % 8 or min(self.height, self.width) < 16:
            raise ValueError(
                f"robot.height={self.height} and robot.width={self.width} must be multiples of 8, "
                "at least 16"
            )
        if self.kind == "recorded" and not self.path:
            raise ValueError(
                "robot=recorded needs robot.path=<folder with annotation/ and videos/>"
            )
