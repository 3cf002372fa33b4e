"""The robot's episode loop: observe, decide, step at 15 Hz, record everything."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from contracts.constants import TICKS_PER_FRAME
from contracts.errors import PolicyUnavailableError
from contracts.protocols import LabelSource, Policy, RobotEnv
from contracts.seeds import fold
from contracts.types import (
    ActionChunk,
    Label,
    Observation,
    Origin,
    Provenance,
    RobotState,
    Trajectory,
)

Finished = Callable[[], bool]


@dataclass(frozen=True, slots=True)
class EpisodeRequest:
    """One episode to run. Equal requests on an equal simulator give equal episodes."""

    trajectory_id: str
    task: str
    iteration: int
    seed: int  # of the scene and, folded with the chunk's index, of every decision
    max_ticks: int
    execute: int = 12  # ticks of a chunk that are executed before the next decision
    settle_ticks: int = 6  # consecutive ticks that must look finished before the episode ends
    origin: Origin = "real"

    def __post_init__(self) -> None:
        for name, value in (("max_ticks", self.max_ticks), ("execute", self.execute)):
            if value < 1:
                raise ValueError(f"{name}={value} must be at least 1")


def never() -> bool:
    """The stop predicate of an episode that runs to its last tick."""
    return False


def run_episode(
    robot: RobotEnv, policy: Policy, request: EpisodeRequest, finished: Finished = never
) -> Trajectory:
    """Run one episode; the arm is held afterwards, whatever happened.

    Frames are observed at ticks 0, 3, 6, ...; a decision is taken every ``request.execute`` ticks.
    ``finished`` stands for the operator who ends an episode early. It is asked after every tick and
    the episode ends, as "done", at the first frame tick after ``settle_ticks`` yeses in a row, so
    the last frame shows the final state. It never reaches the policy.

    A policy that stops answering ends the episode as "aborted:<reason>"; what the arm did until
    then happened and is returned. The arm waits in place while a decision is awaited.

    Raises:
        ValueError: the policy plans fewer ticks than are to be executed, or changed its version.
        PolicyUnavailableError: there was no first decision, so the arm has done nothing.
    """
    try:
        recorder = _Recorder(request, robot.reset(request.task, request.seed))
        try:
            ending = _run(robot, policy, recorder, finished)
        except PolicyUnavailableError as error:
            robot.hold()
            if not recorder.actions:
                raise
            ending = f"aborted:{error}"
        return recorder.trajectory(ending)
    finally:
        robot.hold()


def _run(robot: RobotEnv, policy: Policy, recorder: "_Recorder", finished: Finished) -> str:
    request, plan, agreed = recorder.request, np.zeros((0, 8), np.float32), 0
    for tick in range(request.max_ticks):
        row = tick % request.execute
        if row == 0 or tick % TICKS_PER_FRAME == 0:
            observation = recorder.see(tick, robot.observe())
            if row == 0:
                plan = recorder.decide(policy, observation, tick // request.execute)
        recorder.step(plan[row], robot.step(plan[row]))
        agreed = agreed + 1 if finished() else 0
        if agreed >= request.settle_ticks and (tick + 1) % TICKS_PER_FRAME == 0:
            break
    recorder.see(len(recorder.actions), robot.observe())
    return "done" if agreed >= request.settle_ticks else "timeout"


@dataclass
class _Recorder:
    """What has been seen and done so far in one episode."""

    request: EpisodeRequest
    instruction: str
    actions: list[np.ndarray] = field(default_factory=list)
    states: list[RobotState] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)

    def see(self, tick: int, observation: Observation) -> Observation:
        """Keep the frame if one is due at this tick, and the very first state."""
        if not self.states:
            self.states.append(observation.state)
        if tick % TICKS_PER_FRAME == 0:
            self.frames.append(observation.images)
        return observation

    def decide(self, policy: Policy, observation: Observation, chunk: int) -> np.ndarray:
        plan = policy.act([observation], [fold(self.request.seed, chunk)])[0]
        self._check(plan)
        return plan.actions

    def step(self, action: np.ndarray, state: RobotState) -> None:
        self.actions.append(action)
        self.states.append(state)

    def trajectory(self, ending: str) -> Trajectory:
        request = self.request
        provenance = Provenance(
            trajectory_id=request.trajectory_id,
            origin=request.origin,
            task=request.task,
            iteration=request.iteration,
            seed=request.seed,
            policy_version=self.versions.pop(),
        )
        return Trajectory(
            provenance=provenance,
            instruction=self.instruction,
            actions=np.stack(self.actions).astype(np.float32),
            joint_position=_rows([s.joint_position for s in self.states]),
            gripper_position=_rows([s.gripper_position for s in self.states]),
            cartesian_position=_rows([s.cartesian_position for s in self.states]),
            frames=np.stack(self.frames),
            ending=ending,
        )

    def _check(self, plan: ActionChunk) -> None:
        if len(plan.actions) < self.request.execute:
            raise ValueError(
                f"the policy plans {len(plan.actions)} ticks but {self.request.execute} are to be "
                "executed; lower policy.execute"
            )
        self.versions.add(plan.version)
        if len(self.versions) > 1:
            raise ValueError(
                f"the policy changed from version {sorted(self.versions)} within the episode "
                f"{self.request.trajectory_id}; give each episode one version"
            )


def _rows(values: list) -> np.ndarray:
    return np.asarray(values, np.float32)


class RolloutActor:
    """Owns one robot and collects labelled episodes with one policy.

    ``make`` is called here, in the process that owns the robot, and returns the robot, who labels
    its episodes, and the predicate that ends them early (``never`` on a rig without one).
    """

    def __init__(
        self, make: Callable[[], tuple[RobotEnv, LabelSource, Finished]], policy: Policy
    ) -> None:
        self._robot, self._labels, self._finished = make()
        self._policy = policy

    def collect(self, request: EpisodeRequest) -> tuple[Trajectory, Label]:
        """Run one episode and have it labelled. Nothing is stored here."""
        trajectory = run_episode(self._robot, self._policy, request, self._finished)
        return trajectory, self._labels.label(trajectory)

    def use(self, policy: Policy) -> None:
        """Act with another policy from the next episode on."""
        self._policy = policy

    def close(self) -> None:
        self._robot.close()
