"""The workers of one task: killed, hung, scaled while they work; nothing is lost or done twice."""

import os
import signal
import time
from functools import partial
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from actors.imagination import ImaginationSettings, ImaginationWorker, Models
from cluster.checkpoints import CheckpointFolder
from cluster.context import STORES, Context
from cluster.handles import answer, end, start
from cluster.pool import TaskPool
from cluster.scoring import RemoteJudge
from cluster.session import session
from configs.run import ClusterConfig, ImaginationConfig, RunConfig, TaskOverrides
from contracts.errors import StoppedError
from contracts.types import Clip, Score, StartState, Trajectory, WorkItem
from models.fake import StillAdapter, Trap, WaitingPolicy, WaitingWorldModel, no_kinematics
from replay.store import ReplayStore
from services.progress import Reporter
from services.queue import TaskQueue
from services.replay import ReplayService
from services.stages import Stages

pytestmark = pytest.mark.ray

CHUNKS = 3


@pytest.fixture(scope="module", autouse=True)
def cluster():
    shares = ClusterConfig(num_cpus=4, object_store_mb=100, dashboard=False)
    with session(RunConfig(task={"book": TaskOverrides()}, cluster=shares), ["book"]):
        yield


@pytest.fixture
def run(tmp_path):
    """A run of which only the imagined store is used; two failures in a row are allowed."""
    config = RunConfig(
        task={"book": TaskOverrides()},
        imagination=ImaginationConfig(slots=4, max_chunks=CHUNKS, groups=2, lease_s=120),
        cluster=ClusterConfig(worker_cpus=0.5, max_failures=2),
    )
    stores = {name: str(tmp_path / "stores" / name) for name in STORES}
    replay = start(ReplayService, stores, num_cpus=0)
    answer(replay.counts.remote())
    with Reporter(tmp_path) as reporter:
        yield Context(
            config, tmp_path, ["book"], Stages(tmp_path / "stages"), reporter,
            CheckpointFolder(tmp_path / "checkpoints"), replay,
        )  # fmt: skip
    end(replay)


def items(count: int) -> list[WorkItem]:
    joints = np.linspace(0, 0.6, 7, dtype=np.float32)
    frame = np.zeros((3, 16, 16, 3), np.uint8)
    state = StartState("real-1", 0, "book", "open the book", frame, joints, 0.25)
    return [WorkItem(f"dream-{k:02d}", state, iteration=1, seed=k) for k in range(count)]


def models(seconds: float, trap: Trap | None = None, gate: Path | None = None) -> Models:
    world_model = WaitingWorldModel(seconds, trap, gate)
    return Models(WaitingPolicy(), world_model, StillAdapter(), no_kinematics)


class Kept(dict[str, Trajectory]):
    def add(self, trajectory, label) -> bool:
        self[trajectory.id] = trajectory
        return True


def undisturbed(count: int) -> Kept:
    kept = Kept()
    worker = ImaginationWorker(models(0.0), ImaginationSettings(4, CHUNKS))
    worker.run("alone", TaskQueue(items(count)), kept)
    return kept


def play(pool: TaskPool, count, seconds: float = 90.0) -> None:
    """Keep ``count()`` workers until everything is done."""
    until = time.monotonic() + seconds
    while not pool.finished:
        assert time.monotonic() < until, pool.numbers()
        pool.look()
        pool.resize(count())
        time.sleep(0.05)


