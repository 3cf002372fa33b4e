"""The robot loop counts: every tick once, in order, with the frame that belongs to it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from actors.rollout import EpisodeRequest, RolloutActor, never, run_episode
from contracts.errors import PolicyUnavailableError
from contracts.seeds import fold
from contracts.types import ActionChunk, Label, Moment, Observation, Trajectory
from envs.fake import CountingRobot


@dataclass
class CountingPolicy:
    """Row k of a plan made at tick t asks for a gripper of (t + k) / 1000."""

    version: int = 3
    horizon: int = 15
    seeds: list[int] = field(default_factory=list)
    ticks: list[int] = field(default_factory=list)

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        (observation,) = observations
        tick = int(observation.state.joint_position[0])
        assert observation.images[0, 0, 0, 0] == tick  # the picture is of now, not of before
        self.seeds += seeds
        self.ticks.append(tick)
        actions = np.zeros((self.horizon, 8), np.float32)
        actions[:, 7] = (tick + np.arange(self.horizon)) / 1000
        return [ActionChunk(actions, self.version)]


def request(**changes: object) -> EpisodeRequest:
    values: dict = {
        "trajectory_id": "a",
        "task": "count",
        "iteration": 1,
        "seed": 5,
        "max_ticks": 30,
    }
    return EpisodeRequest(**(values | changes))


def test_no_tick_is_lost_repeated_or_reordered():
    robot = CountingRobot()
    for episode in range(3):
        trajectory = run_episode(robot, CountingPolicy(), request(max_ticks=31))
        np.testing.assert_array_equal(trajectory.joint_position[:, 0], np.arange(32))
        assert set(trajectory.joint_position[:, 1]) == {episode}
        np.testing.assert_array_equal(trajectory.frames[:, 0, 0, 0, 0], np.arange(0, 31, 3))
        np.testing.assert_allclose(trajectory.actions[:, 7], np.arange(31) / 1000, rtol=1e-6)
        np.testing.assert_array_equal(np.stack(robot.executed), trajectory.actions)


@pytest.mark.parametrize(("execute", "decisions"), [(12, [0, 12, 24]), (8, [0, 8, 16, 24])])
def test_decisions_fall_every_executed_chunk(execute, decisions):
    """8 ticks is openpi's DROID client; its decisions fall between the 5 Hz frames."""
    policy = CountingPolicy()
    trajectory = run_episode(CountingRobot(), policy, request(execute=execute))
    assert policy.ticks == decisions
    assert policy.seeds == [fold(5, i) for i in range(len(decisions))]
    np.testing.assert_array_equal(trajectory.frames[:, 0, 0, 0, 0], np.arange(0, 31, 3))


def test_provenance_says_who_made_it():
    trajectory = run_episode(CountingRobot(), CountingPolicy(version=7), request(origin="demo"))
    assert trajectory.provenance.policy_version == 7
    assert trajectory.provenance.world_model_version == -1
    assert (trajectory.provenance.origin, trajectory.provenance.seed) == ("demo", 5)
    assert (trajectory.instruction, trajectory.ending) == ("count from 5", "timeout")


@pytest.mark.parametrize(("settle", "ticks"), [(1, 12), (3, 12), (4, 15), (60, 30)])
def test_episode_ends_at_a_frame_once_it_looked_finished_long_enough(settle, ticks):
    """Finished from tick 10 on: ``settle`` yeses in a row are complete at tick 9 + settle."""
    robot = CountingRobot()
    asked = request(settle_ticks=settle)
    trajectory = run_episode(robot, CountingPolicy(), asked, lambda: robot.tick >= 10)
    assert trajectory.num_ticks == ticks
    assert trajectory.ending == ("done" if settle < 60 else "timeout")
    assert trajectory.frames[-1, 0, 0, 0, 0] == ticks


def test_a_flicker_does_not_end_the_episode():
    robot = CountingRobot()
    flicker = lambda: robot.tick % 4 != 0  # noqa: E731 - three yeses, one no
    assert run_episode(robot, CountingPolicy(), request(settle_ticks=4), flicker).num_ticks == 30


def test_arm_is_held_when_a_step_fails_and_when_all_went_well():
    robot = CountingRobot(fail_at=17)
    with pytest.raises(OSError, match="tick 17"):
        run_episode(robot, CountingPolicy(), request())
    assert robot.held
    robot = CountingRobot()
    run_episode(robot, CountingPolicy(), request())
    assert robot.held


