"""The policy acts inside the world model: groups of slots, refilled from a work queue."""

import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from actors.dream import Dream, Ending, frame_poses
from contracts.constants import NEW_FRAMES, TICKS_PER_CHUNK
from contracts.metrics import (
    NET_FRAMES,
    POLICY_INFER_SECONDS,
    TRAJECTORIES,
    WM_STEP_SECONDS,
    WM_STEPS,
    Meter,
    NoMeter,
)
from contracts.protocols import Policy, PoseAdapter, TrajectoryWriter, WorkQueue, WorldModel
from contracts.seeds import fold
from contracts.types import ActionChunk, WorkItem

HEARTBEAT_S = 0.25  # leases last a second or more
ADAPTER_TICKS = (
    15  # Ctrl-World's adapter is an MLP over 15 velocities; later ones are never executed
)

Kinematics = Callable[[Float[np.ndarray, "*batch 7"]], Float[np.ndarray, "*batch 6"]]
Clock = Callable[[], float]


def never() -> bool:
    """The stop signal of a worker that ends with its queue."""
    return False


@dataclass(frozen=True, slots=True)
class ImaginationSettings:
    """``slots`` trajectories advance in ``groups`` that take turns with the models, each for
    ``max_chunks`` decisions (paper: 20), or until ``ending`` says that the goal is reached."""

    slots: int = 16
    max_chunks: int = 20
    groups: int = 1
    ending: Ending | None = None

    def __post_init__(self) -> None:
        for name in ("slots", "max_chunks", "groups"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"imagination.{name}={value} must be at least 1")

    def group_slots(self) -> list[int]:
        """Slots of each group; never an empty group."""
        groups = min(self.groups, self.slots)
        return [self.slots // groups + (k < self.slots % groups) for k in range(groups)]


@dataclass(frozen=True, slots=True)
class Models:
    """What one worker imagines with; ``kinematics`` maps joint angles to flange poses."""

    policy: Policy
    world_model: WorldModel
    adapter: PoseAdapter
    kinematics: Kinematics


@dataclass
class ImaginationStats:
    """Work done so far. ``frames`` are net: the current frame of each chunk is not counted.

    Seconds are summed over the groups, so they add up to ``groups`` times the clock's.
    """

    trajectories: int = 0
    chunks: int = 0
    frames: int = 0
    policy_s: float = 0.0
    world_model_s: float = 0.0
    host_s: float = 0.0  # adapter, kinematics, queue
    wait_s: float = 0.0  # for a model that another group uses, or for the store

    @property
    def seconds(self) -> float:
        return self.policy_s + self.world_model_s + self.host_s + self.wait_s


@dataclass(frozen=True, slots=True)
class Shift:
    """One call of ``run``: under which name, from which queue and into which store."""

    worker: str
    queue: WorkQueue
    sink: TrajectoryWriter
    should_stop: Callable[[], bool]


class ImaginationWorker:
    """Imagines work items until the queue has no more. Holds nothing that a restart would lose.

    While one group is in the world model, the others decide and move arms, and a thread of its own
    stores what has ended: the world model waits for nobody. A trajectory is stored first and
    acknowledged second, so a crash between the two repeats work and never loses it. All randomness
    comes from the item's seed and the index of the chunk.
    """

    def __init__(
        self,
        models: Models,
        settings: ImaginationSettings,
        clock: Clock = time.perf_counter,
        meter: Meter | None = None,
    ) -> None:
        self.models = models
        self.settings = settings
        self.clock = clock
        self.meter = meter or NoMeter()
        self.stats = ImaginationStats()
        self.turns = {"policy_s": threading.Lock(), "world_model_s": threading.Lock()}
        self._mutex = threading.Lock()

    def run(
        self,
        worker: str,
        queue: WorkQueue,
        sink: TrajectoryWriter,
        should_stop: Callable[[], bool] = never,
    ) -> ImaginationStats:
        """Work until nothing is left to take or ``should_stop`` says so, asked once per chunk.

        Returns what this worker has done in all its runs. What is under way at a stop is dropped;
        its leases end and it runs again with the same seeds. An item that another worker lets go
        of after this returns needs another call.

        Raises:
            ValueError: the policy plans fewer than 12 ticks.
        """
        shift = Shift(worker, queue, sink, should_stop)
        broken = threading.Event()  # a group that fails ends the others, too
        slots = self.settings.group_slots()
        with ThreadPoolExecutor(1) as keeper, ThreadPoolExecutor(len(slots)) as threads:
            groups = [_Group(self, shift, count, keeper, broken) for count in slots]
            ended = [threads.submit(group.work) for group in groups]
            for future in ended:
                future.result()
        return self.stats

    def count(self, **amounts: float | int) -> None:
        """Add to the stats; any thread may."""
        with self._mutex:
            for name, amount in amounts.items():
                setattr(self.stats, name, getattr(self.stats, name) + amount)


class _Group:
    """Some slots of a worker, advancing together in a thread of their own."""

    def __init__(
        self,
        owner: ImaginationWorker,
        shift: Shift,
        slots: int,
        keeper: ThreadPoolExecutor,
        broken: threading.Event,
    ) -> None:
        self._owner, self._shift, self._slots = owner, shift, slots
        self._models, self._clock, self._meter = owner.models, owner.clock, owner.meter
        self._keeper, self._broken = keeper, broken
        self._dreams: list[Dream] = []
        self._storing: dict[str, Future[None]] = {}
        self._accounted = 0.0  # seconds of this round that are no host work
        self._beaten = -math.inf  # when the queue was last told what is under way

    def work(self) -> None:
        try:
            while not (self._broken.is_set() or self._shift.should_stop()):
                began, self._accounted = self._clock(), 0.0
                more = self._round()
                host = self._clock() - began - self._accounted
                self._owner.count(host_s=host)
                if not more:
                    break
            self._stored(wait_for=0)
        except BaseException:  # whatever it was: the other groups must not go on for hours
            self._broken.set()
            raise

    def _round(self) -> bool:
        """One chunk of every slot. False when there is nothing to do."""
        self._refill()
        if not self._dreams:
            return False
        self._advance(self._dreams)
        over = {dream.id: dream for dream in self._dreams if self._over(dream)}
        for name, dream in over.items():
            self._storing[name] = self._keeper.submit(self._keep, dream)
        self._dreams = [dream for dream in self._dreams if dream.id not in over]
        self._stored(wait_for=self._slots)
        return True

    def _over(self, dream: Dream) -> bool:
        settings = self._owner.settings
        reached = settings.ending is not None and dream.done(settings.ending) is not None
        return reached or dream.chunks == settings.max_chunks

    def _refill(self) -> None:
        shift = self._shift
        if free := self._slots - len(self._dreams):
            self._dreams += [self._start(item) for item in shift.queue.take(shift.worker, free)]
        held = [*(dream.id for dream in self._dreams), *self._storing]
        if held and (free or self._clock() - self._beaten >= HEARTBEAT_S):
            shift.queue.heartbeat(shift.worker, held)
            self._beaten = self._clock()

    def _stored(self, wait_for: int) -> None:
        """Raise what the store raised; wait while more than ``wait_for`` trajectories are to be
        stored, so that a slow store does not fill the memory."""
        for name, future in list(self._storing.items()):
            if future.done() or len(self._storing) > wait_for:
                with self._waiting():
                    future.result()
                del self._storing[name]

    def _keep(self, dream: Dream) -> None:
        shift, task, ending = self._shift, dream.item.start.task, self._owner.settings.ending
        if ending is not None:
            dream.cut(ending)
        fresh = shift.sink.add(dream.trajectory(self._models.world_model.version), None)
        shift.queue.done(shift.worker, dream.id)
        self._owner.count(trajectories=1)
        outcome = "stored" if fresh else "repeated"
        self._meter.count(TRAJECTORIES, task=task, worker=shift.worker, outcome=outcome)

    def _start(self, item: WorkItem) -> Dream:
        with self._turn("world_model_s"):
            memory = self._models.world_model.begin(item.start, item.seed)
        joints = item.start.joint_position[None].astype(np.float32)
        return Dream(
            item,
            memory,
            frames=[item.start.frame[None]],
            joints=[joints],
            gripper=[np.asarray([item.start.gripper_position], np.float32)],
            cartesian=[self._poses(joints)],
        )

    def _advance(self, dreams: Sequence[Dream]) -> None:
        """One chunk of every slot: decide, move the arm, imagine what the cameras see."""
        plans = self._decide(dreams)
        actions = np.stack([plan.actions for plan in plans])
        joints, gripper = self._models.adapter.predict(
            np.stack([d.joints[-1][-1] for d in dreams]),
            np.stack([d.joint_motion() for d in dreams]),
            np.asarray([d.gripper[-1][-1] for d in dreams], np.float32),
            actions[:, :ADAPTER_TICKS],
            np.stack([d.frames[-1][-1] for d in dreams]),
        )
        joints, gripper = joints[:, :TICKS_PER_CHUNK], gripper[:, :TICKS_PER_CHUNK]
        cartesian = self._poses(joints)
        frames = self._imagine(dreams, frame_poses(dreams, cartesian, gripper))
        for row, (dream, plan) in enumerate(zip(dreams, plans, strict=True)):
            dream.policy_version = plan.version
            dream.actions.append(actions[row, :TICKS_PER_CHUNK])
            dream.joints.append(joints[row])
            dream.gripper.append(gripper[row])
            dream.cartesian.append(cartesian[row])
            dream.frames.append(frames[row])
        if self._owner.settings.ending is not None:
            for dream in dreams:
                dream.ask(self._owner.settings.ending)

    def _decide(self, dreams: Sequence[Dream]) -> list[ActionChunk]:
        seen = [dream.observation() for dream in dreams]
        seeds = [fold(dream.item.seed, dream.chunks) for dream in dreams]
        with self._turn("policy_s") as spent:
            plans = self._models.policy.act(seen, seeds)
        self._meter.observe(POLICY_INFER_SECONDS, spent[0])
        if len(plans[0].actions) < TICKS_PER_CHUNK:
            raise ValueError(
                f"the policy plans {len(plans[0].actions)} ticks, imagination executes "
                f"{TICKS_PER_CHUNK}: raise policy.horizon"
            )
        return plans

    def _imagine(self, dreams: Sequence[Dream], poses: np.ndarray) -> np.ndarray:
        with self._turn("world_model_s") as spent:
            frames = self._models.world_model.imagine([dream.memory for dream in dreams], poses)
        new = NEW_FRAMES * len(dreams)
        self._owner.count(chunks=len(dreams), frames=new)
        task = dreams[0].item.start.task  # a queue holds the work of one task
        self._meter.observe(WM_STEP_SECONDS, spent[0])
        self._meter.count(WM_STEPS, task=task)
        self._meter.count(NET_FRAMES, float(new), task=task)
        return frames

    def _poses(self, joints: np.ndarray) -> np.ndarray:
        return np.asarray(self._models.kinematics(joints), np.float32)

    @contextmanager
    def _turn(self, part: str) -> Iterator[list[float]]:
        """A model for this group alone; what it spent there is in the list after the block."""
        spent: list[float] = []
        came = self._clock()
        with self._owner.turns[part]:
            began = self._clock()
            yield spent
            ended = self._clock()
        spent.append(ended - began)
        self._accounted += ended - came
        self._owner.count(wait_s=began - came, **{part: ended - began})

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        came = self._clock()
        yield
        waited = self._clock() - came
        self._accounted += waited
        self._owner.count(wait_s=waited)
