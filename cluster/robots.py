"""What runs inside the process of a robot. It needs neither torch nor a model."""

from dataclasses import dataclass, replace

from actors.rollout import EpisodeRequest, Finished, RolloutActor
from configs.robot import RobotConfig
from configs.run import RunConfig
from contracts.protocols import LabelSource, Policy, RobotEnv
from contracts.types import Label, Trajectory
from envs.mujoco.experts import demonstrate
from envs.mujoco.robot import MujocoRobot, SimulatorLabels


class RobotProcess:
    """One simulated robot, its cameras and the loop that drives it; the policy is elsewhere."""

    def __init__(self, config: RunConfig, policy: Policy) -> None:
        self._actor = RolloutActor(lambda: _simulated(config), policy)

    def collect(self, request: EpisodeRequest) -> tuple[Trajectory, Label]:
        return self._actor.collect(request)


def _simulated(config: RunConfig) -> tuple[RobotEnv, LabelSource, Finished]:
    """A robot whose operator is the simulator's privileged check: it labels, and ends successes."""
    robot = MujocoRobot(config.robot)
    return robot, SimulatorLabels(robot), robot.privileged_success


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