@dataclass
class Failing(CountingPolicy):
    """Answers ``answers`` times, then is gone."""

    answers: int = 2

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        if len(self.ticks) == self.answers:
            raise PolicyUnavailableError("nobody answers")
        return super().act(observations, seeds)


@pytest.mark.parametrize(("execute", "ticks", "frames"), [(12, 24, 9), (8, 16, 6)])
def test_a_policy_that_stops_answering_ends_the_episode_as_aborted(execute, ticks, frames):
    """What the arm did until then is kept, and the arm is held where it is."""
    robot = CountingRobot()
    trajectory = run_episode(robot, Failing(), request(execute=execute))
    assert trajectory.ending == "aborted:nobody answers"
    assert (trajectory.num_ticks, len(trajectory.frames), robot.tick) == (ticks, frames, ticks)
    np.testing.assert_array_equal(trajectory.joint_position[:, 0], np.arange(ticks + 1))
    assert trajectory.provenance.policy_version == 3
    assert robot.held


def test_without_a_first_decision_there_is_no_episode():
    robot = CountingRobot()
    with pytest.raises(PolicyUnavailableError, match="nobody answers"):
        run_episode(robot, Failing(answers=0), request())
    assert robot.held
    assert not robot.executed


def test_the_actor_labels_an_aborted_episode_and_goes_on():
    actor = RolloutActor(lambda: (CountingRobot(), LongIsGood(), never), Failing(answers=1))
    first = actor.collect(request())
    actor.use(CountingPolicy())
    second = actor.collect(request(trajectory_id="b"))
    endings = [(trajectory.ending, label.success) for trajectory, label in (first, second)]
    assert endings == [("aborted:nobody answers", False), ("timeout", False)]


def test_plan_shorter_than_what_is_executed_is_refused():
    with pytest.raises(ValueError, match="plans 10 ticks but 12"):
        run_episode(CountingRobot(), CountingPolicy(horizon=10), request())


def test_version_that_changes_within_an_episode_is_refused():
    class Restless(CountingPolicy):
        def act(
            self, observations: Sequence[Observation], seeds: Sequence[int]
        ) -> list[ActionChunk]:
            self.version += 1
            return super().act(observations, seeds)

    with pytest.raises(ValueError, match="version"):
        run_episode(CountingRobot(), Restless(), request())


@dataclass
class LongIsGood:
    """Labels an episode a success when it ended by itself."""

    def label(self, trajectory: Trajectory) -> Label:
        return Label(trajectory.id, trajectory.ending == "done", "simulator")


def test_actor_collects_and_labels_one_robot():
    robot = CountingRobot()
    actor = RolloutActor(
        lambda: (robot, LongIsGood(), lambda: robot.episode == 1), CountingPolicy(version=1)
    )
    first = actor.collect(request())
    actor.use(CountingPolicy(version=2))
    second = actor.collect(request(trajectory_id="b"))
    assert [first[1].success, second[1].success] == [False, True]
    assert second[1].trajectory_id == "b"
    assert [t.provenance.policy_version for t, _ in (first, second)] == [1, 2]
    actor.close()
    assert robot.closed


class PacedCounting(CountingRobot):
    """Keeps time itself; while a decision is awaited its arm goes on by 0.5 rad of joint 6."""

    def announce(self, trajectory_id, policy_version, max_ticks):
        self.announced = (trajectory_id, policy_version, max_ticks)

    def play(self, actions):
        before = self.state()
        before.joint_position[6] = 0.5
        yield Moment(before, np.full_like(self.observe().images, 99), None)
        for action in actions:
            gentler = action * np.float32(0.5)
            yield Moment(self.step(gentler), self.observe().images, gentler)


def test_a_robot_that_keeps_time_itself_is_recorded_as_it_was_when_its_plan_began():
    robot = PacedCounting()
    trajectory = run_episode(robot, CountingPolicy(version=7), request(max_ticks=14))
    assert robot.announced == (trajectory.id, 7, 14)
    assert trajectory.joint_position[[0, 1, 11, 12, 13], 6].tolist() == [0.5, 0, 0, 0.5, 0]
    assert [(frame == 99).all() for frame in trajectory.frames] == [True, *[False] * 3, True]
    np.testing.assert_array_equal(trajectory.actions, robot.executed)
    assert trajectory.num_ticks == 14
