"""The robot's episode loop: observe, decide, step at 15 Hz, record everything."""

from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from configs.robot import SETTLE_TICKS
from contracts.constants import TICKS_PER_FRAME
from contracts.errors import ArmStoppedError, DiscardedError, PolicyUnavailableError
from contracts.protocols import LabelSource, PacedRobot, Policy, RobotEnv
from contracts.seeds import fold
from contracts.types import (
    ActionChunk,
    Label,
    Moment,
    Observation,
    Origin,
    Provenance,
    RobotState,
    Trajectory,
)

MAX_STOPS = 5

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
    settle_ticks: int = (
        SETTLE_TICKS  # consecutive ticks that must look finished before the episode ends
    )
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

    A policy that stops answering, or a fault that holds the arm, ends the episode as
    "aborted:<reason>"; what the arm did until then happened and is returned. The arm waits in place
    while a decision is awaited.

    Raises:
        ValueError: the policy plans fewer ticks than are to be executed, or changed its version.
        PolicyUnavailableError, ArmStoppedError: the same before the arm has done anything.
    """
    try:
        if isinstance(robot, PacedRobot):
            robot.announce(request.trajectory_id, policy.version, request.max_ticks)
        recorder = _Recorder(request, robot.reset(request.task, request.seed))
        try:
            ending = _run(robot, policy, recorder, finished)
        except (PolicyUnavailableError, ArmStoppedError) as error:
            robot.hold()
            if not recorder.actions:
                raise
            ending = f"aborted:{error}"
        return recorder.trajectory(ending)
    finally:
        robot.hold()


def _run(robot: RobotEnv, policy: Policy, recorder: "_Recorder", finished: Finished) -> str:
    request, agreed = recorder.request, 0
    while recorder.ticks < request.max_ticks:
        plan = recorder.decide(policy, recorder.see(robot.observe()))
        rows = plan[: min(request.execute, request.max_ticks - recorder.ticks)]
        with closing(_play(robot, rows, recorder)) as ticks:
            for _ in ticks:
                agreed = agreed + 1 if finished() else 0
                if agreed >= request.settle_ticks and recorder.ticks % TICKS_PER_FRAME == 0:
                    recorder.see(robot.observe())
                    return "done"
    recorder.see(robot.observe())
    return "timeout"


def _play(robot: RobotEnv, rows: np.ndarray, recorder: "_Recorder") -> Generator[None]:
    """Execute and record the rows; yields after each."""
    if isinstance(robot, PacedRobot):
        with closing(robot.play(rows)) as moments:
            recorder.stand(next(moments))
            for moment in moments:
                recorder.step(moment)
                yield
        return
    for row, action in enumerate(rows, start=1):
        state = robot.step(action)
        # After the last row whoever decides looks anyway.
        look = (recorder.ticks + 1) % TICKS_PER_FRAME == 0 and row < len(rows)
        recorder.step(Moment(state, robot.observe().images if look else None, action))
        yield


@dataclass
class _Recorder:
    """What has been seen and done so far in one episode."""

    request: EpisodeRequest
    instruction: str
    actions: list[np.ndarray] = field(default_factory=list)
    states: list[RobotState] = field(default_factory=list)
    frames: list[np.ndarray] = field(default_factory=list)
    versions: set[int] = field(default_factory=set)
    chunks: int = 0

    @property
    def ticks(self) -> int:
        return len(self.actions)

    def see(self, observation: Observation) -> Observation:
        """Keep the frame if one is due at this tick, and the very first state."""
        if not self.states:
            self.states.append(observation.state)
        self._keep(observation.images)
        return observation

    def decide(self, policy: Policy, observation: Observation) -> np.ndarray:
        plan = policy.act([observation], [fold(self.request.seed, self.chunks)])[0]
        self.chunks += 1
        self._check(plan)
        return plan.actions

    def stand(self, moment: Moment) -> None:
        """How the arm stands after the wait for a decision: it went on to where it aimed."""
        self.states[-1] = moment.state
        if moment.images is not None and self.ticks % TICKS_PER_FRAME == 0:
            self.frames[-1] = moment.images

    def step(self, moment: Moment) -> None:
        assert moment.action is not None
        self.actions.append(moment.action)
        self.states.append(moment.state)
        if moment.images is not None:
            self._keep(moment.images)

    def _keep(self, images: np.ndarray) -> None:
        if self.ticks == TICKS_PER_FRAME * len(self.frames):
            self.frames.append(images)

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
        """Run one episode and have it labelled. Nothing is stored here.

        An episode that a person discards, and one that was stopped before its first tick, is run
        again: each time a person has to agree to it first.

        Raises:
            ArmStoppedError: it was stopped before its first tick for ``MAX_STOPS`` times.
        """
        stops = 0
        while True:
            try:
                trajectory = run_episode(self._robot, self._policy, request, self._finished)
                return trajectory, self._labels.label(trajectory)
            except DiscardedError:
                continue
            except ArmStoppedError:
                stops += 1
                if stops == MAX_STOPS:
                    raise

    def use(self, policy: Policy) -> None:
        """Act with another policy from the next episode on."""
        self._policy = policy

    def close(self) -> None:
        self._robot.close()
