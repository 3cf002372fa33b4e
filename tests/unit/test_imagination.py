"""Imagination: aligned ticks, poses and frames, batch invariance, and no lost work."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from actors.imagination import ImaginationSettings, ImaginationWorker, Models
from contracts.seeds import fold
from contracts.types import (
    ActionChunk,
    Label,
    Observation,
    StartState,
    Trajectory,
    WorkItem,
)
from services.queue import TaskQueue


@dataclass
class NoisyPolicy:
    """Joint velocities from (what it sees, its seed) alone; remembers how wide its batches were."""

    version: int = 5
    horizon: int = 15
    widths: list[int] = field(default_factory=list)

    def act(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        self.widths.append(len(observations))
        plans = []
        for observation, seed in zip(observations, seeds, strict=True):
            rng = np.random.default_rng([seed, int(observation.images[0, 0, 0, 0])])
            actions = rng.uniform(-1, 1, (self.horizon, 8)).astype(np.float32)
            plans.append(ActionChunk(actions, self.version))
        return plans


@dataclass
class Integrator:
    """Moves joints by 0.1 rad per unit of velocity and tick; the gripper obeys at once."""

    def predict(
        self,
        joint_position: np.ndarray,
        joint_motion: np.ndarray,
        gripper_position: np.ndarray,
        actions: np.ndarray,
        frames: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        joints = joint_position[:, None] + 0.1 * np.cumsum(actions[..., :7], axis=1)
        return joints.astype(np.float32), actions[..., 7]


def kinematics(joints: np.ndarray) -> np.ndarray:
    """Not a Panda: the first six joints, so that poses are easy to follow."""
    return 2.0 * joints[..., :6]


@dataclass
class Echo:
    """Frame j of a chunk is filled with (seed, chunk, j); keeps the poses it was asked for."""

    version: int = 6
    poses: dict[int, list[np.ndarray]] = field(default_factory=dict)

    def begin(self, start: StartState, seed: int) -> dict[str, int]:
        return {"seed": seed, "chunk": 0}

    def imagine(self, slots: Sequence[dict[str, int]], poses: np.ndarray) -> np.ndarray:
        frames = np.zeros((len(slots), 4, 3, 8, 8, 3), np.uint8)
        for row, slot in enumerate(slots):
            frames[row, ..., 0], frames[row, ..., 1] = slot["seed"], slot["chunk"]
            frames[row, ..., 2] = np.arange(4)[:, None, None, None]
            self.poses.setdefault(slot["seed"], []).append(poses[row])
            slot["chunk"] += 1
        return frames


@dataclass
class Shelf:
    """Stores trajectories by id; ``full_at`` makes the add with that number fail."""

    stored: dict[str, Trajectory] = field(default_factory=dict)
    full_at: int | None = None

    def add(self, trajectory: Trajectory, label: Label | None) -> bool:
        assert label is None
        if len(self.stored) == self.full_at:
            raise OSError("disk full")
        fresh = trajectory.id not in self.stored
        self.stored[trajectory.id] = trajectory
        return fresh


def items(count: int) -> list[WorkItem]:
    joints = np.linspace(0, 0.6, 7, dtype=np.float32)
    frame = np.full((3, 8, 8, 3), 99, np.uint8)
    start = StartState("real-1", 2, "wipe", "wipe the board", frame, joints, 0.25)
    return [WorkItem(f"dream-{i}", start, iteration=1, seed=i) for i in range(count)]


def make(
    policy: NoisyPolicy, slots: int, chunks: int, clock: Callable[[], float] = time.perf_counter
) -> ImaginationWorker:
    settings = ImaginationSettings(slots, chunks)
    models = Models(policy, Echo(), Integrator(), kinematics)
    return ImaginationWorker(models, settings, clock)


def run(
    count: int, slots: int, chunks: int = 3, groups: int = 1
) -> tuple[Shelf, TaskQueue, ImaginationWorker, Echo]:
    world_model, shelf, queue = Echo(), Shelf(), TaskQueue(items(count))
    settings = ImaginationSettings(slots, chunks, groups)
    models = Models(NoisyPolicy(), world_model, Integrator(), kinematics)
    worker = ImaginationWorker(models, settings)
    worker.run("w", queue, shelf)
    return shelf, queue, worker, world_model


def test_every_item_is_stored_once_and_acknowledged():
    shelf, queue, worker, _ = run(count=7, slots=3)
    assert sorted(shelf.stored) == [f"dream-{i}" for i in range(7)]
    assert queue.finished()
    stats = worker.stats
    assert (stats.trajectories, stats.chunks, stats.frames) == (7, 21, 84)


def test_trajectory_is_twelve_ticks_and_four_frames_per_chunk():
    shelf, _, _, _ = run(count=2, slots=2)
    dream = shelf.stored["dream-1"]
    assert dream.num_ticks == 36
    assert dream.frames[0, 0, 0, 0, 0] == 99
    seen = [tuple(frame[0, 0, 0]) for frame in dream.frames[1:]]
    assert seen == [(1, chunk, j) for chunk in range(3) for j in range(4)]
    assert dream.instruction == "wipe the board"
    made_by = dream.provenance
    assert (made_by.origin, made_by.policy_version, made_by.world_model_version) == (
        "imagined",
        5,
        6,
    )
    assert (made_by.parent, made_by.parent_frame, made_by.seed) == ("real-1", 2, 1)


def test_states_follow_the_recorded_actions_tick_by_tick():
    """Row k + 1 is row k plus 0.1 x action k: actions, joints and poses are aligned over chunks."""
    shelf, _, _, world_model = run(count=3, slots=2)
    for seed in range(3):
        dream = shelf.stored[f"dream-{seed}"]
        moved = np.diff(dream.joint_position, axis=0)
        np.testing.assert_allclose(moved, 0.1 * dream.actions[:, :7], atol=1e-6)
        np.testing.assert_array_equal(dream.gripper_position[1:], dream.actions[:, 7])
        np.testing.assert_allclose(dream.cartesian_position, 2 * dream.joint_position[:, :6])
        asked = np.stack(world_model.poses[seed])  # chunk, 5, 7
        for chunk in range(3):
            np.testing.assert_allclose(asked[chunk], dream.poses[4 * chunk : 4 * chunk + 5])


def test_decisions_are_seeded_by_item_and_chunk():
    """The recorded actions of chunk c are the first 12 rows of the policy's plan for that seed."""
    shelf, _, _, _ = run(count=2, slots=2)
    dream = shelf.stored["dream-1"]
    for chunk, pixel in enumerate((99, 1, 1)):
        rng = np.random.default_rng([fold(1, chunk), pixel])
        plan = rng.uniform(-1, 1, (15, 8)).astype(np.float32)
        np.testing.assert_array_equal(dream.actions[12 * chunk : 12 * chunk + 12], plan[:12])


