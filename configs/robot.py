"""Which robot collects the real rollouts."""

from dataclasses import dataclass

from configs.checks import at_least, inside, one_of

ROBOTS = ("mujoco", "recorded", "droid")
INSTRUCTIONS = ("language_instruction", "language_instruction_2", "language_instruction_3", "any")
SETTLE_TICKS = 6  # a simulator's verdict must stay so before the episode ends
TASKS = {  # name -> longest episode in 15 Hz ticks
    "stack": 180,
    "book": 150,
    "erase": 240,
    "scoop": 300,
    "draw": 300,
}


@dataclass
class RobotConfig:
    """``mujoco`` simulates a DROID rig; ``recorded`` hands out recordings (docs/datasets.md);
    ``droid`` is the arm behind a host that runs beside it (docs/robot.md)."""

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
    address: str = "ws://127.0.0.1:8090"  # robot=droid: its host, as seen from that Ray node
    token_file: str = ""  # a file there whose one line is the host's token
    binary_gripper: bool = True  # send 0 or 1, whichever is nearer to the plan, as openpi does
    person_s: float = 3600.0  # for so long the person beside the arm may be away
    max_ticks: int = 600  # longest episode of a task that is not among the five

    @property
    def settle_ticks(self) -> int:
        """Ticks in a row that must look finished; what a person says counts at once."""
        return 1 if self.kind == "droid" else SETTLE_TICKS

    def __post_init__(self) -> None:
        one_of("robot.kind", self.kind, ROBOTS)
        one_of("robot.renderer", self.renderer, ("auto", "egl", "ray"))
        one_of("robot.instruction", self.instruction, INSTRUCTIONS)
        at_least("robot.count", self.count, 1)
        at_least("robot.max_ticks", self.max_ticks, 1)
        at_least("robot.person_s", self.person_s, 1)
        if self.kind == "droid" and self.count != 1:
            raise ValueError(f"robot=droid is one arm: robot.count={self.count} must be 1")
        if self.kind == "droid" and not self.address.startswith(("ws://", "wss://")):
            raise ValueError(
                f"robot.address={self.address!r} must read like ws://127.0.0.1:8090, as the host "
                "prints it"
            )
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
