"""What runs inside the process of a robot. It needs neither torch nor a model."""

from dataclasses import dataclass, replace
from pathlib import Path

from actors.open_loop import OpenLoop, succeeds
from actors.rollout import EpisodeRequest, Finished, RolloutActor
from configs.robot import RobotConfig
from configs.run import RunConfig
from contracts.protocols import LabelSource, Policy, RobotEnv
from contracts.types import Label, Trajectory
from envs.droid.client import DroidLabels, DroidRobot
from envs.mujoco.experts import demonstrate
from envs.mujoco.robot import MujocoRobot, SimulatorLabels


class RobotProcess:
    """One robot, its cameras and the loop that drives it; the policy is elsewhere."""

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        make = _droid if config.robot.kind == "droid" else _simulated
        self._actor = RolloutActor(lambda: make(config), policy)

    def collect(self, request: EpisodeRequest) -> tuple[Trajectory, Label]:
        return self._actor.collect(request)


def _simulated(config: RunConfig) -> tuple[RobotEnv, LabelSource, Finished]:
    """A robot whose operator is the simulator's privileged check: it labels, and ends successes."""
    robot = MujocoRobot(config.robot)
    return robot, SimulatorLabels(robot), robot.privileged_success


def _droid(config: RunConfig) -> tuple[RobotEnv, LabelSource, Finished]:
    """The arm behind its host; a person beside it labels, and ends episodes."""
    wanted = config.robot
    try:
        token = Path(wanted.token_file).read_text().strip() if wanted.token_file else ""
    except OSError as error:
        raise ValueError(f"robot.token_file={wanted.token_file}: {error}") from error
    robot = DroidRobot(wanted.address, token, wanted.binary_gripper, wanted.person_s)
    size = (robot.facts["height"], robot.facts["width"])
    if size != (wanted.height, wanted.width):
        robot.close()
        raise ValueError(
            f"the robot's host sends views of {size[0]}x{size[1]}, robot.height={wanted.height} "
            f"robot.width={wanted.width}: start it with --size {wanted.height}x{wanted.width}"
        )
    return robot, DroidLabels(robot), robot.finished


@dataclass(frozen=True, slots=True)
class DemonstrationRequest:
    """One scripted episode; ``noise`` disturbs the expert (see ``envs.mujoco.experts``)."""

    trajectory_id: str
    task: str
    seed: int
    noise: float


class DemonstrationProcess:
    """A robot that the scripted expert drives."""

    def __init__(self, config: RobotConfig) -> None:
        self._robot = MujocoRobot(config)

    def collect(self, request: DemonstrationRequest) -> tuple[Trajectory, Label]:
        played, success = demonstrate(self._robot, request.task, request.seed, request.noise)
        name = request.trajectory_id
        trajectory = replace(played, provenance=replace(played.provenance, trajectory_id=name))
        return trajectory, Label(name, success, "simulator")


class PhysicsProcess:
    """A simulated robot that executes what was imagined."""

    def __init__(self, config: RobotConfig) -> None:
        self._robot = MujocoRobot(config)

    def succeeds(self, plan: OpenLoop) -> bool:
        return succeeds(self._robot, self._robot.privileged_success, plan)