@pytest.mark.parametrize(("slots", "groups"), [(1, 1), (2, 1), (5, 1), (16, 1), (5, 2), (4, 9)])
def test_equal_items_give_equal_trajectories_in_any_batch(slots, groups):
    alone, _, _, _ = run(count=5, slots=1)
    together, queue, worker, _ = run(count=5, slots=slots, groups=groups)
    assert queue.finished()
    assert worker.stats.trajectories == 5
    for name, dream in alone.stored.items():
        other = together.stored[name]
        for array in ("actions", "joint_position", "cartesian_position", "frames"):
            np.testing.assert_array_equal(getattr(dream, array), getattr(other, array))


def test_free_slots_are_refilled_at_once():
    """7 items of 3 chunks on 3 slots: two full waves and a wave of one slot, nine calls."""
    policy = NoisyPolicy()
    worker = make(policy, 3, 3)
    worker.run("w", TaskQueue(items(7)), Shelf())
    assert policy.widths == [3, 3, 3, 3, 3, 3, 1, 1, 1]


def test_store_failure_leaves_the_item_to_be_done_again():
    shelf, queue = Shelf(full_at=1), TaskQueue(items(3))
    policy = NoisyPolicy()
    with pytest.raises(OSError, match="disk full"):
        make(policy, 3, 1).run("w", queue, shelf)
    assert queue.status().done == ("dream-0",)
    assert queue.release("w") == 2
    shelf.full_at = None
    again = make(policy, 3, 1).run("w", queue, shelf)
    assert again.trajectories == 2
    assert len(shelf.stored) == 3


def test_stop_is_asked_once_per_chunk_and_drops_what_is_under_way():
    asked = iter([False, False, True])
    shelf, queue = Shelf(), TaskQueue(items(2))
    policy = NoisyPolicy()
    worker = make(policy, 2, 3)
    assert worker.run("w", queue, shelf, lambda: next(asked)).chunks == 4
    assert not shelf.stored
    assert queue.counts().leased == 2


def test_policy_that_plans_too_little_is_refused():
    policy = NoisyPolicy(horizon=8)
    worker = make(policy, 1, 1)
    with pytest.raises(ValueError, match="plans 8 ticks, imagination executes 12"):
        worker.run("w", TaskQueue(items(1)), Shelf())


class Lagging:
    """Time passes in the models alone: 3 s a decision, 5 s a world-model call, 2 s to begin."""

    def __init__(self) -> None:
        self.now, self.busy, self.most = 0.0, 0, 0

    def __call__(self) -> float:
        return self.now

    def models(self) -> Models:
        class Policy(NoisyPolicy):
            def act(policy, observations, seeds):  # noqa: N805
                self.now += 3.0
                return super().act(observations, seeds)

        class WorldModel(Echo):
            def begin(world_model, start, seed):  # noqa: N805
                self.now += 2.0
                return super().begin(start, seed)

            def imagine(world_model, slots, poses):  # noqa: N805
                self.now += 5.0
                return super().imagine(slots, poses)

        return Models(Policy(), WorldModel(), Integrator(), kinematics)