def check_all_there(run: Context, count: int) -> None:
    store = ReplayStore.open(run.store_folder("imagined"))
    wanted = undisturbed(count)
    assert sorted(store.ids()) == sorted(wanted)
    for name, other in wanted.items():
        one = store.trajectory(name)
        assert one.provenance == other.provenance
        for part in ("actions", "joint_position", "gripper_position"):
            np.testing.assert_array_equal(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(run, tmp_path, number):
    """In the middle of a chunk, with trajectories in hand, a worker is killed or stopped."""
    said: list[str] = []
    if number == signal.SIGSTOP:
        run.config.imagination.lease_s = 8
    build = partial(models, 0.02, Trap(5, number, tmp_path / "sprung"))
    pool = TaskPool(run, "book", partial(items, 12), build, said.append)
    play(pool, lambda: 2)
    # on a crowded machine a healthy worker may be silent for as long, too
    assert pool.deaths == 1 or (number == signal.SIGSTOP and pool.deaths > 1)
    assert "its work goes to another" in said[0]
    assert ("was silent for" in said[0]) == (number == signal.SIGSTOP)
    pool.close()
    check_all_there(run, 12)


class FirstChunk:
    """A scorer to which the goal is reached after the first chunk, and which dies once before."""

    def __init__(self, sprung: Path) -> None:
        self._sprung = sprung

    async def score(self, clip: Clip) -> Score:
        if not self._sprung.exists():
            self._sprung.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return Score(0.9 if clip.frame_index[-1] >= 4 else 0.1, 1.0)


def test_trajectories_end_where_a_judge_in_another_process_says_yes(run, tmp_path):
    sprung = tmp_path / "scorer"
    judge = start(FirstChunk, sprung, max_restarts=-1, max_task_retries=3)
    build, said = partial(models, 0.0), lambda _: None
    pool = TaskPool(run, "book", partial(items, 6), build, said, RemoteJudge(judge))
    play(pool, lambda: 2)
    pool.close()
    end(judge)
    store = ReplayStore.open(run.store_folder("imagined"))
    assert sprung.exists()
    rows = store.episodes(store.ids())
    assert [(row.num_ticks, row.num_frames, row.ending) for row in rows] == [(24, 9, "done")] * 6


def test_workers_that_always_die_end_the_stage_and_keep_what_is_stored(run):
    pool = TaskPool(run, "book", partial(items, 6), partial(models, 0.0, Trap(5)), lambda _: None)
    with pytest.raises(StoppedError, match=r"3 workers in a row were lost.*imagination.slots"):
        play(pool, lambda: 1)
    pool.close()
    assert "dream-05" not in ReplayStore.open(run.store_folder("imagined")).ids()


def test_workers_come_and_go_while_the_task_goes_on(run, tmp_path):
    """1, then 3, then 1 again: the two that go finish what they hold."""
    gate = tmp_path / "gate"
    pool = TaskPool(
        run, "book", partial(items, 24), partial(models, 0.0, gate=gate), lambda _: None
    )

    def wanted() -> int:
        if pool.status.counts.leased == 3 * 4:  # all three work
            gate.touch()
        return 1 if gate.exists() or not pool.numbers()["working"] else 3

    play(pool, wanted)
    assert (pool.most, pool.deaths) == (3, 0)
    stats = pool.close()
    assert sum(one.trajectories for one in stats) == 24  # nothing was dropped and done again
    assert all(one.trajectories >= 4 for one in stats)  # what each held when all three worked
    check_all_there(run, 24)


def test_a_queue_that_dies_comes_back_and_nothing_is_imagined_twice(run):
    pool = TaskPool(run, "book", partial(items, 12), partial(models, 0.3), lambda _: None)
    killed = False

    def wanted() -> int:
        nonlocal killed
        if pool.status.counts.done >= 4 and not killed:
            killed = True
            process = pool.queue._actor.__ray_call__.remote(lambda _: os.getpid())
            os.kill(answer(process), signal.SIGKILL)
        return 1

    play(pool, wanted)
    assert killed
    stats = pool.close()
    assert sum(one.trajectories for one in stats) == 12
    check_all_there(run, 12)


def exported(name: str) -> float:
    """The sum of a metric over the processes of this machine, as Ray shows it to Prometheus."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
        families = text_string_to_metric_families(reply.read().decode())
        return sum(s.value for family in families for s in family.samples if s.name == name)


def test_a_task_that_has_enough_ends_early_and_is_seen_while_it_works(run):
    """What is under way when it stops is finished and stored; the rest is never begun."""
    count = 2000  # three minutes of work, if nobody stopped it
    pool = TaskPool(run, "book", partial(items, count), partial(models, 0.1), lambda _: None)
    before = exported("ray_vlaw_net_frames_total")

    def wanted() -> int:
        if exported("ray_vlaw_net_frames_total") > before:
            pool.stop()
        return 1

    play(pool, wanted)
    pool.close()
    stored = ReplayStore.open(run.store_folder("imagined")).ids()
    assert sorted(stored) == sorted(i.trajectory_id for i in items(len(stored)))
    assert 4 <= len(stored) < count