def test_every_second_is_attributed_once():
    clock = Lagging()
    worker = ImaginationWorker(clock.models(), ImaginationSettings(2, 2), clock)
    stats = worker.run("w", TaskQueue(items(2)), Shelf())
    assert (stats.policy_s, stats.world_model_s) == (2 * 3.0, 2 * 2.0 + 2 * 5.0)
    assert (stats.host_s, stats.wait_s) == (0.0, 0.0)
    assert stats.seconds == clock.now


def test_one_group_decides_while_the_other_is_in_the_world_model():
    """Whoever begins second stays in the world model until the first one has decided."""
    begun, decided = [0], threading.Event()

    class Waiting(Echo):
        def begin(self, start, seed):
            begun[0] += 1
            assert begun[0] < 2 or decided.wait(20)
            return super().begin(start, seed)

    class Telling(NoisyPolicy):
        def act(self, observations, seeds):
            decided.set()
            return super().act(observations, seeds)

    models = Models(Telling(), Waiting(), Integrator(), kinematics)
    shelf = Shelf()
    ImaginationWorker(models, ImaginationSettings(2, 1, groups=2)).run(
        "w", TaskQueue(items(2)), shelf
    )
    assert sorted(shelf.stored) == ["dream-0", "dream-1"]


def test_groups_take_turns_in_each_model():
    """8 groups at once: more than one in a model would be seen, sooner or later."""

    class Crowd:
        def __init__(self) -> None:
            self.inside, self.most = 0, 0

        def __enter__(self) -> None:
            self.inside += 1
            self.most = max(self.most, self.inside)
            time.sleep(0.001)

        def __exit__(self, *_: object) -> None:
            self.inside -= 1

    deciding, imagining = Crowd(), Crowd()

    class Policy(NoisyPolicy):
        def act(self, observations, seeds):
            with deciding:
                return super().act(observations, seeds)

    class WorldModel(Echo):
        def imagine(self, slots, poses):
            with imagining:
                return super().imagine(slots, poses)

    models = Models(Policy(), WorldModel(), Integrator(), kinematics)
    worker = ImaginationWorker(models, ImaginationSettings(8, 5, groups=8))
    worker.run("w", TaskQueue(items(8)), Shelf())
    assert (deciding.most, imagining.most) == (1, 1)


def test_a_group_that_fails_ends_the_others():
    class Failing(NoisyPolicy):
        def act(self, observations, seeds):
            if seeds[0] == fold(0, 1):  # the second decision of dream-0
                raise OSError("out of memory")
            return super().act(observations, seeds)

    models = Models(Failing(), Echo(), Integrator(), kinematics)
    worker = ImaginationWorker(models, ImaginationSettings(2, 200, groups=2))
    queue = TaskQueue(items(2))
    with pytest.raises(OSError, match="out of memory"):
        worker.run("w", queue, Shelf())
    assert worker.stats.chunks < 200  # the other one would have gone on to its end


def test_a_slow_store_holds_the_worker_up_and_not_the_memory():
    """Of 12 trajectories of one chunk on 2 slots, no more than 4 wait to be stored: 2 are kept
    back from the next round."""

    class Slow(Shelf):
        def add(self, trajectory, label):
            gate.acquire(timeout=20)
            return super().add(trajectory, label)

    gate, shelf = threading.Semaphore(0), Slow()
    policy = NoisyPolicy()
    worker = make(policy, 2, 1)
    thread = threading.Thread(target=worker.run, args=("w", TaskQueue(items(12)), shelf))
    thread.start()
    until = time.monotonic() + 20
    while sum(policy.widths) < 4 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.1)
    assert sum(policy.widths) == 4
    gate.release(12)
    thread.join(20)
    assert len(shelf.stored) == 12


class Book(TaskQueue):
    """Remembers what its workers said they hold."""

    def __init__(self, work: list[WorkItem]) -> None:
        super().__init__(work)
        self.held: list[list[str]] = []
        self.heard_twice = threading.Event()

    def heartbeat(self, worker, held=()):
        self.held.append(sorted(held))
        super().heartbeat(worker, held)
        if len(self.held) == 2:
            self.heard_twice.set()


@pytest.mark.parametrize(("chunk_s", "times"), [(1.0, 8), (0.1, 3), (0.0, 1)])
def test_the_queue_hears_of_every_chunk_but_not_more_often_than_it_matters(chunk_s, times):
    now = [0.0]

    class Slow(NoisyPolicy):
        def act(self, observations, seeds):
            now[0] += chunk_s
            return super().act(observations, seeds)

    queue = Book(items(2))
    worker = make(Slow(), 2, 8)
    worker.clock = lambda: now[0]
    worker.run("w", queue, Shelf())
    assert queue.held[:times] == [["dream-0", "dream-1"]] * times
    assert len(queue.held) <= times + 1  # once more while they are stored


def test_what_is_still_to_be_stored_is_held():
    """Else a queue that starts again would hand it out a second time."""
    queue = Book(items(2))

    class Late(Shelf):
        def add(self, trajectory, label):
            assert queue.heard_twice.wait(20)
            return super().add(trajectory, label)

    make(NoisyPolicy(), 1, 1).run("w", queue, Late())
    assert queue.held[:2] == [["dream-0"], ["dream-0", "dream-1"]]
